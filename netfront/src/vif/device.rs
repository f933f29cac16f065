//! What the interface and its driver share.

use super::Config;
use super::counters::Counters;
use super::pages::Grants;
use super::queue::Queue;
use super::ring::Violation;
use super::session::{self, Terms};
use crate::Link;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::time::Duration;
use embassy_time::Timer;
use smoltcp::wire::EthernetAddress;
use xen::frontend::{self, Meeting, SessionEnd};
use xen::{Errno, Machine, Signal, WaitList};

/// The most bytes that a frame has, whichever way it goes.
pub(super) const LONGEST: usize = 0xffff;

/// The shared state.
pub(super) struct Device<M: Machine> {
    pub(super) config: Config,
    /// The device's folder in xenstore, for messages.
    pub(super) path: alloc::string::String,
    pub(super) grants: Grants<M>,
    pub(super) counters: Counters,
    pub(super) address: Cell<EthernetAddress>,
    state: RefCell<State>,
    /// Raised by the backend's events, and when the link changes: the stack waits for it.
    pub(super) signal: Arc<Signal>,
    generation: Cell<u32>,
    carrier: Cell<bool>,
    /// The terms of the present session, or of the last one.
    pub(super) terms: Cell<Terms>,
    /// Why the device is down for good.
    ended: Cell<Option<Errno>>,
    closing: Cell<bool>,
    /// The session is to be left at once, as the machine has lost all that it was made of.
    lost: Cell<bool>,
    /// The backend has broken the protocol.
    broken: Cell<bool>,
    /// Told when one of these changes.
    pub(super) changed: WaitList,
}

/// The rings, and the frames at either end of them.
pub(super) struct State {
    pub(super) queue: Option<Queue>,
    /// The frame that was received last, and its length until the stack has taken it.
    pub(super) received: Vec<u8>,
    pub(super) waiting: Option<usize>,
    /// The frame that the stack is making.
    pub(super) making: Vec<u8>,
    /// The stack was told that there is no room.
    pub(super) starved: bool,
}

impl State {
    /// Whether any frame has room, for a stack that wants to be told when not.
    pub(super) fn find_room(&mut self, counters: &Counters) -> Result<bool, Violation> {
        let Some(queue) = &mut self.queue else { return Ok(false) };
        let room = queue.tx.has_room(counters)?;
        self.starved = !room;
        Ok(room)
    }
}

impl<M: Machine> Device<M> {
    pub(super) fn new(machine: M, path: &str, config: Config, address: EthernetAddress) -> Self {
        Device {
            config,
            path: path.into(),
            grants: Grants::new(machine),
            counters: Counters::default(),
            address: Cell::new(address),
            state: RefCell::new(State {
                queue: None,
                received: vec![0; LONGEST],
                waiting: None,
                making: vec![0; LONGEST],
                starved: false,
            }),
            signal: Arc::new(Signal::new()),
            generation: Cell::new(0),
            carrier: Cell::new(true),
            terms: Cell::new(Terms::default()),
            ended: Cell::new(None),
            closing: Cell::new(false),
            lost: Cell::new(false),
            broken: Cell::new(false),
            changed: WaitList::default(),
        }
    }

    /// Has something done with the rings, if there are any. What the backend breaks ends the session.
    pub(super) fn with_queue<T>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, Violation>,
    ) -> Option<T> {
        let mut state = self.state.borrow_mut();
        if state.queue.is_none() || self.broken.get() {
            return None;
        }
        match work(&mut state) {
            Ok(value) => Some(value),
            Err(violation) => {
                let path = &self.path;
                log::error!("{path}: the backend breaks the protocol: {violation}; leaving it");
                self.broken.set(true);
                self.tell();
                None
            }
        }
    }

    /// Has something done with the frame buffers, whether or not there are rings.
    pub(super) fn with_state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.borrow_mut())
    }

    fn tell(&self) {
        self.changed.wake_all();
        self.signal.raise();
    }

    pub(super) fn link(&self) -> Link {
        let up = self.carrier.get()
            && !self.broken.get()
            && self.with_state(|state| state.queue.is_some());
        if up { Link::Up(self.generation.get()) } else { Link::Down }
    }

    pub(super) fn go_up(&self, queue: Queue, terms: Terms) {
        self.terms.set(terms);
        self.broken.set(false);
        self.generation.set(self.generation.get().wrapping_add(1));
        self.counters.sessions.add(1);
        self.with_state(|state| state.queue = Some(queue));
        self.tell();
    }

    /// Leaves the session, if there is one.
    pub(super) fn leave_session(&self) {
        let queue = self.with_state(|state| {
            state.waiting = None;
            state.queue.take()
        });
        if let Some(queue) = queue {
            queue.close(&self.grants);
        }
        self.tell();
    }

    pub(super) fn set_carrier(&self, carrier: bool) {
        if self.carrier.replace(carrier) != carrier {
            log::info!("{}: carrier {}", self.path, if carrier { "is back" } else { "is lost" });
            if carrier {
                self.generation.set(self.generation.get().wrapping_add(1));
            }
            self.tell();
        }
    }

    /// Goes on with another MTU, as another link: a stack asks for the capabilities anew then.
    pub(super) fn set_mtu(&self, mtu: usize) {
        let mut terms = self.terms.get();
        if core::mem::replace(&mut terms.mtu, mtu) == mtu {
            return;
        }
        log::info!("{}: the MTU is {mtu} now", self.path);
        self.terms.set(terms);
        self.with_state(|state| {
            if let Some(queue) = &mut state.queue {
                queue.tx.make_room_for(&terms);
            }
        });
        self.generation.set(self.generation.get().wrapping_add(1));
        self.tell();
    }

    pub(super) fn end(&self, error: Errno) {
        self.leave_session();
        self.ended.set(Some(error));
        self.tell();
    }

    pub(super) fn ended(&self) -> Option<Errno> {
        self.ended.get()
    }

    /// Asks the driver to close the device, and waits until it has.
    pub(super) async fn shutdown(&self) {
        self.closing.set(true);
        self.tell();
        self.changed.until(|| self.ended.get()).await;
    }

    /// Leaves the session, has the driver begin anew, and waits until it is about to.
    pub(super) async fn resume(&self) {
        if self.ended.get().is_some() {
            return;
        }
        self.leave_session();
        self.lost.set(true);
        self.tell();
        self.changed.until(|| (!self.lost.get() || self.ended.get().is_some()).then_some(())).await;
    }

    /// Waits until the backend breaks the protocol.
    pub(super) async fn broken(&self) {
        self.changed.until(|| self.broken.get().then_some(())).await;
    }
}

impl<M: Machine> frontend::Device for Device<M> {
    async fn closing(&self) {
        self.changed.until(|| self.closing.get().then_some(())).await;
    }

    async fn lost(&self) {
        self.changed.until(|| self.lost.get().then_some(())).await;
    }

    fn begin_anew(&self) {
        self.leave_session();
        self.lost.set(false);
        self.tell();
    }

    fn patience(&self) -> Duration {
        self.config.linger.into()
    }

    async fn sleep(&self, time: Duration) {
        Timer::after_millis(time.as_millis() as u64).await;
    }

    async fn session(&self, meeting: &mut Meeting<'_, Self>) -> Result<SessionEnd, Errno> {
        session::serve(self, meeting).await
    }
}
