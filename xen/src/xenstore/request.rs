//! A request that waits for its reply.

use super::connection::{Connection, Slot, Undo};
use crate::Errno;
use crate::abi::xs_wire::XS_TRANSACTION_END;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::pin::Pin;
use core::task::{Context, Poll};

/// The future of one reply. If it is dropped early, its request is withdrawn if it was not sent
/// yet; otherwise the reply is discarded.
pub(super) struct Request {
    connection: Rc<Connection>,
    id: u32,
}

impl Connection {
    /// Queues a request, and returns the future of its reply's payload.
    pub(super) fn request(
        self: &Rc<Self>,
        kind: u32,
        transaction: u32,
        undo: Undo,
        parts: &[&[u8]],
    ) -> Result<Request, Errno> {
        let id = self.queue(kind, transaction, undo, Slot::Waiting(None), parts)?;
        Ok(Request { connection: self.clone(), id })
    }
}

impl Future for Request {
    type Output = Result<Vec<u8>, Errno>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.connection.0.borrow_mut();
        match state.pending.get_mut(self.id).map(|pending| &mut pending.slot) {
            Some(Slot::Waiting(waker)) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Slot::Answered(answer)) => {
                let answer = core::mem::replace(answer, Err(Errno::EINVAL));
                state.pending.remove(self.id);
                Poll::Ready(answer)
            }
            _ => Poll::Ready(Err(Errno::EINVAL)),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = self.connection.0.borrow_mut();
        let Some(pending) = state.pending.get_mut(self.id) else { return };
        if let Slot::Answered(answer) = &mut pending.slot {
            // The reply arrived, but was not fetched.
            let answer = core::mem::replace(answer, Err(Errno::EINVAL));
            let pending = state.pending.remove(self.id);
            drop(state);
            if let (Ok(payload), Some(pending)) = (answer, pending) {
                self.connection.undo(pending.undo, &payload);
            }
            return;
        }
        // The end of a transaction is sent even if the reply is not awaited.
        let unsent = state.unsent.iter().position(|unsent| unsent.id == self.id);
        match (unsent, state.pending.get_mut(self.id)) {
            (Some(at), Some(pending)) if pending.kind != XS_TRANSACTION_END => {
                state.unsent.remove(at);
                state.pending.remove(self.id);
            }
            (_, Some(pending)) => pending.slot = Slot::Abandoned,
            _ => {}
        }
    }
}
