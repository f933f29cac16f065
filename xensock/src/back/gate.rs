//! Where a device's tasks wait while the guest has used up a limit by the second.

use super::account::Flow;
use super::engine::Engine;
use super::host::Host;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

/// The tasks that wait for one flow.
#[derive(Default)]
pub(super) struct Gate {
    waiting: RefCell<Vec<Waker>>,
    /// How often it was opened, plus one.
    round: Cell<u64>,
    /// How long until it is to be opened.
    wait: Cell<Option<Duration>>,
    opener: Cell<Option<Waker>>,
}

/// A task's place at a gate. It waits once, however often it is polled.
#[derive(Default)]
pub(super) struct Place {
    /// The round in which it waits, plus one.
    round: u64,
}

impl Gate {
    fn register(&self, cx: &Context<'_>, wait: Duration, place: &mut Place) {
        if place.round == self.round.get() + 1 {
            return;
        }
        place.round = self.round.get() + 1;
        self.waiting.borrow_mut().push(cx.waker().clone());
        self.wait.set(Some(wait));
        if let Some(opener) = self.opener.take() {
            opener.wake();
        }
    }

    fn open(&self) {
        self.round.set(self.round.get() + 1);
        // In the order in which they came, so those that get nothing are the first the next time.
        for waker in self.waiting.take() {
            waker.wake();
        }
    }
}

impl<H: Host> Engine<'_, H> {
    /// Waits until some of a flow is permitted, and returns how much.
    pub(super) fn poll_permitted(
        &self,
        cx: &mut Context<'_>,
        flow: Flow,
        place: &mut Place,
    ) -> Poll<usize> {
        match self.account.permitted(flow, || self.host.now()) {
            Ok(count) => Poll::Ready(count),
            Err(wait) => {
                self.gate(flow).register(cx, wait, place);
                Poll::Pending
            }
        }
    }

    /// Opens a gate each time that some of its flow may be left.
    pub(super) async fn keep_gate(&self, flow: Flow) {
        let gate = self.gate(flow);
        loop {
            let wait = poll_fn(|cx| match gate.wait.take() {
                Some(wait) => Poll::Ready(wait),
                None => {
                    gate.opener.set(Some(cx.waker().clone()));
                    Poll::Pending
                }
            });
            self.host.sleep(wait.await).await;
            // Those that registered meanwhile wait for this opening, too.
            gate.wait.set(None);
            gate.open();
        }
    }

    fn gate(&self, flow: Flow) -> &Gate {
        &self.gates[flow as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::task::noop_waker_ref;

    #[test]
    fn a_task_that_is_polled_often_waits_once() {
        let (gate, cx) = (Gate::default(), Context::from_waker(noop_waker_ref()));
        let (mut one, mut other) = (Place::default(), Place::default());
        for _ in 0..2 {
            for _ in 0..100 {
                gate.register(&cx, Duration::ZERO, &mut one);
                gate.register(&cx, Duration::ZERO, &mut other);
            }
            assert_eq!(gate.waiting.borrow().len(), 2);
            gate.open();
            assert!(gate.waiting.borrow().is_empty());
        }
    }
}
