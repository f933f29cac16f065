//! Holding a connection still while the domain is saved, and making it anew in the restored one.
//!
//! The xenstored of the restored domain knows nothing of what the former one was asked: watches are
//! registered again here, open transactions are over, and what was asked meanwhile is asked there.

use super::connection::{Connection, Slot, State, Undo, wake};
use crate::Errno;
use crate::abi::xs_wire::{XS_TRANSACTION_END, XS_TRANSACTION_START, XS_WATCH};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::task::{Context, Poll};

impl Connection {
    /// Sends only what belongs to open transactions from now on.
    pub(super) fn quiesce(&self) {
        self.0.borrow_mut().quiesced = true;
    }

    /// Ready when nothing is under way.
    pub(super) fn poll_quiet(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.borrow_mut();
        if state.is_quiet() {
            return Poll::Ready(());
        }
        state.quiet = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Sends again.
    pub(super) fn release(&self) {
        let mut state = self.0.borrow_mut();
        state.quiesced = false;
        let driver = state.driver.take();
        drop(state);
        wake(driver);
    }

    /// Begins anew with a xenstored that knows nothing; the number of the new connection. What was under
    /// way fails, what was not sent yet is kept, watches are registered again.
    pub(super) fn reset(&self) -> u32 {
        let mut state = self.0.borrow_mut();
        let State { unsent, pending, .. } = &mut *state;
        let mut wakers = Vec::new();
        // Their transactions are over.
        unsent.retain(|unsent| unsent.transaction == 0);
        pending.retain(|id, pending| {
            if unsent.iter().any(|unsent| unsent.id == *id) {
                return true;
            }
            // Transactions may start again, like all that are disturbed.
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
            registered.map(|(token, watch)| (token.to_string(), watch.path.clone())).collect();
        let waiting = state.unsent.len();
        drop(state);
        for (token, path) in watches {
            let parts: [&[u8]; 4] = [path.as_bytes(), &[0], token.as_bytes(), &[0]];
            // It fitted into a message before.
            let _ = self.queue(XS_WATCH, 0, Undo::Nothing, Slot::Abandoned, &parts);
        }
        // They come first: whoever reads a node after this must hear of its changes.
        self.0.borrow_mut().unsent.rotate_left(waiting);
        wake(superseded);
        wakers.into_iter().for_each(core::task::Waker::wake);
        generation
    }

    /// Ready when another connection took the place of this one.
    pub(super) fn poll_superseded(&self, generation: u32, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.borrow_mut();
        if state.generation != generation {
            return Poll::Ready(());
        }
        state.superseded = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether a transaction of this generation can still be committed.
    pub(super) fn is_current(&self, generation: u32) -> bool {
        self.0.borrow().generation == generation
    }

    /// A transaction has begun; its generation.
    pub(super) fn begin_transaction(&self) -> u32 {
        let mut state = self.0.borrow_mut();
        state.transactions += 1;
        state.generation
    }

    /// A transaction has ended, or its end is on its way.
    pub(super) fn end_transaction(&self, generation: u32) {
        let mut state = self.0.borrow_mut();
        if state.generation == generation {
            state.transactions -= 1;
            drop(state);
            self.look_for_quiet();
        }
    }
}
