//! What a guest's name for a socket stands for.

use super::Host;
use super::passive::Passive;
use crate::wire::{Call, Family, Options, Request};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::RefCell;
use core::task::{Context, Poll, Waker};

/// A socket, by what it has become.
pub(super) enum Socket<H: Host> {
    /// Made, and nothing yet.
    Fresh(Plan),
    /// Connected, or about to be, by its own task.
    Active(Rc<Control>),
    /// Bound, and perhaps listening.
    Passive(Rc<Passive<H>>),
    /// Being released.
    Leaving,
}

/// What is known of a socket before it exists outside of the engine.
#[derive(Clone, Copy, Default)]
pub(super) struct Plan {
    /// The kind of its addresses, where the dialect says it before the first address.
    pub(super) family: Option<Family>,
    /// Its options.
    pub(super) options: Options,
}

/// How a connection's task gets the requests about its socket.
#[derive(Default)]
pub(super) struct Control(RefCell<State>);

#[derive(Default)]
struct State {
    /// Each has a slot of the command ring, so there are few.
    requests: VecDeque<Request>,
    /// Whether the connection is there: before that, only a RELEASE has a meaning.
    open: bool,
    waker: Option<Waker>,
}

impl Control {
    /// Hands over a request, which the task will answer.
    pub(super) fn ask(&self, request: Request) {
        let mut state = self.0.borrow_mut();
        state.requests.push_back(request);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// From now on the task takes all requests.
    pub(super) fn open(&self) {
        self.0.borrow_mut().open = true;
    }

    /// Whether the task takes all requests.
    pub(super) fn is_open(&self) -> bool {
        self.0.borrow().open
    }

    /// The RELEASE, if it has come.
    pub(super) fn take_release(&self) -> Option<Request> {
        let mut state = self.0.borrow_mut();
        let at = state.requests.iter().position(|r| matches!(r.call, Call::Release { .. }))?;
        state.requests.remove(at)
    }

    /// Waits for the next request.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Request> {
        let mut state = self.0.borrow_mut();
        match state.requests.pop_front() {
            Some(request) => Poll::Ready(request),
            None => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}
