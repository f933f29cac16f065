//! The handlers of ports, and the numbers of former ports whose owners have not closed them yet.

use crate::Port;
use alloc::sync::Arc;
use alloc::vec::Vec;
use atomic_waker::AtomicWaker;

/// Handles the events of a port.
pub trait EventHandler: Send + Sync {
    /// Called after one or more events, from
    /// [`EventChannels::dispatch`](super::EventChannels::dispatch). It wakes a task and does
    /// nothing else; it must not allocate.
    fn raise(&self);
}

impl EventHandler for AtomicWaker {
    fn raise(&self) {
        self.wake();
    }
}

/// Who opened a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// This domain. The port's owner closes it.
    Own,
    /// The toolstack, when it built the domain.
    Toolstack,
}

#[derive(Clone)]
struct Listener {
    origin: Origin,
    handler: Arc<dyn EventHandler>,
}

#[derive(Default)]
pub(super) struct Ports {
    /// By port.
    listeners: Vec<Option<Listener>>,
    /// Ports from before the domain was restored that their owners have not closed; with each,
    /// whether a new port blocks the number, so that Xen does not allocate it. Sorted.
    orphans: Vec<(u32, bool)>,
}

impl Ports {
    /// Sets a port's handler, and returns the former one.
    pub(super) fn set(
        &mut self,
        port: Port,
        origin: Origin,
        handler: Arc<dyn EventHandler>,
    ) -> Option<Arc<dyn EventHandler>> {
        let index = port.0 as usize;
        if self.listeners.len() <= index {
            self.listeners.resize(index + 1, None);
        }
        let former = self.listeners[index].take();
        // A new handler does not change the origin.
        let origin = former.as_ref().map_or(origin, |former| former.origin);
        self.listeners[index] = Some(Listener { origin, handler });
        former.map(|former| former.handler)
    }

    /// A port's handler.
    pub(super) fn handler(&self, port: Port) -> Option<Arc<dyn EventHandler>> {
        let listener = self.listeners.get(port.0 as usize)?.as_ref();
        listener.map(|listener| listener.handler.clone())
    }

    /// Removes a port's handler, and returns it.
    pub(super) fn take(&mut self, port: Port) -> Option<Arc<dyn EventHandler>> {
        let listener = self.listeners.get_mut(port.0 as usize)?.take();
        listener.map(|listener| listener.handler)
    }

    /// Removes all ports. Those of this domain become orphans. Returns the handlers, to be dropped.
    pub(super) fn resume(&mut self) -> impl Sized + use<> {
        // The ports that blocked numbers do not exist any more either.
        self.orphans.iter_mut().for_each(|(_, is_blocked)| *is_blocked = false);
        let listeners = core::mem::take(&mut self.listeners);
        for (port, listener) in (0..).zip(&listeners) {
            if listener.as_ref().is_some_and(|listener| listener.origin == Origin::Own)
                && let Err(at) = self.find_orphan(Port(port))
            {
                self.orphans.insert(at, (port, false));
            }
        }
        listeners
    }

    /// The number of orphans.
    pub(super) fn orphans(&self) -> usize {
        self.orphans.len()
    }

    /// The place of an orphan, or the place where it would be.
    fn find_orphan(&self, port: Port) -> Result<usize, usize> {
        self.orphans.binary_search_by_key(&port.0, |(orphan, _)| *orphan)
    }

    pub(super) fn is_orphan(&self, port: Port) -> bool {
        self.find_orphan(port).is_ok()
    }

    /// Records that a new port blocks an orphan's number. Returns false if no orphan has it.
    pub(super) fn block(&mut self, port: Port) -> bool {
        let found = self.find_orphan(port);
        found.map(|at| self.orphans[at].1 = true).is_ok()
    }

    /// Removes an orphan that its owner has closed. Returns whether a new port blocks its number;
    /// `None` if there is no such orphan.
    pub(super) fn remove_orphan(&mut self, port: Port) -> Option<bool> {
        self.find_orphan(port).ok().map(|at| self.orphans.remove(at).1)
    }
}
