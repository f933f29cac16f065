//! What a guest's name for a socket stands for.

use super::Host;
use super::passive::Passive;
use crate::wire::Request;
use alloc::rc::Rc;
use core::cell::RefCell;
use core::task::{Context, Poll, Waker};

/// A socket, by what it has become.
pub(super) enum Socket<H: Host> {
    /// Made, and nothing yet.
    Fresh,
    /// Connected, or about to be, by its own task.
    Active(Rc<Release>),
    /// Bound, and perhaps listening.
    Passive(Rc<Passive<H>>),
    /// Being released.
    Leaving,
}

/// How a connection's task hears that it shall end.
#[derive(Default)]
pub(super) struct Release(RefCell<State>);

#[derive(Default)]
struct State {
    request: Option<Request>,
    waker: Option<Waker>,
}

impl Release {
    /// Hands over the request, which the task will answer.
    pub(super) fn ask(&self, request: Request) {
        let mut state = self.0.borrow_mut();
        state.request = Some(request);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The request, if it has come.
    pub(super) fn take(&self) -> Option<Request> {
        self.0.borrow_mut().request.take()
    }

    /// Waits for the request.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Request> {
        let mut state = self.0.borrow_mut();
        match state.request.take() {
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
