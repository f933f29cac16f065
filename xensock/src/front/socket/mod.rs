//! An active socket: the ring of a connection, shared by the stream and the driver's jobs.

mod open;
mod options;

pub(super) use open::{connect, make, preparations};

use super::calls::Answer;
use super::device::{Attachment, Device};
use super::memory::{Berth, Ring, RingPages};
use crate::ring::{Consumer, Guess, Producer, len};
use crate::wire::{Call, Extensions, Region};
use alloc::rc::Rc;
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use core::net::SocketAddr;
use core::task::{Context, Poll};
use xen::{Errno, Port, Shared};
use xen::{Machine, Side, Signal};

/// After so many operations that did not have to wait, a task lets the others run.
const BURST: u32 = 32;

/// An active socket.
pub(super) struct Socket<M: Machine + 'static> {
    pub(super) device: Rc<Device<M>>,
    pub(super) name: u64,
    pub(super) at: Attachment,
    pub(super) signal: Arc<Signal>,
    pub(super) names: Cell<Names>,
    port: Port,
    /// None once the ring was closed.
    ring: RefCell<Option<Ends>>,
    /// After a RESIZE: the ring before, until the rest of `in` is read and the rest of `out` taken.
    former: RefCell<Option<Ends>>,
    /// Whether the backend is being asked to go over to another ring: nothing may be written meanwhile.
    resizing: Cell<bool>,
    /// Whether the ring is not the first one.
    resized: Cell<bool>,
    /// Whether nothing more may be written.
    finished: Cell<bool>,
    /// The sizes that were asked for: of `in`, of `out`.
    pub(super) sizes: Cell<[Option<u32>; 2]>,
    /// What every operation fails with from now on.
    failed: Cell<Option<Errno>>,
    /// Operations since the last pause.
    burst: Cell<u32>,
}

/// The addresses of a connection's two ends, where they are known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Names {
    pub(super) local: Option<SocketAddr>,
    pub(super) peer: Option<SocketAddr>,
}

/// A data ring with this side's ends of both directions.
struct Ends {
    pages: RingPages,
    consumer: Consumer,
    producer: Producer,
}

impl Ends {
    /// The ends of a ring that nobody has used yet.
    fn new(pages: RingPages) -> Self {
        let layout = pages.layout();
        let consumer = Consumer::new(layout.input, Guess::HalfFull);
        Ends { consumer, producer: Producer::new(layout.output), pages }
    }

    fn region(&self) -> Region<'_> {
        self.pages.region()
    }

    /// Whether everything was read and taken.
    fn is_empty(&mut self) -> bool {
        let region = self.pages.region();
        let read = self.consumer.data(region).is_ok_and(|data| len(&data) == 0);
        read && self.producer.unread(region) == Ok(0)
    }
}

impl<M: Machine> Socket<M> {
    pub(super) fn new(
        device: &Rc<Device<M>>,
        name: u64,
        at: Attachment,
        ring: Ring,
        names: Names,
    ) -> Rc<Self> {
        let Ring { pages, port, signal } = ring;
        let socket = Rc::new(Socket {
            device: device.clone(),
            name,
            at,
            signal,
            names: Cell::new(names),
            port,
            ring: RefCell::new(Some(Ends::new(pages))),
            former: RefCell::default(),
            resizing: Cell::new(false),
            resized: Cell::new(false),
            finished: Cell::new(false),
            sizes: Cell::default(),
            failed: Cell::new(None),
            burst: Cell::new(0),
        });
        device.enrol(name, &socket);
        socket
    }

    /// Makes a request about this socket: part of a job.
    pub(super) async fn call(&self, call: Call) -> Answer {
        self.device.call(self.at.session, self.name, call).await
    }

    /// [`Errno::EOPNOTSUPP`] where the ends have not agreed on an extension.
    pub(super) fn needs(&self, extension: Extensions) -> Result<(), Errno> {
        if self.at.protocol.has(extension) { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
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
    fn arm(&self, side: Side) {
        let ring = self.ring.borrow();
        let Some(ring) = ring.as_ref() else { return };
        match side {
            Side::Rx => ring.consumer.arm(ring.region()),
            // Half of the ring at once, rather than an event for every byte that is taken.
            Side::Tx => ring.producer.arm(ring.region(), ring.pages.layout().output.size / 2),
        }
    }

    /// Asks the backend for an event when it has taken everything.
    pub(super) fn arm_for_drain(&self) {
        if let Some(ring) = self.ring.borrow().as_ref() {
            ring.producer.arm(ring.region(), ring.pages.layout().output.size);
        }
    }

    fn try_take<R>(
        &self,
        take: &mut impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<Option<R>, Errno> {
        if let Some(value) = self.try_take_former(take)? {
            return Ok(Some(value));
        }
        let mut ring = self.ring.borrow_mut();
        let Ends { pages, consumer, .. } = ring.as_mut().ok_or_else(|| self.failure())?;
        let region = pages.region();
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
            self.device.memory.notify(self.port);
        }
        Ok(Some(value))
    }

    /// What the ring before a RESIZE has left comes first. Nobody fills that any more, so nobody is told.
    fn try_take_former<R>(
        &self,
        take: &mut impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<Option<R>, Errno> {
        let mut former = self.former.borrow_mut();
        let Some(Ends { pages, consumer, .. }) = former.as_mut() else { return Ok(None) };
        let region = pages.region();
        let data = consumer.data(region).map_err(|error| self.fail(error))?;
        let mut value = None;
        if len(&data) > 0 {
            let (count, taken) = take(data);
            self.device.counters.bytes_in.add(count);
            let _ = consumer.advance(region, count);
            value = Some(taken);
        }
        drop(former);
        self.leave_former();
        Ok(value)
    }

    /// Gives the ring before a RESIZE back, when both ends are through with it.
    fn leave_former(&self) {
        let mut former = self.former.borrow_mut();
        if former.as_mut().is_some_and(Ends::is_empty)
            && let Some(ends) = former.take()
        {
            self.device.memory.close_pages(ends.pages);
        }
    }

    fn try_put<R>(
        &self,
        put: &mut impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<Option<R>, Errno> {
        self.leave_former();
        let mut ring = self.ring.borrow_mut();
        let Ends { pages, producer, .. } = ring.as_mut().ok_or_else(|| self.failure())?;
        let region = pages.region();
        self.may_write(producer.error(region))?;
        if self.resizing.get() {
            return Ok(None);
        }
        let room = producer.room(region).map_err(|error| self.fail(error))?;
        if len(&room) == 0 {
            return Ok(None);
        }
        let (count, value) = put(room);
        self.device.counters.bytes_out.add(count);
        if producer.advance(region, count).is_due() {
            self.device.memory.notify(self.port);
        }
        Ok(Some(value))
    }

    fn may_write(&self, error: Option<Errno>) -> Result<(), Errno> {
        let finished = self.finished.get().then_some(Errno::EPIPE);
        self.failed.get().or(error).or(finished).map_or(Ok(()), Err)
    }

    /// Nothing more may be written from now on.
    pub(super) fn finish(&self) {
        self.finished.set(true);
        self.signal.raise();
    }

    /// Bytes that the backend has not taken yet: none when it never will.
    pub(super) fn unsent(&self) -> u32 {
        let ring = self.ring.borrow();
        let Some(ring) = ring.as_ref() else { return 0 };
        if self.failed.get().or_else(|| ring.producer.error(ring.region())).is_some() {
            return 0;
        }
        let former = self.former.borrow();
        let unread = |ends: &Ends| ends.producer.unread(ends.region()).unwrap_or(0);
        former.as_ref().map_or(0, unread) + unread(ring)
    }

    /// The error that a write would meet.
    pub(super) fn check_writable(&self) -> Result<(), Errno> {
        let ring = self.ring.borrow();
        let ring = ring.as_ref().ok_or_else(|| self.failure())?;
        self.may_write(ring.producer.error(ring.region()))
    }

    /// Whether the ring is still there.
    pub(super) fn is_open(&self) -> bool {
        self.ring.borrow().is_some()
    }

    /// Ends the socket: its ring is closed, all who wait learn why.
    pub(super) fn end(&self, error: Errno) {
        if let Some(ring) = self.take_ring(error) {
            self.device.memory.close_ring(ring);
        }
        self.signal.raise();
    }

    /// A place to keep the ring in as it is, if it may serve another connection.
    pub(super) fn berth(&self) -> Option<Berth> {
        let sound = self.failed.get().is_none() && !self.resized.get();
        if sound { self.device.memory.berth(&self.at) } else { None }
    }

    /// Ends the socket, whose ring the backend keeps for the next connection.
    pub(super) fn end_and_park(&self, berth: Berth) {
        let sound = self.failed.get().is_none();
        match self.take_ring(Errno::ENOTCONN) {
            Some(ring) if sound => self.device.memory.park(berth, &self.at, ring),
            Some(ring) => self.device.memory.close_ring(ring),
            None => {}
        }
        self.signal.raise();
    }

    fn take_ring(&self, error: Errno) -> Option<Ring> {
        if self.failed.get().is_none() {
            self.failed.set(Some(error));
        }
        if let Some(former) = self.former.take() {
            self.device.memory.close_pages(former.pages);
        }
        let Ends { pages, .. } = self.ring.take()?;
        self.device.strike_off(self.name);
        Some(Ring { pages, port: self.port, signal: self.signal.clone() })
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
