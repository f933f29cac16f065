//! An active socket: the ring of a connection, shared by the stream and the driver's jobs.

use super::calls::{Answer, Reply};
use super::device::{Attachment, Device};
use super::memory::Ring;
use super::stream::Stream;
use crate::ring::{Consumer, Guess, Producer, len};
use crate::wire::{Call, Family};
use crate::{Machine, Side, Signal};
use alloc::rc::Rc;
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use core::net::SocketAddr;
use core::task::{Context, Poll};
use futures_util::future::join;
use xen::{Errno, Shared};

/// After so many operations that did not have to wait, a task lets the others run.
const BURST: u32 = 32;

/// An active socket.
pub(super) struct Socket<M: Machine + 'static> {
    pub(super) device: Rc<Device<M>>,
    pub(super) name: u64,
    pub(super) session: u32,
    pub(super) signal: Arc<Signal>,
    /// None once the ring was closed.
    ring: RefCell<Option<Ring>>,
    consumer: RefCell<Consumer>,
    producer: RefCell<Producer>,
    /// What every operation fails with from now on.
    failed: Cell<Option<Errno>>,
    /// Operations since the last pause.
    burst: Cell<u32>,
}

impl<M: Machine> Socket<M> {
    pub(super) fn new(device: &Rc<Device<M>>, name: u64, session: u32, ring: Ring) -> Rc<Self> {
        let layout = ring.layout();
        let socket = Rc::new(Socket {
            device: device.clone(),
            name,
            session,
            signal: ring.signal.clone(),
            consumer: RefCell::new(Consumer::new(layout.input, Guess::HalfFull)),
            producer: RefCell::new(Producer::new(layout.output)),
            ring: RefCell::new(Some(ring)),
            failed: Cell::new(None),
            burst: Cell::new(0),
        });
        device.enrol(name, &socket);
        socket
    }

    /// Takes what is there: `take` sees the data, empty at the end of the stream, and says how many of
    /// its bytes it took.
    pub(super) fn poll_take<R>(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Poll<Result<R, Errno>> {
        self.poll(cx, Side::Rx, || self.try_take(&mut take))
    }

    /// Puts something where there is room: `put` sees the room and says how many bytes it put there.
    pub(super) fn poll_put<R>(
        &self,
        cx: &mut Context<'_>,
        mut put: impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Poll<Result<R, Errno>> {
        self.poll(cx, Side::Tx, || self.try_put(&mut put))
    }

    /// Looks, and waits if there is nothing to see.
    fn poll<R>(
        &self,
        cx: &mut Context<'_>,
        side: Side,
        mut attempt: impl FnMut() -> Result<Option<R>, Errno>,
    ) -> Poll<Result<R, Errno>> {
        // A peer that is always ready must not keep everything else from running.
        if self.burst.get() >= BURST {
            self.burst.set(0);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut result = attempt().transpose();
        if result.is_none() {
            self.burst.set(0);
            self.signal.register(side, cx.waker());
            // What came before the waker was there has woken nobody.
            self.arm(side);
            result = attempt().transpose();
        }
        match result {
            Some(result) => {
                self.burst.set(self.burst.get() + 1);
                Poll::Ready(result)
            }
            None => Poll::Pending,
        }
    }

    /// Asks the backend for an event when there is something to be done on this side.
    pub(super) fn arm(&self, side: Side) {
        let ring = self.ring.borrow();
        let Some(ring) = ring.as_ref() else { return };
        match side {
            Side::Rx => self.consumer.borrow().arm(ring.region()),
            // Half of the ring at once, rather than an event for every byte that is taken.
            Side::Tx => {
                let producer = self.producer.borrow();
                producer.arm(ring.region(), ring.layout().output.size / 2);
            }
        }
    }

    /// Asks the backend for an event when it has taken everything.
    pub(super) fn arm_for_drain(&self) {
        if let Some(ring) = self.ring.borrow().as_ref() {
            self.producer.borrow().arm(ring.region(), ring.layout().output.size);
        }
    }

    fn try_take<R>(
        &self,
        take: &mut impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<Option<R>, Errno> {
        let ring = self.ring.borrow();
        let ring = ring.as_ref().ok_or_else(|| self.failure())?;
        let mut consumer = self.consumer.borrow_mut();
        let region = ring.region();
        // The error is read first: all data that came before it is seen then, and drained first.
        let error = consumer.error(region);
        let data = consumer.data(region).map_err(|error| self.fail(error))?;
        if len(&data) == 0 {
            match error {
                None => return self.failed.get().map_or(Ok(None), Err),
                Some(Errno::ENOTCONN) => {}
                Some(error) => return Err(error),
            }
        }
        let (count, value) = take(data);
        self.device.counters.bytes_in.add(count);
        if consumer.advance(region, count).is_due() {
            self.device.memory.notify(ring.port());
        }
        Ok(Some(value))
    }

    fn try_put<R>(
        &self,
        put: &mut impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<Option<R>, Errno> {
        let ring = self.ring.borrow();
        let ring = ring.as_ref().ok_or_else(|| self.failure())?;
        let mut producer = self.producer.borrow_mut();
        let region = ring.region();
        if let Some(error) = self.failed.get().or_else(|| producer.error(region)) {
            return Err(error);
        }
        let room = producer.room(region).map_err(|error| self.fail(error))?;
        if len(&room) == 0 {
            return Ok(None);
        }
        let (count, value) = put(room);
        self.device.counters.bytes_out.add(count);
        if producer.advance(region, count).is_due() {
            self.device.memory.notify(ring.port());
        }
        Ok(Some(value))
    }

    /// Bytes that the backend has not taken yet: none when it never will.
    pub(super) fn unsent(&self) -> u32 {
        let ring = self.ring.borrow();
        let Some(ring) = ring.as_ref() else { return 0 };
        let (producer, region) = (self.producer.borrow(), ring.region());
        if self.failed.get().or_else(|| producer.error(region)).is_some() {
            return 0;
        }
        producer.unread(region).unwrap_or(0)
    }

    /// The error that a write would meet.
    pub(super) fn check_writable(&self) -> Result<(), Errno> {
        let ring = self.ring.borrow();
        let ring = ring.as_ref().ok_or_else(|| self.failure())?;
        let error = self.producer.borrow().error(ring.region());
        self.failed.get().or(error).map_or(Ok(()), Err)
    }

    /// Whether the ring is still there.
    pub(super) fn is_open(&self) -> bool {
        self.ring.borrow().is_some()
    }

    /// Ends the socket: its ring is closed, all who wait learn why.
    pub(super) fn end(&self, error: Errno) {
        if self.failed.get().is_none() {
            self.failed.set(Some(error));
        }
        if let Some(ring) = self.ring.take() {
            self.device.strike_off(self.name);
            self.device.memory.close_ring(ring);
        }
        self.signal.raise();
    }

    /// The peer broke the rules: nothing that it says about this socket is believed any more.
    fn fail(&self, error: Errno) -> Errno {
        if self.failed.get().is_none() {
            log::error!("socket {}: the backend's indexes are impossible: {error}", self.name);
            self.failed.set(Some(error));
        }
        self.failure()
    }

    fn failure(&self) -> Errno {
        self.failed.get().unwrap_or(Errno::ENOTCONN)
    }
}

/// Opens a socket and connects it: a job.
pub(super) async fn connect<M: Machine>(
    device: &Rc<Device<M>>,
    to: SocketAddr,
) -> Result<Stream<M>, Errno> {
    let at = device.attached().await?;
    let Attachment { session, backend, protocol, ring_order } = at;
    let (ring, offer) = device.memory.open_ring(backend, protocol, ring_order)?;
    let name = device.name_socket();
    // Both requests go out at once: if the first fails, so does the second.
    let create = create(device, &at, name, Family::of(to));
    let connect = device.call(session, name, Call::Connect { addr: to, flags: 0, ring: offer });
    let (created, connected) = join(create, connect).await;
    match created.and(connected) {
        Ok(_) => Ok(Stream::new(Socket::new(device, name, session, ring))),
        Err(error) => {
            // The backend may still know the socket, and after a lost answer even the ring.
            let _ = device.call(session, name, Call::Release { reuse: false }).await;
            device.memory.close_ring(ring);
            Err(error)
        }
    }
}

/// Creates a socket, if that takes a command of its own.
pub(super) async fn create<M: Machine>(
    device: &Device<M>,
    at: &Attachment,
    name: u64,
    family: Family,
) -> Answer {
    if !at.protocol.dialect.has_socket_command() {
        return Ok(Reply::default());
    }
    device.call(at.session, name, Call::Socket { family }).await
}
