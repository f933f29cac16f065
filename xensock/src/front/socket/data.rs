//! The data path of a socket. Its users copy from and to the data ring; there is no other copy.

use super::super::rings::Ends;
use super::Socket;
use crate::ring::len;
use crate::wire::Layout;
use alloc::rc::Rc;
use core::sync::atomic::Ordering;
use core::task::{Context, Poll};
use xen::{Errno, Machine, Shared, Side};

/// After so many operations without waiting, a task lets other tasks run.
const BURST: u32 = 32;

impl<M: Machine> Socket<M> {
    /// Waits for data. `take` gets the data, which is empty at the end of the stream, and returns
    /// how many bytes it took.
    pub(in super::super) fn poll_take<R>(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        mut take: impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Poll<Result<R, Errno>> {
        self.poll(cx, Side::Rx, 0, || self.try_take(&mut take))
    }

    /// Waits for room for `least` bytes. `put` gets the room and returns how many bytes it wrote.
    pub(in super::super) fn poll_put<R>(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        least: u32,
        mut put: impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Poll<Result<R, Errno>> {
        self.poll(cx, Side::Tx, least, || self.try_put(least, &mut put))
    }

    /// Waits until `attempt` returns a value or an error. It may need room for `room` bytes.
    fn poll<R>(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        side: Side,
        room: u32,
        mut attempt: impl FnMut() -> Result<Option<R>, Errno>,
    ) -> Poll<Result<R, Errno>> {
        // A peer that is always ready must not keep other tasks from running.
        if self.burst.get() >= BURST {
            self.burst.set(0);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut result = attempt().transpose();
        if result.is_none() {
            self.burst.set(0);
            self.signal.register(side, cx.waker());
            // An event before the registration has woken nobody; the second attempt sees its cause.
            self.arm(side, room);
            result = attempt().transpose();
        }
        if self.load.is_high(side) {
            self.grow();
        }
        match result {
            Some(result) => {
                self.burst.set(self.burst.get() + 1);
                Poll::Ready(result)
            }
            None => Poll::Pending,
        }
    }

    /// Asks the backend for an event when this side can continue.
    fn arm(&self, side: Side, room: u32) {
        let ring = self.ring.borrow();
        let Some(ring) = ring.as_ref() else { return };
        match side {
            Side::Rx => ring.consumer.arm(ring.region()),
            // One event for most of the ring, not one per read of the backend. Meanwhile, what the
            // backend has taken keeps the network busy.
            Side::Tx => {
                let most = ring.pages.layout.output.size / 4 * 3;
                ring.producer.arm(ring.region(), most.max(room));
            }
        }
    }

    /// Asks the backend for an event when it has taken everything.
    pub(super) fn arm_for_drain(&self) {
        if let Some(ring) = self.ring.borrow().as_ref() {
            ring.producer.arm(ring.region(), ring.pages.layout.output.size);
        }
    }

    /// Takes what is there, or returns `None` if nothing is.
    pub(in super::super) fn try_take<R>(
        &self,
        take: &mut impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<Option<R>, Errno> {
        if let Some(value) = self.try_take_former(take)? {
            return Ok(Some(value));
        }
        let mut ring = self.ring.borrow_mut();
        let Ends { pages, consumer, .. } = ring.as_mut().ok_or_else(|| self.failure())?;
        let region = pages.region();
        // The error is read before the index: all data that precedes the error is returned first.
        let error = consumer.error(region);
        let data = consumer.data(region).map_err(|error| self.fail(error))?;
        if len(&data) == 0 {
            match error {
                None => return self.failed.get().map_or(Ok(None), Err),
                Some(Errno::ENOTCONN) => {}
                Some(error) => return Err(error),
            }
        }
        let size = pages.layout.input.size;
        if len(&data) >= size as usize / 2 && error.is_none() {
            self.load.observe(Side::Rx, size);
        }
        let (count, value) = take(data);
        self.count(Side::Rx, count);
        if consumer.advance(region, count).is_due() {
            self.core.link.notify(self.port);
        }
        Ok(Some(value))
    }

    /// Takes what is left in the ring before a RESIZE. The backend no longer fills that ring, so it
    /// needs no event.
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
            self.count(Side::Rx, count);
            let _ = consumer.advance(region, count);
            value = Some(taken);
        }
        drop(former);
        self.leave_former();
        Ok(value)
    }

    /// Closes the ring before a RESIZE once both ends have emptied it.
    pub(super) fn leave_former(&self) {
        let mut former = self.former.borrow_mut();
        if former.as_mut().is_some_and(Ends::is_empty)
            && let Some(ends) = former.take()
        {
            self.core.rings.close_pages(ends.pages);
            self.core.rings.changed.wake_all();
        }
    }

    fn try_put<R>(
        &self,
        least: u32,
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
        if len(&room) < least as usize {
            self.load.observe(Side::Tx, pages.layout.output.size);
            return Ok(None);
        }
        let (count, value) = put(room);
        self.count(Side::Tx, count);
        if producer.advance(region, count).is_due() {
            self.core.link.notify(self.port);
        }
        Ok(Some(value))
    }

    /// Counts bytes that the app took or put.
    fn count(&self, side: Side, count: usize) {
        self.load.add(side, count);
        let mut statistics = self.core.statistics.borrow_mut();
        match side {
            Side::Rx => statistics.bytes_in += count as u64,
            Side::Tx => statistics.bytes_out += count as u64,
        }
    }

    fn may_write(&self, error: Option<Errno>) -> Result<(), Errno> {
        let shut_down = self.write_shutdown.get().then_some(Errno::EPIPE);
        self.failed.get().or(error).or(shut_down).map_or(Ok(()), Err)
    }

    /// Refuses all further writes.
    pub(in super::super) fn shut_down_writing(&self) {
        self.write_shutdown.set(true);
        self.signal.raise();
    }

    /// The bytes that the backend has not taken yet, or 0 if it will not take any more.
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

    /// Whether the socket has neither ended nor failed.
    pub(in super::super) fn is_usable(&self) -> bool {
        self.failed.get().is_none() && self.is_open()
    }

    /// The layout of the ring, while it is open.
    pub(in super::super) fn layout(&self) -> Option<Layout> {
        self.ring.borrow().as_ref().map(|ring| ring.pages.layout)
    }

    /// A word of the indexes page, 0 if the ring is closed.
    pub(in super::super) fn word(&self, offset: impl FnOnce(&Layout) -> usize) -> u32 {
        let ring = self.ring.borrow();
        let load = |ring: &Ends| {
            ring.region().indexes.load_u32(offset(&ring.pages.layout), Ordering::Relaxed)
        };
        ring.as_ref().map_or(0, load)
    }

    /// The error that a write would return now.
    pub(in super::super) fn check_writable(&self) -> Result<(), Errno> {
        let ring = self.ring.borrow();
        let ring = ring.as_ref().ok_or_else(|| self.failure())?;
        self.may_write(ring.producer.error(ring.region()))
    }

    /// Ends the socket after a violation of the protocol.
    pub(in super::super) fn fail(&self, error: Errno) -> Errno {
        if self.failed.get().is_none() {
            log::error!("socket {}: the backend's ring is malformed: {error}", self.id);
            self.failed.set(Some(error));
        }
        self.failure()
    }

    pub(in super::super) fn failure(&self) -> Errno {
        self.failed.get().unwrap_or(Errno::ENOTCONN)
    }
}
