//! Wakes the tasks that wait for a channel's events.

use atomic_waker::AtomicWaker;
use core::future::poll_fn;
use core::task::{Poll, Waker};

/// One of a channel's two waiters: a data ring has one task that reads and one that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The task that waits for data (or for responses, or for requests).
    Rx,
    /// The task that waits for room to write.
    Tx,
}

/// The wakers of one event channel.
///
/// The owner of the channel calls [`raise`](Signal::raise) for each event. A waiter first
/// registers, then looks at the ring, then sleeps: an event between the look and the sleep wakes
/// it. An event carries no data, so a spurious one is harmless.
///
/// ```
/// # use std::{pin::pin, sync::Arc, cell::Cell};
/// # use futures_util::FutureExt;
/// use xen::{Side, Signal};
///
/// let (signal, ring) = (Signal::new(), Cell::new(None));
/// let mut byte = pin!(signal.until(Side::Rx, || ring.take()));
/// assert_eq!(byte.as_mut().now_or_never(), None);
/// ring.set(Some(7));
/// signal.raise();
/// assert_eq!(byte.now_or_never(), Some(7));
/// ```
#[derive(Debug, Default)]
pub struct Signal {
    rx: AtomicWaker,
    tx: AtomicWaker,
}

impl Signal {
    /// A signal without waiters.
    pub const fn new() -> Self {
        Signal { rx: AtomicWaker::new(), tx: AtomicWaker::new() }
    }

    /// Registers a waker for the next event. It replaces the side's former waker.
    pub fn register(&self, side: Side, waker: &Waker) {
        self.side(side).register(waker);
    }

    /// Wakes both sides.
    pub fn raise(&self) {
        self.rx.wake();
        self.tx.wake();
    }

    /// Waits until `attempt` gives a value. It is called at once, and after each event.
    pub async fn until<T>(&self, side: Side, mut attempt: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| {
            self.register(side, cx.waker());
            attempt().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn side(&self, side: Side) -> &AtomicWaker {
        match side {
            Side::Rx => &self.rx,
            Side::Tx => &self.tx,
        }
    }
}

impl crate::event::EventHandler for Signal {
    fn raise(&self) {
        Signal::raise(self);
    }
}
