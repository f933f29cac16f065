//! A ring's end that sleeps, and the events that wake it.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use xen::frontend::Notify;
use xen::testing::model::loom::sync::atomic::{AtomicBool, fence};
use xen::testing::model::loom::sync::{Condvar, Mutex};

/// A waker that an event takes, and the sleep that it ends.
///
/// As in [`Signal`](xen::Signal), an event without a waker is lost. Sending an event is a
/// hypercall, which orders the sender's earlier writes. The waker itself orders nothing here, which
/// is less than in reality.
pub struct Sleeper {
    registered: AtomicBool,
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Sleeper {
    pub fn new() -> Sleeper {
        Sleeper {
            registered: AtomicBool::new(false),
            woken: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// Asks to be woken.
    pub fn register(&self) {
        // Loom loses the order of a store among read-modify-writes.
        self.registered.swap(true, Relaxed);
    }

    /// Sends an event, if one is due.
    pub fn notify(&self, notify: Notify) {
        if !notify.is_due() {
            return;
        }
        fence(SeqCst);
        if self.registered.swap(false, Relaxed) {
            *self.woken.lock().unwrap() = true;
            self.changed.notify_one();
        }
    }

    /// Sleeps until woken.
    pub fn sleep(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.changed.wait(woken).unwrap();
        }
        *woken = false;
    }

    /// Looks, and sleeps when there is nothing to see: as `xensock` does.
    pub fn until<E, T>(
        &self,
        end: &mut E,
        look: impl Fn(&mut E) -> Option<T>,
        arm: impl Fn(&E),
    ) -> T {
        loop {
            if let Some(seen) = look(end) {
                return seen;
            }
            self.register();
            arm(end);
            if let Some(seen) = look(end) {
                return seen;
            }
            self.sleep();
        }
    }
}
