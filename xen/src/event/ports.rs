//! Who hears of which port, and which numbers still belong to owners from before a resume.

use crate::Port;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use atomic_waker::AtomicWaker;

/// What happens upon an event.
pub trait EventHandler: Send + Sync {
    /// Called after one or more events, from [`EventChannels::dispatch`]. It should wake a task and do
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
    /// This domain: its owner here will close it.
    Own,
    /// The toolstack, as it built the domain.
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
    /// Ports that are gone since the domain was restored, and were not closed yet; with each, whether a
    /// new port of that number is held, so that Xen gives it to nobody.
    orphans: BTreeMap<u32, bool>,
}

impl Ports {
    /// Has a port's events handled, and returns who did so before.
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
        // Another handler does not change who opened it.
        let origin = former.as_ref().map_or(origin, |former| former.origin);
        self.listeners[index] = Some(Listener { origin, handler });
        former.map(|former| former.handler)
    }

    /// Who handles a port's events.
    pub(super) fn handler(&self, port: Port) -> Option<Arc<dyn EventHandler>> {
        let listener = self.listeners.get(port.0 as usize)?.as_ref();
        listener.map(|listener| listener.handler.clone())
    }

    /// Forgets who handles a port's events, and returns that.
    pub(super) fn take(&mut self, port: Port) -> Option<Arc<dyn EventHandler>> {
        let listener = self.listeners.get_mut(port.0 as usize)?.take();
        listener.map(|listener| listener.handler)
    }

    /// All ports are gone: those that have owners here become orphans. Returns what was forgotten.
    pub(super) fn resume(&mut self) -> impl Sized + use<> {
        // What was held for the orphans of an earlier time is gone, too.
        self.orphans.values_mut().for_each(|is_aside| *is_aside = false);
        let listeners = core::mem::take(&mut self.listeners);
        for (port, listener) in (0..).zip(&listeners) {
            if listener.as_ref().is_some_and(|listener| listener.origin == Origin::Own) {
                self.orphans.insert(port, false);
            }
        }
        listeners
    }

    /// How many orphans there are.
    pub(super) fn orphans(&self) -> usize {
        self.orphans.len()
    }

    pub(super) fn is_orphan(&self, port: Port) -> bool {
        self.orphans.contains_key(&port.0)
    }

    /// Notes that a new port holds an orphan's number; false if that is nobody's.
    pub(super) fn put_aside(&mut self, port: Port) -> bool {
        self.orphans.get_mut(&port.0).map(|is_aside| *is_aside = true).is_some()
    }

    /// The owner has closed an orphan. Returns whether a new port holds its number; `None` if there is no
    /// such orphan.
    pub(super) fn remove_orphan(&mut self, port: Port) -> Option<bool> {
        self.orphans.remove(&port.0)
    }
}
