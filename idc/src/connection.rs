//! One connection of an endpoint: its slots, and the frames that go through its link.
//!
//! Whatever belongs to a connection refers to it, also after its end. So nothing of an earlier
//! connection can reach a later one.

use crate::LocalBuffer;
use crate::endpoint::{Event, Incoming, Received};
use crate::life::Publication;
use crate::quota::Quota;
use crate::slots::{self, Answer, Outgoing};
use crate::transport::{Link, LinkReader, LinkWriter};
use crate::wire::{HEADER_LEN, Header, Kind};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::convert::Infallible;
use core::pin::pin;
use core::task::{Context, Poll};
use futures_util::future::{Either, select};
use xen::{Errno, WaitList, yield_now};

/// The most frames that are read or written before other tasks run.
const BURST: u32 = 64;

/// The most slots of each kind that this end uses of those that the other end offers. They take
/// memory at this end too, which is not the other end's to choose.
const MAX_SENT: u16 = 1024;

/// The memory of an endpoint for what it receives.
#[derive(Default)]
pub(crate) struct Memory {
    messages: Vec<LocalBuffer>,
    parameters: Vec<LocalBuffer>,
    statuses: Vec<LocalBuffer>,
}

impl Memory {
    /// Allocates the memory. [`Errno::ENOMEM`] if there is not enough.
    pub(crate) fn new(quota: &Quota) -> Result<Self, Errno> {
        let buffers = |count: u16, len: u32| -> Result<Vec<LocalBuffer>, Errno> {
            (0..count).map(|_| LocalBuffer::try_new(len as usize)).collect()
        };
        Ok(Memory {
            messages: buffers(quota.messages, quota.message)?,
            parameters: buffers(quota.transactions, quota.parameters)?,
            statuses: buffers(quota.transactions, quota.status)?,
        })
    }
}

/// A connection, present or past.
pub(crate) struct Connection {
    over: Cell<bool>,
    /// What the other end is ready to receive.
    peer: Quota,
    sent_messages: Outgoing,
    sent_requests: Outgoing,
    /// Where the answers to requests go, by slot.
    statuses: RefCell<Vec<LocalBuffer>>,
    messages: slots::Incoming,
    requests: slots::Incoming,
    /// The frames to write. The slots of both ends bound their number.
    out: RefCell<VecDeque<Frame>>,
    /// The writer, which waits for a frame.
    writer: WaitList,
    /// How many received messages and requests the client has not finished.
    lent: Cell<usize>,
    finished: WaitList,
}

/// A frame to write.
struct Frame {
    header: Header,
    body: Option<LocalBuffer>,
}

impl Connection {
    pub(crate) fn new(quota: &Quota, memory: Memory, other: &Publication) -> Self {
        let peer = other.quota;
        // An answer needs a place in this end's memory, a request one in the other's.
        let requests = peer.transactions.min(quota.transactions).min(MAX_SENT);
        let messages = peer.messages.min(MAX_SENT);
        let frames = usize::from(messages) + usize::from(requests);
        let answers = usize::from(quota.messages) + usize::from(quota.transactions);
        Connection {
            over: Cell::new(false),
            peer,
            sent_messages: Outgoing::new(messages),
            sent_requests: Outgoing::new(requests),
            statuses: RefCell::new(memory.statuses),
            messages: slots::Incoming::new(memory.messages),
            requests: slots::Incoming::new(memory.parameters),
            out: RefCell::new(VecDeque::with_capacity(frames + answers)),
            writer: WaitList::default(),
            lent: Cell::new(0),
            finished: WaitList::default(),
        }
    }

    /// What the other end is ready to receive.
    pub(crate) fn peer(&self) -> &Quota {
        &self.peer
    }

    fn outgoing(&self, kind: Submitted) -> &Outgoing {
        match kind {
            Submitted::Message => &self.sent_messages,
            Submitted::Request => &self.sent_requests,
        }
    }

    /// Waits for a slot of the other end. `None` if the connection ends.
    pub(crate) async fn slot(self: &Rc<Self>, kind: Submitted) -> Option<Ticket> {
        let slot = self.outgoing(kind).wait(&self.over).await?;
        Some(Ticket { connection: self.clone(), kind, slot })
    }

    /// Takes a slot of the other end. `None` if there is none now.
    pub(crate) fn try_slot(self: &Rc<Self>, kind: Submitted) -> Option<Ticket> {
        let slot = self.outgoing(kind).take()?;
        Some(Ticket { connection: self.clone(), kind, slot })
    }

    fn push(&self, kind: Kind, slot: u16, code: u32, body: Option<LocalBuffer>) {
        if self.over.get() {
            return;
        }
        let len = body.as_ref().map_or(0, |body| body.len() as u32);
        let header = Header { kind, slot, len, code };
        self.out.borrow_mut().push_back(Frame { header, body });
        self.writer.wake_one();
    }

    /// Answers what was received in a slot. The slot is free when the answer is sent.
    pub(crate) fn finish(&self, kind: Submitted, slot: u16, code: u32, body: Option<LocalBuffer>) {
        let answer = match kind {
            Submitted::Message => Kind::Done,
            Submitted::Request => Kind::Response,
        };
        self.push(answer, slot, code, body);
        self.lent.set(self.lent.get() - 1);
        self.finished.wake_all();
    }

    /// Ends the connection: completes what this end has submitted.
    pub(crate) fn end(&self) {
        self.over.set(true);
        drop(self.out.take());
        self.sent_messages.wake_all();
        self.sent_requests.wake_all();
    }

    /// Waits until the client has finished all that it received. Returns the memory.
    pub(crate) async fn all_finished(&self) -> Memory {
        self.finished.until(|| (self.lent.get() == 0).then_some(())).await;
        Memory {
            messages: self.messages.take_memory(),
            parameters: self.requests.take_memory(),
            statuses: self.statuses.take(),
        }
    }

    /// Moves frames until the link is broken, or the other end breaks the protocol.
    pub(crate) async fn carry<L: Link>(
        self: &Rc<Self>,
        link: &mut L,
        event: impl Fn(Event),
    ) -> Errno {
        let (mut reader, mut writer) = link.split();
        let read = pin!(self.read(&mut reader, event));
        let write = pin!(self.write(&mut writer));
        match select(read, write).await {
            Either::Left((Err(error), _)) | Either::Right((Err(error), _)) => error,
            Either::Left((Ok(never), _)) | Either::Right((Ok(never), _)) => match never {},
        }
    }

    /// Takes what comes. It never waits for the client: all has its place.
    async fn read(
        self: &Rc<Self>,
        link: &mut impl LinkReader,
        event: impl Fn(Event),
    ) -> Result<Infallible, Errno> {
        let header = LocalBuffer::new(HEADER_LEN);
        let mut bytes = [0; HEADER_LEN];
        let mut count = 0u32;
        loop {
            link.read_exact(header.shared()).await?;
            header.read(0, &mut bytes);
            self.receive(Header::from_bytes(&bytes)?, link, &event).await?;
            count = count.wrapping_add(1);
            if count.is_multiple_of(BURST) {
                yield_now().await;
            }
        }
    }

    async fn receive(
        self: &Rc<Self>,
        header: Header,
        link: &mut impl LinkReader,
        event: &impl Fn(Event),
    ) -> Result<(), Errno> {
        let Header { kind, slot, len, code } = header;
        match kind {
            Kind::Message => {
                let body = self.messages.receive(slot, len)?;
                link.read_exact(body.shared()).await?;
                self.lent.set(self.lent.get() + 1);
                event(Event::Message(Received::new(self.clone(), slot, body)));
            }
            Kind::Request => {
                let parameters = self.requests.receive(slot, len)?;
                link.read_exact(parameters.shared()).await?;
                self.lent.set(self.lent.get() + 1);
                event(Event::Transaction(Incoming::new(self.clone(), slot, parameters)));
            }
            Kind::Done => self.sent_messages.answer(slot, Answer { code, status: None })?,
            Kind::Response if self.sent_requests.is_sent(slot) => {
                let status = self.status(slot, len).ok_or(Errno::EPROTO)?;
                link.read_exact(status.shared()).await?;
                self.sent_requests.answer(slot, Answer { code, status: Some(status) })?;
            }
            _ => return Err(Errno::EPROTO),
        }
        Ok(())
    }

    fn status(&self, slot: u16, len: u32) -> Option<LocalBuffer> {
        let statuses = self.statuses.borrow();
        let memory = statuses.get(usize::from(slot))?;
        ((len as usize) <= memory.len()).then(|| memory.slice(0..len as usize))
    }

    /// The next frame to write. The other end can use a slot again when its answer is written, and
    /// answer what this end submits when that is. So there are never more frames than slots.
    fn next_frame(&self) -> Option<Frame> {
        let frame = self.out.borrow_mut().pop_front()?;
        match frame.header.kind {
            Kind::Done => self.messages.finish(frame.header.slot),
            Kind::Response => self.requests.finish(frame.header.slot),
            Kind::Message => self.sent_messages.sent(frame.header.slot),
            _ => self.sent_requests.sent(frame.header.slot),
        }
        Some(frame)
    }

    /// Writes the frames.
    async fn write(&self, link: &mut impl LinkWriter) -> Result<Infallible, Errno> {
        let header = LocalBuffer::new(HEADER_LEN);
        let next = || self.next_frame();
        let mut count = 0u32;
        loop {
            let frame = match next() {
                Some(frame) => frame,
                None => {
                    link.flush().await?;
                    self.writer.until(next).await
                }
            };
            header.write(0, &frame.header.to_bytes());
            link.write_all(header.shared()).await?;
            if let Some(body) = &frame.body {
                link.write_all(body.shared()).await?;
            }
            count = count.wrapping_add(1);
            if count.is_multiple_of(BURST) {
                yield_now().await;
            }
        }
    }
}

/// What can be submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Submitted {
    Message,
    Request,
}

/// A slot of the other end that a submission occupies, until this is dropped and the other end has
/// answered.
pub(crate) struct Ticket {
    connection: Rc<Connection>,
    kind: Submitted,
    slot: u16,
}

impl Ticket {
    /// Sends the body.
    pub(crate) fn send(&self, body: LocalBuffer) {
        let kind = match self.kind {
            Submitted::Message => Kind::Message,
            Submitted::Request => {
                if let Some(status) =
                    self.connection.statuses.borrow_mut().get_mut(usize::from(self.slot))
                {
                    status.make_unique();
                }
                Kind::Request
            }
        };
        self.connection.push(kind, self.slot, 0, Some(body));
    }

    /// Waits for the answer. `None` if the connection ends without one.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        match self.connection.outgoing(self.kind).poll(self.slot, cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if self.connection.over.get() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.connection.outgoing(self.kind).forget(self.slot);
    }
}
