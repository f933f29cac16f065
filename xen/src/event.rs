//! Event channels, in the 2-level ABI: one bit for each port, set by Xen, cleared here.
//!
//! An event carries no data and several may arrive as one. A port's [`EventHandler`] wakes whoever
//! waits; what happened is then read from the rings. [`EventChannels::dispatch`] belongs into the
//! executor's loop, not into the interrupt handler, which only has to exist (and to clear
//! `evtchn_upcall_pending`).

use crate::abi::event_channel::EVTCHN_2L_NR_CHANNELS;
use crate::abi::xen::{SharedInfo, VcpuInfo};
use crate::hypercall::{Hypervisor, Operations};
use crate::{DomId, Errno, Port, Shared};
use alloc::sync::Arc;
use alloc::vec::Vec;
use atomic_waker::AtomicWaker;
use core::cell::{Cell, RefCell};
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

const UPCALL_PENDING: usize = offset_of!(VcpuInfo, evtchn_upcall_pending);
const SELECTOR: usize = offset_of!(VcpuInfo, evtchn_pending_sel);
const PENDING: usize = offset_of!(SharedInfo, evtchn_pending);
const MASK: usize = offset_of!(SharedInfo, evtchn_mask);
const WORDS: usize = 64;

/// The most events that one call of [`EventChannels::dispatch`] handles: a peer that sends without
/// pause cannot keep the guest from its own work.
pub const BUDGET: usize = 256;

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

/// The wakers of a port with two waiters, one for each direction.
#[derive(Debug, Default)]
pub struct PairWaker {
    /// Whoever waits for something to read.
    pub rx: AtomicWaker,
    /// Whoever waits for room to write.
    pub tx: AtomicWaker,
}

impl EventHandler for PairWaker {
    fn raise(&self) {
        self.rx.wake();
        self.tx.wake();
    }
}

/// The event channels of a domain with one virtual CPU.
pub struct EventChannels<H> {
    hypervisor: H,
    bits: Bits,
    /// Handlers by port.
    handlers: RefCell<Vec<Option<Arc<dyn EventHandler>>>>,
}

impl<H: Hypervisor> EventChannels<H> {
    /// Takes over the event channels of the shared info page. All ports are masked at first.
    pub fn new(hypervisor: H, shared_info: Shared<'static>) -> Self {
        let bits = Bits { shared: shared_info, next_word: Cell::new(0) };
        bits.mask_all();
        EventChannels { hypervisor, bits, handlers: RefCell::default() }
    }

    /// Allocates a port that `remote` may bind to.
    pub fn alloc_unbound(
        &self,
        remote: DomId,
        handler: Arc<dyn EventHandler>,
    ) -> Result<Port, Errno> {
        self.register_new(self.hypervisor.alloc_unbound(remote)?, handler)
    }

    /// Binds to a port that `remote` allocated for this domain.
    pub fn bind_interdomain(
        &self,
        remote: DomId,
        port: Port,
        handler: Arc<dyn EventHandler>,
    ) -> Result<Port, Errno> {
        self.register_new(self.hypervisor.bind_interdomain(remote, port)?, handler)
    }

    /// Binds to a virtual interrupt (`VIRQ_*`).
    pub fn bind_virq(&self, virq: u32, handler: Arc<dyn EventHandler>) -> Result<Port, Errno> {
        self.register_new(self.hypervisor.bind_virq(virq, 0)?, handler)
    }

    /// Handles the events of a port that exists already, such as xenstore's, in place of its former
    /// handler, and unmasks it. [`Errno::EINVAL`] for a number that no port has.
    pub fn register(&self, port: Port, handler: Arc<dyn EventHandler>) -> Result<(), Errno> {
        let index = port.0 as usize;
        if port.0 == 0 || port.0 >= EVTCHN_2L_NR_CHANNELS {
            return Err(Errno::EINVAL);
        }
        {
            let mut handlers = self.handlers.borrow_mut();
            if handlers.len() <= index {
                handlers.resize_with(index + 1, || None);
            }
            handlers[index] = Some(handler);
        }
        self.bits.unmask(port);
        Ok(())
    }

    fn register_new(&self, port: Port, handler: Arc<dyn EventHandler>) -> Result<Port, Errno> {
        match self.register(port, handler) {
            Ok(()) => Ok(port),
            Err(error) => {
                let _ = self.hypervisor.close_port(port);
                Err(error)
            }
        }
    }

    /// Closes a port and forgets its handler, which hears of no event after this.
    pub fn close(&self, port: Port) -> Result<(), Errno> {
        if port.0 >= EVTCHN_2L_NR_CHANNELS {
            return Err(Errno::EINVAL);
        }
        self.bits.mask(port);
        let handler = self.handlers.borrow_mut().get_mut(port.0 as usize).and_then(Option::take);
        let closed = self.hypervisor.close_port(port);
        self.bits.clear(port);
        drop(handler);
        closed
    }

    /// Sends an event.
    #[inline]
    pub fn send(&self, port: Port) -> Result<(), Errno> {
        self.hypervisor.send(port)
    }

    /// Holds a port's events back. They stay pending.
    pub fn mask(&self, port: Port) {
        if port.0 < EVTCHN_2L_NR_CHANNELS {
            self.bits.mask(port);
        }
    }

    /// Lets a port's events through again, those that were held back included.
    pub fn unmask(&self, port: Port) {
        if port.0 < EVTCHN_2L_NR_CHANNELS {
            self.bits.unmask(port);
        }
    }

    /// Whether [`dispatch`](EventChannels::dispatch) would find something: to be asked with
    /// interrupts off, before the CPU is halted.
    pub fn is_pending(&self) -> bool {
        self.bits.is_pending()
    }

    /// Calls the handlers of the ports that have events, at most [`BUDGET`] of them, and returns
    /// whether more may be waiting. It allocates nothing. An event on a port without a handler masks
    /// that port.
    pub fn dispatch(&self) -> bool {
        self.bits.dispatch(BUDGET, |port| {
            // A copy of the pointer, not a borrow: a waker may do anything.
            let handler = self.handlers.borrow().get(port.0 as usize).cloned().flatten();
            match handler {
                Some(handler) => handler.raise(),
                None => self.bits.mask(port),
            }
        })
    }
}

/// The bits in the shared info page. Xen sets pending bits at any time; all else is this side's.
struct Bits {
    shared: Shared<'static>,
    /// Where the next dispatch begins, so that no port waits for ever behind busier ones.
    next_word: Cell<u32>,
}

impl Bits {
    fn mask_all(&self) {
        for word in 0..WORDS {
            self.shared.store_u64(MASK + 8 * word, u64::MAX, SeqCst);
        }
    }

    fn place(port: Port) -> (usize, u64) {
        (8 * (port.0 as usize / 64), 1 << (port.0 % 64))
    }

    fn mask(&self, port: Port) {
        let (word, bit) = Self::place(port);
        self.shared.atomic_u64(MASK + word).fetch_or(bit, SeqCst);
    }

    fn clear(&self, port: Port) {
        let (word, bit) = Self::place(port);
        self.shared.atomic_u64(PENDING + word).fetch_and(!bit, SeqCst);
    }

    /// Xen announces only events that come after the mask is gone; earlier ones are announced here.
    fn unmask(&self, port: Port) {
        let (word, bit) = Self::place(port);
        self.shared.atomic_u64(MASK + word).fetch_and(!bit, SeqCst);
        if self.shared.load_u64(PENDING + word, SeqCst) & bit != 0 {
            self.announce(1 << (port.0 / 64));
        }
    }

    /// Sets selector bits, and the flag by which Xen interrupts this CPU's next halt.
    fn announce(&self, words: u64) {
        self.shared.atomic_u64(SELECTOR).fetch_or(words, SeqCst);
        self.shared.store_u8(UPCALL_PENDING, 1, SeqCst);
    }

    fn is_pending(&self) -> bool {
        self.shared.load_u64(SELECTOR, SeqCst) != 0
    }

    fn dispatch(&self, budget: usize, mut raise: impl FnMut(Port)) -> bool {
        let mut left = budget;
        // The flag goes first: an event that comes after it sets it again.
        self.shared.store_u8(UPCALL_PENDING, 0, SeqCst);
        let mut words = self.shared.atomic_u64(SELECTOR).swap(0, SeqCst);
        let start = self.next_word.get();
        while words != 0 {
            // The first word at `start` or behind it, in a circle.
            let word = (words.rotate_right(start).trailing_zeros() + start) % WORDS as u32;
            words &= !(1 << word);
            let offset = 8 * word as usize;
            let mask = self.shared.load_u64(MASK + offset, Relaxed);
            let mut events = self.shared.load_u64(PENDING + offset, SeqCst) & !mask;
            while events != 0 {
                if left == 0 {
                    self.next_word.set(word);
                    self.announce(words | 1 << word);
                    return true;
                }
                left -= 1;
                let bit = events & events.wrapping_neg();
                events &= !bit;
                // The bit goes before the handler is called: an event during it is a new one.
                self.shared.atomic_u64(PENDING + offset).fetch_and(!bit, SeqCst);
                raise(Port(word * 64 + bit.trailing_zeros()));
            }
            self.next_word.set((word + 1) % WORDS as u32);
        }
        self.is_pending()
    }
}

#[cfg(test)]
mod tests;
