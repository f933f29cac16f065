//! Event channels: who hears of which port's events, in either of Xen's two ABIs.
//!
//! An event carries no data and several may arrive as one. A port's [`EventHandler`] wakes whoever
//! waits; what happened is then read from the rings. [`EventChannels::dispatch`] belongs into the
//! executor's loop, not into the interrupt handler, which only has to exist (and to clear
//! `evtchn_upcall_pending`).
//!
//! | ABI | ports | order |
//! |---|---|---|
//! | [`Fifo`](Abi::Fifo): a word for each port, linked into a queue for each priority | 131,072 | as they came, by priority |
//! | [`TwoLevel`](Abi::TwoLevel): a bit for each port in the shared info page | 4,096 | round and round |
//!
//! A domain that was restored from a file, or has moved, is a new one to Xen and has none of its ports:
//! see [`EventChannels::resume`].

use crate::abi::event_channel::*;
use crate::abi::xen::DOMID_SELF;
use crate::hypercall::{FrameSource, Hypervisor, Operations};
use crate::{Counter, DomId, Errno, Port, Shared};
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::str::FromStr;
use core::sync::atomic::Ordering::SeqCst;
use fifo::Fifo;
use ports::{Origin, Ports};
use two_level::{TwoLevel, UPCALL_PENDING};

pub use ports::EventHandler;

#[allow(unsafe_code, reason = "gives pages to Xen")]
pub(crate) mod fifo;
mod ports;
pub(crate) mod two_level;

/// The most events that one call of [`EventChannels::dispatch`] handles: a peer that sends without
/// pause cannot keep the guest from its own work.
pub const BUDGET: usize = 256;

/// How Xen tells a domain of its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// By bits in the shared info page: what every Xen has.
    TwoLevel,
    /// By queues in the domain's own memory: Xen 4.4 and later, unless it is told otherwise.
    Fifo,
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Abi::TwoLevel => "2-level",
            Abi::Fifo => "FIFO",
        })
    }
}

impl FromStr for Abi {
    type Err = Errno;

    /// Reads `fifo` or `2l`; [`Errno::EINVAL`] for anything else.
    fn from_str(name: &str) -> Result<Abi, Errno> {
        match name {
            "fifo" => Ok(Abi::Fifo),
            "2l" => Ok(Abi::TwoLevel),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Which ports' events are handled before which others', in the FIFO ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    /// Before all others.
    pub const HIGHEST: Priority = Priority(EVTCHN_FIFO_PRIORITY_MAX as u8);
    /// Before those of ports that were given none.
    pub const HIGH: Priority = Priority(EVTCHN_FIFO_PRIORITY_DEFAULT as u8 / 2);
    /// What a port has at first.
    pub const DEFAULT: Priority = Priority(EVTCHN_FIFO_PRIORITY_DEFAULT as u8);
    /// After all others.
    pub const LOWEST: Priority = Priority(EVTCHN_FIFO_PRIORITY_MIN as u8);
}

/// The event channels of a domain with one virtual CPU.
pub struct EventChannels<H, P> {
    hypervisor: H,
    pages: P,
    shared_info: Shared<'static>,
    wanted: Option<Abi>,
    abi: Cell<Abi>,
    two_level: TwoLevel,
    fifo: Fifo,
    ports: RefCell<Ports>,
    received: Counter,
}

impl<H: Hypervisor, P: FrameSource> EventChannels<H, P> {
    /// Takes over the event channels of a domain that uses the 2-level ABI so far. All ports are masked
    /// at first. If the ABI is not chosen, it is FIFO where Xen offers that; if FIFO is chosen and Xen
    /// does not offer it, this fails with Xen's error.
    pub fn new(
        hypervisor: H,
        shared_info: Shared<'static>,
        pages: P,
        wanted: Option<Abi>,
    ) -> Result<Self, Errno> {
        let channels = EventChannels {
            hypervisor,
            pages,
            shared_info,
            wanted,
            abi: Cell::new(Abi::TwoLevel),
            two_level: TwoLevel::new(shared_info),
            fifo: Fifo::default(),
            ports: RefCell::default(),
            received: Counter::default(),
        };
        channels.start()?;
        Ok(channels)
    }

    fn start(&self) -> Result<(), Errno> {
        // Also before FIFO is tried: where Xen refuses it, these bits count.
        self.two_level.mask_all();
        self.abi.set(Abi::TwoLevel);
        if self.wanted == Some(Abi::TwoLevel) {
            return Ok(());
        }
        match self.fifo.switch(&self.hypervisor, &self.pages) {
            Ok(()) => {
                self.abi.set(Abi::Fifo);
                self.fifo.give_array(&self.hypervisor, &self.pages)
            }
            Err(error) if self.wanted == Some(Abi::Fifo) => Err(error),
            Err(error) => {
                log::debug!("no event channels of the FIFO ABI: {error}");
                Ok(())
            }
        }
    }

    /// Begins anew in a domain that has been restored, which has no ports but those that the toolstack
    /// made, and the 2-level ABI. The shared info page must be in its place already. Pages that were
    /// taken before are used again. All handlers are forgotten.
    ///
    /// Ports that were opened before may be closed at any later time, as if they were there still. Until
    /// then no new port has the number of one of them, so no owner can meet another's port. Those that
    /// were [registered](EventChannels::register) are the toolstack's: the caller asks which numbers they
    /// have now and registers them anew.
    pub fn resume(&self) -> Result<(), Errno> {
        let handlers = self.ports.borrow_mut().resume();
        // Only now, as what they own may come back here.
        drop(handlers);
        self.start()
    }

    /// The ABI in use.
    pub fn abi(&self) -> Abi {
        self.abi.get()
    }

    /// Allocates a port that `remote` may bind to.
    pub fn alloc_unbound(
        &self,
        remote: DomId,
        handler: Arc<dyn EventHandler>,
    ) -> Result<Port, Errno> {
        self.open(|| self.hypervisor.alloc_unbound(remote), handler)
    }

    /// Binds to a port that `remote` allocated for this domain.
    pub fn bind_interdomain(
        &self,
        remote: DomId,
        port: Port,
        handler: Arc<dyn EventHandler>,
    ) -> Result<Port, Errno> {
        self.open(|| self.hypervisor.bind_interdomain(remote, port), handler)
    }

    /// Binds to a virtual interrupt (`VIRQ_*`).
    pub fn bind_virq(&self, virq: u32, handler: Arc<dyn EventHandler>) -> Result<Port, Errno> {
        self.open(|| self.hypervisor.bind_virq(virq, 0), handler)
    }

    /// Handles the events of a port that exists already, such as xenstore's, in place of its former
    /// handler, and unmasks it. [`Errno::EINVAL`] for a number that no port has in this ABI.
    pub fn register(&self, port: Port, handler: Arc<dyn EventHandler>) -> Result<(), Errno> {
        self.handle(port, Origin::Toolstack, handler)
    }

    fn handle(
        &self,
        port: Port,
        origin: Origin,
        handler: Arc<dyn EventHandler>,
    ) -> Result<(), Errno> {
        let limit = match self.abi() {
            Abi::TwoLevel => EVTCHN_2L_NR_CHANNELS,
            Abi::Fifo => EVTCHN_FIFO_NR_CHANNELS,
        };
        if port.0 == 0 || port.0 >= limit {
            return Err(Errno::EINVAL);
        }
        if self.abi() == Abi::Fifo {
            self.fifo.grow_to(port, &self.hypervisor, &self.pages)?;
        }
        let former = self.ports.borrow_mut().set(port, origin, handler);
        drop(former);
        self.unmask(port);
        Ok(())
    }

    fn open(
        &self,
        open: impl Fn() -> Result<Port, Errno>,
        handler: Arc<dyn EventHandler>,
    ) -> Result<Port, Errno> {
        let port = self.open_unclaimed(open)?;
        match self.handle(port, Origin::Own, handler) {
            Ok(()) => Ok(port),
            Err(error) => {
                let _ = self.hypervisor.close_port(port);
                Err(error)
            }
        }
    }

    /// Opens a port whose number no owner from before a resume has still to close.
    fn open_unclaimed(&self, open: impl Fn() -> Result<Port, Errno>) -> Result<Port, Errno> {
        let orphans = self.ports.borrow().orphans();
        // Each turn but the last takes one such number out of Xen's choice.
        for _ in 0..=orphans {
            let port = open()?;
            if !self.ports.borrow().is_orphan(port) {
                return Ok(port);
            }
            // What holds the number is unbound: a port that is bound could not be bound once more. Xen
            // gives the lowest number that is free, so it gives this one again.
            self.hypervisor.close_port(port)?;
            let held = self.hypervisor.alloc_unbound(DomId(DOMID_SELF))?;
            if !self.ports.borrow_mut().put_aside(held) {
                self.hypervisor.close_port(held)?;
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Closes a port and forgets its handler, which hears of no event after this. A port from before a
    /// [`resume`](EventChannels::resume) is gone already; its number becomes free.
    pub fn close(&self, port: Port) -> Result<(), Errno> {
        let orphan = self.ports.borrow_mut().remove_orphan(port);
        if let Some(is_aside) = orphan {
            return if is_aside { self.hypervisor.close_port(port) } else { Ok(()) };
        }
        if port.0 >= EVTCHN_FIFO_NR_CHANNELS {
            return Err(Errno::EINVAL);
        }
        self.mask(port);
        let handler = self.ports.borrow_mut().take(port);
        let closed = self.hypervisor.close_port(port);
        match self.abi() {
            Abi::TwoLevel => self.two_level.clear(port),
            Abi::Fifo => self.fifo.clear(port),
        }
        drop(handler);
        closed
    }

    /// Chooses which ports' next events are handled before this one's. The 2-level ABI treats all alike,
    /// so there this does nothing.
    pub fn set_priority(&self, port: Port, priority: Priority) -> Result<(), Errno> {
        match self.abi() {
            Abi::TwoLevel => Ok(()),
            Abi::Fifo => self.hypervisor.set_port_priority(port, priority.0.into()),
        }
    }

    /// Sends an event.
    #[inline]
    pub fn send(&self, port: Port) -> Result<(), Errno> {
        self.hypervisor.send(port)
    }

    /// Holds a port's events back. They stay pending.
    pub fn mask(&self, port: Port) {
        match self.abi() {
            Abi::TwoLevel => self.two_level.mask(port),
            Abi::Fifo => self.fifo.mask(port),
        }
    }

    /// Lets a port's events through again, those that were held back included.
    pub fn unmask(&self, port: Port) {
        match self.abi() {
            Abi::TwoLevel => self.two_level.unmask(port),
            Abi::Fifo => self.fifo.unmask(port, &self.hypervisor),
        }
    }

    /// Whether [`dispatch`](EventChannels::dispatch) would find something: to be asked with
    /// interrupts off, before the CPU is halted.
    pub fn is_pending(&self) -> bool {
        match self.abi() {
            Abi::TwoLevel => self.two_level.is_pending(),
            Abi::Fifo => self.fifo.is_pending(),
        }
    }

    /// The number of events that were handled.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Calls the handlers of the ports that have events, at most [`BUDGET`] of them, and returns
    /// whether more may be waiting. It allocates nothing. An event on a port without a handler masks
    /// that port.
    pub fn dispatch(&self) -> bool {
        // The flag goes first: an event that comes after it sets it again.
        self.shared_info.store_u8(UPCALL_PENDING, 0, SeqCst);
        let raise = |port| {
            // A copy of the pointer, not a borrow: a waker may do anything.
            let handler = self.ports.borrow().handler(port);
            match handler {
                Some(handler) => {
                    self.received.add(1);
                    handler.raise();
                }
                None => self.mask(port),
            }
        };
        match self.abi() {
            Abi::TwoLevel => self.two_level.dispatch(BUDGET, raise),
            Abi::Fifo => self.fifo.dispatch(BUDGET, raise),
        }
    }
}

#[cfg(test)]
mod tests;
