//! The state that the handles and the driver of one connection share: requests, replies, watches.

use super::table::Table;
use super::wire;
use crate::Errno;
use crate::abi::xs_wire::*;
use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::task::{Context, Poll, Waker};

/// The most paths in the queue of one watch. If there are more, the watched path replaces them all,
/// so that events which are not fetched take bounded memory.
const WATCH_QUEUE: usize = 64;

/// One connection's state. Never borrowed across an await or a wake.
#[derive(Default, Debug)]
pub(super) struct Connection(pub(super) RefCell<State>);

#[derive(Default, Debug)]
pub(super) struct State {
    pub(super) unsent: VecDeque<Unsent>,
    pub(super) pending: Table<Pending>,
    pub(super) watches: Table<WatchQueue>,
    last_request: u32,
    last_token: u32,
    pub(super) driver: Option<Waker>,
    pub(super) failure: Option<Errno>,
    /// How often the connection was reset. Ends the drivers and transactions from before.
    pub(super) generation: u32,
    /// The number of open transactions.
    pub(super) transactions: u32,
    /// Whether only requests in transactions are sent.
    pub(super) quiesced: bool,
    /// The task that waits until nothing is under way.
    pub(super) quiet: Option<Waker>,
    /// The driver of this generation, woken when a reset ends it.
    pub(super) superseded: Option<Waker>,
}

/// A message to be written.
#[derive(Debug)]
pub(super) struct Unsent {
    pub(super) id: u32,
    pub(super) transaction: u32,
    message: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) kind: u32,
    pub(super) undo: Undo,
    pub(super) slot: Slot,
}

#[derive(Debug)]
pub(super) enum Slot {
    Waiting(Option<Waker>),
    Answered(Result<Vec<u8>, Errno>),
    Abandoned,
}

/// How to release what a request acquired, if its reply comes after it was dropped.
#[derive(Debug)]
pub(super) enum Undo {
    Nothing,
    Unwatch { path: String, token: u32 },
    EndTransaction,
}

#[derive(Debug)]
pub(super) struct WatchQueue {
    pub(super) path: String,
    /// Whether xenstored has accepted it.
    pub(super) registered: bool,
    fired: VecDeque<String>,
    waker: Option<Waker>,
}

impl State {
    /// Whether nothing is under way: every request that was sent has its reply.
    pub(super) fn is_quiet(&self) -> bool {
        let is_unsent = |id| self.unsent.iter().any(|unsent| unsent.id == id);
        let under_way = self.pending.iter().any(|(id, pending)| match pending.slot {
            // The requesting task is about to open the transaction.
            Slot::Answered(_) => pending.kind == XS_TRANSACTION_START,
            _ => !is_unsent(id),
        });
        self.transactions == 0 && !under_way
    }
}

impl Connection {
    /// Queues a request whose reply is discarded.
    pub(super) fn send_and_forget(&self, kind: u32, transaction: u32, parts: &[&[u8]]) {
        // It fails only if the connection has failed, and then xenstored has dropped everything.
        let _ = self.queue(kind, transaction, Undo::Nothing, Slot::Abandoned, parts);
    }

    pub(super) fn queue(
        &self,
        kind: u32,
        transaction: u32,
        undo: Undo,
        slot: Slot,
        parts: &[&[u8]],
    ) -> Result<u32, Errno> {
        let mut state = self.0.borrow_mut();
        if let Some(failure) = state.failure {
            return Err(failure);
        }
        // Ids wrap. The id of a pending request is not used again; zero is that of events.
        let mut id = state.last_request.wrapping_add(1);
        while id == 0 || state.pending.contains(id) {
            id = id.wrapping_add(1);
        }
        let message = wire::encode(kind, id, transaction, parts)?;
        state.last_request = id;
        state.pending.insert(id, Pending { kind, undo, slot });
        state.unsent.push_back(Unsent { id, transaction, message });
        let driver = state.driver.take();
        drop(state);
        wake(driver);
        Ok(id)
    }

    /// Waits for the next message to write.
    pub(super) fn poll_unsent(&self, cx: &mut Context<'_>) -> Poll<Vec<u8>> {
        let mut state = self.0.borrow_mut();
        let quiesced = state.quiesced;
        let next = state.unsent.iter().position(|unsent| !quiesced || unsent.transaction != 0);
        match next.and_then(|next| state.unsent.remove(next)) {
            Some(unsent) => Poll::Ready(unsent.message),
            None => {
                state.driver = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Whether the queue of messages is empty.
    pub(super) fn is_sent(&self) -> bool {
        self.0.borrow().unsent.is_empty()
    }

    /// Handles a message from xenstored.
    pub(super) fn receive(&self, header: wire::Header, payload: Vec<u8>) {
        if header.kind == XS_WATCH_EVENT {
            self.fire(&payload)
        } else {
            self.answer(header, payload)
        }
    }

    fn answer(&self, header: wire::Header, payload: Vec<u8>) {
        let mut state = self.0.borrow_mut();
        let Some(pending) = state.pending.get_mut(header.request) else {
            log::warn!(
                "xenstored replied to request {}, which was not made: type {}, {} bytes",
                header.request,
                header.kind,
                header.len
            );
            return;
        };
        let answer = match header.kind {
            XS_ERROR => Err(error_named(&payload)),
            kind if kind == pending.kind => Ok(payload),
            kind => {
                log::warn!(
                    "xenstored replied to a request of type {} with type {kind}",
                    pending.kind
                );
                Err(Errno::EPROTO)
            }
        };
        let registered = match (&pending.undo, &answer) {
            (Undo::Unwatch { token, .. }, Ok(_)) => Some(*token),
            _ => None,
        };
        if matches!(pending.slot, Slot::Waiting(_)) {
            let slot = core::mem::replace(&mut pending.slot, Slot::Answered(answer));
            // Recorded now: the requesting task may be polled much later.
            if let Some(watch) = registered.and_then(|token| state.watches.get_mut(token)) {
                watch.registered = true;
            }
            drop(state);
            if let Slot::Waiting(waker) = slot {
                wake(waker);
            }
        } else if matches!(pending.slot, Slot::Abandoned) {
            let pending = state.pending.remove(header.request);
            drop(state);
            match (pending, answer) {
                (Some(pending), Ok(payload)) => self.undo(pending.undo, &payload),
                (Some(Pending { kind: XS_WATCH, .. }), Err(error)) => {
                    log::warn!("xenstored refuses to register a watch again: {error}");
                }
                _ => {}
            }
        } else {
            // A second reply to the same request is ignored.
            return;
        }
        self.wake_if_quiet();
    }

    /// Wakes the task that waits until nothing is under way, if that is so.
    pub(super) fn wake_if_quiet(&self) {
        let mut state = self.0.borrow_mut();
        if state.quiet.is_some() && state.is_quiet() {
            let waker = state.quiet.take();
            drop(state);
            wake(waker);
        }
    }

    /// Releases what a discarded reply acquired.
    pub(super) fn undo(&self, undo: Undo, payload: &[u8]) {
        match undo {
            Undo::Nothing => {}
            Undo::Unwatch { path, token } => self.send_watch(XS_UNWATCH, &path, token),
            Undo::EndTransaction => {
                if let Ok(id) = transaction_id(payload) {
                    self.send_and_forget(XS_TRANSACTION_END, id, &[b"F\0"]);
                }
            }
        }
    }

    fn fire(&self, payload: &[u8]) {
        let mut strings = wire::strings(payload).map(core::str::from_utf8);
        let (Some(Ok(path)), Some(Ok(token))) = (strings.next(), strings.next()) else {
            log::warn!("xenstored sent a watch event without a path or a token; it is ignored");
            return;
        };
        let mut state = self.0.borrow_mut();
        // The watch may just have been dropped.
        let Some(watch) = token.parse().ok().and_then(|token: u32| state.watches.get_mut(token))
        else {
            return;
        };
        if !watch.fired.iter().any(|queued| queued == path) {
            if watch.fired.len() == WATCH_QUEUE {
                watch.fired.clear();
                watch.fired.push_back(watch.path.clone());
            } else {
                watch.fired.push_back(path.to_string());
            }
        }
        let waker = watch.waker.take();
        drop(state);
        wake(waker);
    }

    /// Creates the queue of a watch's events, and returns its token.
    pub(super) fn open_watch(&self, path: &str) -> u32 {
        let mut state = self.0.borrow_mut();
        let mut token = state.last_token.wrapping_add(1);
        while state.watches.contains(token) {
            token = token.wrapping_add(1);
        }
        state.last_token = token;
        let (path, fired) = (path.to_string(), VecDeque::new());
        let queue = WatchQueue { path, registered: false, fired, waker: None };
        state.watches.insert(token, queue);
        token
    }

    /// Drops a watch's queue.
    pub(super) fn close_watch(&self, token: u32) {
        self.0.borrow_mut().watches.remove(token);
    }

    /// Sends an `XS_WATCH` or an `XS_UNWATCH`, and discards the reply.
    pub(super) fn send_watch(&self, kind: u32, path: &str, token: u32) {
        let token = token.to_string();
        self.send_and_forget(kind, 0, &[path.as_bytes(), &[0], token.as_bytes(), &[0]]);
    }

    /// The next path that fired a watch.
    pub(super) fn poll_watch(&self, token: u32, cx: &mut Context<'_>) -> Poll<String> {
        let mut state = self.0.borrow_mut();
        let Some(watch) = state.watches.get_mut(token) else { return Poll::Pending };
        match watch.fired.pop_front() {
            Some(path) => Poll::Ready(path),
            None => {
                watch.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Fails all pending and all later requests, unless the connection was reset since.
    pub(super) fn fail(&self, generation: u32, error: Errno) {
        let mut state = self.0.borrow_mut();
        if state.generation != generation {
            return;
        }
        state.failure.get_or_insert(error);
        state.unsent.clear();
        let mut wakers = Vec::new();
        state.pending.retain(|_, pending| {
            if let Slot::Waiting(waker) = &mut pending.slot {
                wakers.extend(waker.take());
                pending.slot = Slot::Answered(Err(error));
            }
            !matches!(pending.slot, Slot::Abandoned)
        });
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn error_named(payload: &[u8]) -> Errno {
    let name = wire::text(payload).unwrap_or_default();
    Errno::from_name(&name).unwrap_or_else(|| {
        log::warn!("xenstored replied with the unknown error {name:?}");
        Errno::EIO
    })
}

/// Decodes the reply to `XS_TRANSACTION_START`.
pub(super) fn transaction_id(payload: &[u8]) -> Result<u32, Errno> {
    let id = wire::text(payload)?.parse().map_err(|_| Errno::EPROTO)?;
    // Zero means no transaction.
    if id == 0 { Err(Errno::EPROTO) } else { Ok(id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_pending_request_is_not_used_again() {
        let connection = Connection::default();
        connection.0.borrow_mut().last_request = u32::MAX - 1;
        let ask = || connection.queue(XS_READ, 0, Undo::Nothing, Slot::Waiting(None), &[b"a\0"]);
        assert_eq!(ask(), Ok(u32::MAX));
        assert_eq!(ask(), Ok(1), "zero is the id of events");
        connection.0.borrow_mut().last_request = u32::MAX - 1;
        assert_eq!(ask(), Ok(2));
    }
}
