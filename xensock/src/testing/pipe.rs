//! One direction of a connection of the fake network: a bounded buffer.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};
use xen::Errno;

/// Bytes in flight, with one writer and one reader.
pub(super) struct Pipe {
    bytes: RefCell<Bytes>,
    end: Cell<End>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

struct Bytes {
    ring: Box<[u8]>,
    start: usize,
    len: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// The writer has closed.
    Finished,
    /// The reader has closed.
    Unread,
    /// The connection was reset.
    Reset,
}

impl Pipe {
    pub(super) fn new(capacity: usize) -> Pipe {
        let ring = vec![0; capacity].into_boxed_slice();
        Pipe {
            bytes: RefCell::new(Bytes { ring, start: 0, len: 0 }),
            end: Cell::new(End::Open),
            reader: RefCell::default(),
            writer: RefCell::default(),
        }
    }

    /// Passes some bytes to `take`, which returns how many it took. 0 at the end.
    pub(super) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<Result<usize, Errno>> {
        if self.end.get() == End::Reset {
            return Poll::Ready(Err(Errno::ECONNRESET));
        }
        let mut bytes = self.bytes.borrow_mut();
        if bytes.len == 0 {
            if self.end.get() == End::Finished {
                return Poll::Ready(Ok(0));
            }
            *self.reader.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let end = (bytes.start + bytes.len).min(bytes.ring.len());
        let count = take(&bytes.ring[bytes.start..end]);
        bytes.start = (bytes.start + count) % bytes.ring.len();
        bytes.len -= count;
        drop(bytes);
        wake(&self.writer);
        Poll::Ready(Ok(count))
    }

    /// Passes some room to `put`, which returns how much it filled.
    pub(super) fn poll_put(
        &self,
        cx: &mut Context<'_>,
        put: impl FnOnce(&mut [u8]) -> usize,
    ) -> Poll<Result<usize, Errno>> {
        match self.end.get() {
            End::Open => {}
            End::Finished => return Poll::Ready(Err(Errno::EPIPE)),
            End::Unread => return Poll::Ready(Err(Errno::EPIPE)),
            End::Reset => return Poll::Ready(Err(Errno::ECONNRESET)),
        }
        let mut bytes = self.bytes.borrow_mut();
        let capacity = bytes.ring.len();
        if bytes.len == capacity {
            *self.writer.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let start = (bytes.start + bytes.len) % capacity;
        let end = if start < bytes.start { bytes.start } else { capacity };
        let count = put(&mut bytes.ring[start..end]);
        bytes.len += count;
        drop(bytes);
        wake(&self.reader);
        Poll::Ready(Ok(count))
    }

    /// Closes the writing end.
    pub(super) fn finish(&self) {
        self.set_end(End::Finished);
    }

    /// Closes the reading end.
    pub(super) fn abandon(&self) {
        if self.end.get() != End::Finished {
            self.set_end(End::Unread);
        }
    }

    /// Resets the connection.
    pub(super) fn reset(&self) {
        self.end.set(End::Reset);
        wake(&self.reader);
        wake(&self.writer);
    }

    fn set_end(&self, end: End) {
        if self.end.get() == End::Open {
            self.end.set(end);
        }
        wake(&self.reader);
        wake(&self.writer);
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    let waker = waker.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
}
