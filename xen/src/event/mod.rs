//! Event channels, in either of Xen's two ABIs: ports, and the handlers of their events.
//!
//! An event carries no data, and several may arrive as one. A port's [`EventHandler`] wakes a task,
//! which then looks at its rings. The executor's loop calls [`EventChannels::dispatch`]; the
//! interrupt handler only clears `evtchn_upcall_pending`.
//!
//! | ABI | ports | order |
//! |---|---|---|
//! | [`Fifo`](Abi::Fifo): a word per port, in a queue per priority | 131,072 | by priority |
//! | [`TwoLevel`](Abi::TwoLevel): a bit per port in the shared info page | 4,096 | round robin |
//!
//! To Xen, a restored or migrated domain is a new one, without the former ports: see
//! [`EventChannels::resume`].

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

/// The most events that one call of [`EventChannels::dispatch`] handles, so that a peer which sends
/// without pause cannot starve the guest's tasks.
pub const BUDGET: usize = 256;

/// How Xen announces events to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// Bits in the shared info page. Every Xen has it.
    TwoLevel,
    /// Queues in the domain's memory. Xen 4.4 and later, unless disabled.
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

/// The priority of a port's events, in the FIFO ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    /// Before all others.
    pub const HIGHEST: Priority = Priority(EVTCHN_FIFO_PRIORITY_MAX as u8);
    /// Before the default.
    pub const HIGH: Priority = Priority(EVTCHN_FIFO_PRIORITY_DEFAULT as u8 / 2);
    /// The initial priority of a port.
    pub const DEFAULT: Priority = Priority(EVTCHN_FIFO_PRIORITY_DEFAULT as u8);
    /// After all others.
    pub const LOWEST: Priority = Priority(EVTCHN_FIFO_PRIORITY_MIN as u8);
}

/// The event channels of a domain with one virtual CPU.
///
/// ```
/// # use futures_util::FutureExt;
/// # use std::{cell::Cell, pin::pin, sync::Arc};
/// use xen::event::EventChannels;
/// use xen::{DomId, Errno, Side, Signal, testing::FakeXen};
///
/// let xen = FakeXen::new();
/// let channels = EventChannels::new(&xen, xen.shared_info, &xen, None)?;
/// let signal = Arc::new(Signal::new());
/// let port = channels.alloc_unbound(DomId(0), signal.clone())?;
/// # let ring = Cell::new(None);
/// # let mut ready = pin!(signal.until(Side::Rx, || ring.take()));
/// # assert_eq!(ready.as_mut().now_or_never(), None);
/// // The peer binds the port, writes to a ring and sends an event:
/// # ring.set(Some(()));
/// xen.events.set_pending(port);
/// assert!(channels.is_pending());
/// channels.dispatch();
/// # assert_eq!(ready.now_or_never(), Some(()));
/// channels.close(port)?;
/// # Ok::<(), Errno>(())
/// ```
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
    /// Takes over the event channels of a domain that uses the 2-level ABI. All ports are masked at
    /// first. Without a `wanted` ABI, it is FIFO if Xen offers that. Fails with Xen's error if FIFO
    /// is wanted and Xen does not offer it.
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
        // Also before the switch to FIFO, which Xen may refuse.
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
                log::debug!("Xen refuses the FIFO ABI of event channels: {error}");
                Ok(())
            }
        }
    }

    /// Sets the event channels up in a restored domain, which has only the ports that the toolstack
    /// made, and the 2-level ABI. The shared info page must be in place. Pages that were taken
    /// before are used again. All handlers are dropped.
    ///
    /// The owners of former ports close them later, as usual. Until then no new port has the number
    /// of a former one, so that no owner can close another's port.
    /// [Registered](EventChannels::register) ports are the toolstack's: the caller reads their new
    /// numbers and registers them again.
    pub fn resume(&self) -> Result<(), Errno> {
        let handlers = self.ports.borrow_mut().resume();
        // Dropped after the borrow ends: a handler's `Drop` may re-enter.
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

    /// Sets the handler of a port that the toolstack made, such as xenstore's, and unmasks the
    /// port. [`Errno::EINVAL`] for a number that no port has in this ABI.
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

    /// Opens a port whose number is not that of a former port, which its owner has not closed yet.
    fn open_unclaimed(&self, open: impl Fn() -> Result<Port, Errno>) -> Result<Port, Errno> {
        let orphans = self.ports.borrow().orphans();
        // Each turn but the last blocks one such number.
        for _ in 0..=orphans {
            let port = open()?;
            if !self.ports.borrow().is_orphan(port) {
                return Ok(port);
            }
            // An unbound port blocks the number. Xen allocates the lowest free number, so it is
            // this one again.
            self.hypervisor.close_port(port)?;
            let blocked = self.hypervisor.alloc_unbound(DomId(DOMID_SELF))?;
            if !self.ports.borrow_mut().block(blocked) {
                self.hypervisor.close_port(blocked)?;
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Closes a port and drops its handler, which is not called any more. A port from before a
    /// [`resume`](EventChannels::resume) does not exist: only its number becomes free.
    pub fn close(&self, port: Port) -> Result<(), Errno> {
        let orphan = self.ports.borrow_mut().remove_orphan(port);
        if let Some(is_blocked) = orphan {
            return if is_blocked { self.hypervisor.close_port(port) } else { Ok(()) };
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

    /// Sets the priority of a port's next events. Does nothing in the 2-level ABI, which has no
    /// priorities.
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

    /// Masks a port: its events stay pending.
    pub fn mask(&self, port: Port) {
        match self.abi() {
            Abi::TwoLevel => self.two_level.mask(port),
            Abi::Fifo => self.fifo.mask(port),
        }
    }

    /// Unmasks a port. Pending events are announced.
    pub fn unmask(&self, port: Port) {
        match self.abi() {
            Abi::TwoLevel => self.two_level.unmask(port),
            Abi::Fifo => self.fifo.unmask(port, &self.hypervisor),
        }
    }

    /// Whether [`dispatch`](EventChannels::dispatch) has work. Called with interrupts off, before
    /// the CPU halts.
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

    /// Calls the handlers of ports with pending events, at most [`BUDGET`] of them, and returns
    /// whether more may be pending. Allocates nothing. Masks a port that has an event but no
    /// handler.
    pub fn dispatch(&self) -> bool {
        // The flag is cleared first: a later event sets it again.
        self.shared_info.store_u8(UPCALL_PENDING, 0, SeqCst);
        let raise = |port| {
            // Cloned, not borrowed: a waker may re-enter.
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
