//! How an event on a channel reaches the tasks that wait for it.

use atomic_waker::AtomicWaker;
use core::future::poll_fn;
use core::task::{Poll, Waker};

/// Which of a channel's two waiters: a data ring has one task that reads and one that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The task that waits for data (or for responses, or for requests).
    Rx,
    /// The task that waits for room.
    Tx,
}

/// The wakers of one event channel.
///
/// Whoever owns the channel calls [`raise`](Signal::raise) for each event. A waiter first registers,
/// then looks at the ring, then sleeps: an event between the look and the sleep finds the waker. So
/// the ring is the only truth, an event carries no data, and one too many is harmless.
#[derive(Debug, Default)]
pub struct Signal {
    rx: AtomicWaker,
    tx: AtomicWaker,
}

impl Signal {
    /// A signal that nobody waits for.
    pub const fn new() -> Self {
        Signal { rx: AtomicWaker::new(), tx: AtomicWaker::new() }
    }

    /// Asks to be woken by the next event, in place of the side's former waker.
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
