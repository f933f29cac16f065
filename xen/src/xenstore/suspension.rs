//! Quiesces a connection while the domain is saved, and resets it in the restored one.
//!
//! The restored domain's xenstored does not know the former one's requests. So watches are
//! registered again, open transactions end, and unsent requests are sent to the new xenstored.

use super::connection::{Connection, Slot, State, wake};
use crate::Errno;
use crate::abi::xs_wire::{XS_TRANSACTION_END, XS_TRANSACTION_START, XS_WATCH};
use alloc::vec::Vec;
use core::task::{Context, Poll, Waker};

impl Connection {
    /// From now on, sends only requests of open transactions.
    pub(super) fn quiesce(&self) {
        self.0.borrow_mut().quiesced = true;
    }

    /// Waits until nothing is under way.
    pub(super) fn poll_quiet(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.borrow_mut();
        if state.is_quiet() {
            return Poll::Ready(());
        }
        state.quiet = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Sends all requests again.
    pub(super) fn release(&self) {
        let mut state = self.0.borrow_mut();
        state.quiesced = false;
        let driver = state.driver.take();
        drop(state);
        wake(driver);
    }

    /// Resets the connection for a new xenstored, and returns its generation. Pending requests
    /// fail, unsent ones are kept, watches are registered again.
    pub(super) fn reset(&self) -> u32 {
        let mut state = self.0.borrow_mut();
        let State { unsent, pending, .. } = &mut *state;
        let mut wakers = Vec::new();
        // The transactions have ended.
        unsent.retain(|unsent| unsent.transaction == 0);
        pending.retain(|id, pending| {
            if unsent.iter().any(|unsent| unsent.id == id) {
                return true;
            }
            // Callers retry a transaction after `EAGAIN`.
            let of_transaction = matches!(pending.kind, XS_TRANSACTION_START | XS_TRANSACTION_END);
            let error = if of_transaction { Errno::EAGAIN } else { Errno::ECONNRESET };
            match &mut pending.slot {
                Slot::Waiting(waker) => {
                    wakers.extend(waker.take());
                    pending.slot = Slot::Answered(Err(error));
                }
                Slot::Answered(answer) if pending.kind == XS_TRANSACTION_START => {
                    *answer = Err(error);
                }
                _ => {}
            }
            !matches!(pending.slot, Slot::Abandoned)
        });
        state.generation = state.generation.wrapping_add(1);
        state.transactions = 0;
        state.failure = None;
        let (generation, superseded) = (state.generation, state.superseded.take());
        let registered = state.watches.iter().filter(|(_, watch)| watch.registered);
        let watches: Vec<_> =
            registered.map(|(token, watch)| (token, watch.path.clone())).collect();
        let waiting = state.unsent.len();
        drop(state);
        for (token, path) in watches {
            self.send_watch(XS_WATCH, &path, token);
        }
        // Watches go first: a task that reads a node after this must see later changes.
        self.0.borrow_mut().unsent.rotate_left(waiting);
        wake(superseded);
        wakers.into_iter().for_each(Waker::wake);
        generation
    }

    /// Waits until the connection is reset.
    pub(super) fn poll_superseded(&self, generation: u32, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.borrow_mut();
        if state.generation != generation {
            return Poll::Ready(());
        }
        state.superseded = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether a transaction of this generation can be committed.
    pub(super) fn is_current(&self, generation: u32) -> bool {
        self.0.borrow().generation == generation
    }

    /// Counts a new transaction, and returns its generation.
    pub(super) fn begin_transaction(&self) -> u32 {
        let mut state = self.0.borrow_mut();
        state.transactions += 1;
        state.generation
    }

    /// Counts the end of a transaction, or that its end was queued.
    pub(super) fn end_transaction(&self, generation: u32) {
        let mut state = self.0.borrow_mut();
        if state.generation == generation {
            state.transactions -= 1;
            drop(state);
            self.wake_if_quiet();
        }
    }
}
