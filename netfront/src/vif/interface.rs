//! The state that the interface and its driver share.

use super::config::{Config, LONGEST, Statistics};
use super::features::Features;
use super::queue::{Queue, Violation};
use crate::Link;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use smoltcp::wire::EthernetAddress;
use xen::frontend::{Lifecycle, PagePool};
use xen::{Machine, Signal, WaitList};

/// The shared state of an interface.
pub(super) struct Interface<M: Machine> {
    pub(super) config: Config,
    /// The device's folder in xenstore, for messages.
    path: String,
    pub(super) pages: PagePool<M>,
    pub(super) address: Cell<EthernetAddress>,
    pub(super) lifecycle: Lifecycle,
    state: RefCell<State>,
    /// Raised by the backend's events, and when the link changes. The stack waits for it.
    pub(super) signal: Arc<Signal>,
    /// The number of the present link, which also changes with the carrier and the MTU.
    generation: Cell<u32>,
    carrier: Cell<bool>,
    /// The features of the present session, or of the last one.
    pub(super) features: Cell<Features>,
    /// Whether the backend has broken the protocol.
    broken: Cell<bool>,
    /// Woken when `broken` is set.
    broke: WaitList,
}

struct State {
    queue: Option<Queue>,
    /// Whether the backend is connected to the rings.
    is_up: bool,
    frames: Frames,
}

/// The frames on their way to and from the stack.
pub(super) struct Frames {
    /// The frame that was received last, and its length until the stack has taken it.
    pub(super) received: Vec<u8>,
    pub(super) waiting: Option<usize>,
    /// The frame that the stack is building.
    pub(super) building: Vec<u8>,
    /// Whether the stack has found no room since it was last woken.
    pub(super) starved: bool,
    pub(super) statistics: Statistics,
}

impl Frames {
    /// Whether there is room for any frame. If not, the stack is woken when there is.
    pub(super) fn find_room(&mut self, queue: &mut Queue) -> Result<bool, Violation> {
        let room = queue.tx.has_room(&mut self.statistics)?;
        self.starved = !room;
        Ok(room)
    }
}

impl<M: Machine> Interface<M> {
    pub(super) fn new(machine: M, path: &str, config: Config, address: EthernetAddress) -> Self {
        let frames = Frames {
            received: vec![0; LONGEST],
            waiting: None,
            building: vec![0; LONGEST],
            starved: false,
            statistics: Statistics::default(),
        };
        Interface {
            config,
            path: path.into(),
            pages: PagePool::new(machine),
            address: Cell::new(address),
            lifecycle: Lifecycle::default(),
            state: RefCell::new(State { queue: None, is_up: false, frames }),
            signal: Arc::new(Signal::new()),
            generation: Cell::new(0),
            carrier: Cell::new(true),
            features: Cell::new(Features::default()),
            broken: Cell::new(false),
            broke: WaitList::default(),
        }
    }

    /// Runs `work` with the rings if the interface is connected. A violation of the protocol ends
    /// the session.
    pub(super) fn with_queue<T>(
        &self,
        work: impl FnOnce(&mut Queue, &mut Frames) -> Result<T, Violation>,
    ) -> Option<T> {
        let mut state = self.state.borrow_mut();
        let State { queue: Some(queue), is_up: true, frames } = &mut *state else { return None };
        if self.broken.get() {
            return None;
        }
        match work(queue, frames) {
            Ok(value) => Some(value),
            Err(violation) => {
                let path = &self.path;
                log::error!("{path}: the backend breaks the protocol: {violation}; leaving it");
                self.broken.set(true);
                self.broke.wake_all();
                self.signal.raise();
                None
            }
        }
    }

    /// Runs `work` with the frames, whether or not the interface is connected.
    pub(super) fn with_frames<T>(&self, work: impl FnOnce(&mut Frames) -> T) -> T {
        work(&mut self.state.borrow_mut().frames)
    }

    pub(super) fn link(&self) -> Link {
        let is_up = self.carrier.get() && !self.broken.get() && self.state.borrow().is_up;
        if is_up { Link::Up(self.generation.get()) } else { Link::Down }
    }

    /// Stores the rings of a session. They are used once the backend is connected.
    pub(super) fn open(&self, queue: Queue) {
        self.state.borrow_mut().queue = Some(queue);
    }

    /// Starts to use the rings.
    pub(super) fn go_up(&self, features: Features) {
        self.features.set(features);
        self.broken.set(false);
        self.state.borrow_mut().is_up = true;
        let ports = self.with_queue(|queue, frames| {
            frames.statistics.sessions += 1;
            // The backend could not see the buffers while the ring was filled.
            let _ = queue.rx.publish();
            Ok(queue.ports())
        });
        self.change_link();
        ports.into_iter().flatten().flatten().for_each(|port| self.pages.machine().notify(port));
    }

    /// Closes the rings, if there are any.
    pub(super) fn close(&self) {
        let mut state = self.state.borrow_mut();
        (state.frames.waiting, state.is_up) = (None, false);
        let queue = state.queue.take();
        drop(state);
        if let Some(queue) = queue {
            queue.close(&self.pages);
        }
        self.signal.raise();
    }

    /// Gives the link another number: a stack reads addresses and capabilities again then.
    fn change_link(&self) {
        self.generation.set(self.generation.get().wrapping_add(1));
        self.signal.raise();
    }

    pub(super) fn set_carrier(&self, carrier: bool) {
        if self.carrier.replace(carrier) != carrier {
            log::info!("{}: carrier {}", self.path, if carrier { "is back" } else { "is lost" });
            if carrier {
                self.change_link();
            } else {
                self.signal.raise();
            }
        }
    }

    pub(super) fn set_mtu(&self, mtu: usize) {
        let mut features = self.features.get();
        if core::mem::replace(&mut features.mtu, mtu) == mtu {
            return;
        }
        log::info!("{}: the MTU is {mtu} now", self.path);
        self.features.set(features);
        if let Some(queue) = &mut self.state.borrow_mut().queue {
            queue.tx.make_room_for(&features);
        }
        self.change_link();
    }

    /// Waits until the backend breaks the protocol.
    pub(super) async fn broken(&self) {
        self.broke.until(|| self.broken.get().then_some(())).await;
    }
}
