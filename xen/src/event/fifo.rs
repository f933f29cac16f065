//! The FIFO ABI: a word for each port, and a queue of ports for each priority.
//!
//! A queue is a list: the control block names its first port, and each port's word the next one.
//! Xen appends a port (sets `LINKED`, and the link of the queue's last word) when it has an event
//! and is not masked. The guest takes ports from the front: it clears `LINKED` and reads the link
//! in one step. So Xen either appends before that step, or finds the queue empty and writes a new
//! first port.
//!
//! In a linked word the guest clears `LINKED` together with the link, clears `PENDING`, sets and
//! clears `MASKED`, and changes nothing else.

use crate::abi::event_channel::*;
use crate::hypercall::{FrameSource, Hypervisor, Operations};
use crate::{Errno, Gfn, PAGE_SIZE, Port, Shared};
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell, RefCell};
use core::mem::offset_of;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

pub(crate) const READY: usize = offset_of!(EvtchnFifoControlBlock, ready);
pub(crate) const HEAD: usize = offset_of!(EvtchnFifoControlBlock, head);
pub(crate) const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
pub(crate) const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
pub(crate) const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
pub(crate) const BUSY: u32 = 1 << EVTCHN_FIFO_BUSY;

const WORD: usize = size_of::<u32>();
/// Event words in a page.
pub(crate) const PER_PAGE: usize = PAGE_SIZE / WORD;

/// How often unmasking is tried before Xen is called to do it.
const ATTEMPTS: usize = 4;

/// A page that Xen writes to.
type Page = (Gfn, Shared<'static>);

/// The queues, and how far they are read.
#[derive(Default)]
pub(super) struct Fifo {
    control: OnceCell<Page>,
    array: RefCell<Vec<Page>>,
    /// A page for the array: Xen was out of memory when it was offered.
    spare: Cell<Option<Page>>,
    /// The next port of each queue that was read in part; 0 if the control block has it.
    heads: [Cell<u32>; EVTCHN_FIFO_MAX_QUEUES],
    /// A bit for each queue known to have ports.
    ready: Cell<u32>,
}

/// A port's word.
#[derive(Clone, Copy)]
struct Word {
    page: Shared<'static>,
    at: usize,
}

impl Word {
    /// Removes the port from the front of its queue, and returns the next one; 0 if it was the
    /// last.
    fn unlink(self) -> u32 {
        let keep = !(LINKED | EVTCHN_FIFO_LINK_MASK);
        // Atomic (on x86 a compare-and-exchange loop, which Xen disturbs a few times at most):
        // either the link that Xen sets is seen here, or Xen's attempt to set it fails.
        self.page.fetch_and_u32(self.at, keep, AcqRel) & EVTCHN_FIFO_LINK_MASK
    }

    /// Clears the event of an unmasked port. Returns whether it had one.
    fn take(self) -> bool {
        let word = self.page.load_u32(self.at, Acquire);
        // Only this CPU masks and unmasks, so that does not change in between.
        let is_due = word & (PENDING | MASKED) == PENDING;
        if is_due {
            self.clear();
        }
        is_due
    }

    fn clear(self) {
        self.page.fetch_and_u32(self.at, !PENDING, AcqRel);
    }

    fn mask(self) {
        self.page.fetch_or_u32(self.at, MASKED, AcqRel);
    }

    /// Unmasks a port without an event. False if Xen has to do it: an event is pending, which Xen
    /// must queue, or Xen is changing the word.
    fn unmask(self) -> bool {
        let mut word = self.page.load_u32(self.at, Acquire);
        for _ in 0..ATTEMPTS {
            if word & MASKED == 0 {
                return true;
            }
            if word & (PENDING | BUSY) != 0 {
                return false;
            }
            match self.page.compare_exchange_u32(self.at, word, word & !MASKED, AcqRel) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }
}

impl Fifo {
    /// Switches to this ABI, with empty queues and no ports. If this fails, the domain still has
    /// the 2-level ABI.
    pub(super) fn switch(
        &self,
        hypervisor: &impl Hypervisor,
        pages: &impl FrameSource,
    ) -> Result<(), Errno> {
        let (gfn, control) = match self.control.get() {
            Some(page) => *page,
            None => {
                let page = pages.take()?;
                *self.control.get_or_init(|| page)
            }
        };
        self.ready.set(0);
        control.store_u32(READY, 0, Relaxed);
        for (queue, head) in self.heads.iter().enumerate() {
            head.set(0);
            control.store_u32(HEAD + WORD * queue, 0, Relaxed);
        }
        // SAFETY: the source gave the page away, and only these queues use it.
        unsafe { hypervisor.init_event_control(gfn) }
    }

    /// Gives Xen the pages of the event array that it had before a [`switch`](Fifo::switch), at
    /// least one.
    pub(super) fn give_array(
        &self,
        hypervisor: &impl Hypervisor,
        pages: &impl FrameSource,
    ) -> Result<(), Errno> {
        self.array.borrow().iter().try_for_each(|page| Self::add(*page, hypervisor))?;
        // The first one has the toolstack's ports.
        self.grow_to(Port(0), hypervisor, pages)
    }

    /// Appends a page to Xen's event array.
    fn add((gfn, page): Page, hypervisor: &impl Hypervisor) -> Result<(), Errno> {
        // All ports start masked, as they have no handlers.
        for at in (0..page.len()).step_by(WORD) {
            page.store_u32(at, MASKED, Relaxed);
        }
        // SAFETY: the source gave the page away, and only these queues use it.
        unsafe { hypervisor.expand_event_array(gfn) }
    }

    /// Makes the array large enough for a port.
    pub(super) fn grow_to(
        &self,
        port: Port,
        hypervisor: &impl Hypervisor,
        pages: &impl FrameSource,
    ) -> Result<(), Errno> {
        while self.array.borrow().len() <= port.0 as usize / PER_PAGE {
            let page = self.spare.take().map_or_else(|| pages.take(), Ok)?;
            if let Err(error) = Self::add(page, hypervisor) {
                // Xen may have memory at the next attempt.
                self.spare.set(Some(page));
                return Err(error);
            }
            self.array.borrow_mut().push(page);
        }
        Ok(())
    }

    fn word(&self, port: Port) -> Option<Word> {
        let (_, page) = *self.array.borrow().get(port.0 as usize / PER_PAGE)?;
        Some(Word { page, at: port.0 as usize % PER_PAGE * WORD })
    }

    pub(super) fn mask(&self, port: Port) {
        if let Some(word) = self.word(port) {
            word.mask();
        }
    }

    /// Clears a port's event. The port may stay in a queue: Xen allocates its number again only
    /// after it was taken from there.
    pub(super) fn clear(&self, port: Port) {
        if let Some(word) = self.word(port) {
            word.clear();
        }
    }

    /// Xen queues events of unmasked ports alone. Unmasking a port with an event is left to Xen,
    /// which queues it.
    pub(super) fn unmask(&self, port: Port, hypervisor: &impl Hypervisor) {
        let Some(word) = self.word(port) else { return };
        if !word.unmask()
            && let Err(error) = hypervisor.unmask_port(port)
        {
            log::debug!("cannot unmask port {}: {error}", port.0);
        }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.ready.get() != 0
            || self.control.get().is_some_and(|(_, control)| control.load_u32(READY, SeqCst) != 0)
    }

    /// Takes at most `budget` ports from the queues, the highest priority first, and calls `raise`
    /// for unmasked ones with events. Returns whether there may be more.
    pub(super) fn dispatch(&self, budget: usize, mut raise: impl FnMut(Port)) -> bool {
        let Some((_, control)) = self.control.get() else { return false };
        let mut queues = self.ready.get() | control.swap_u32(READY, 0, SeqCst);
        self.ready.set(queues);
        let mut left = budget;
        while queues != 0 {
            // An equal share of the rest, so that one busy queue does not starve later ones.
            let share = left.div_ceil(queues.count_ones() as usize);
            let queue = queues.trailing_zeros() as usize;
            queues &= queues - 1;
            left -= self.consume(*control, queue, share, &mut raise);
        }
        self.is_pending()
    }

    /// Takes at most `most` ports from a queue that has some, and returns their number.
    fn consume(
        &self,
        control: Shared<'static>,
        queue: usize,
        most: usize,
        raise: &mut impl FnMut(Port),
    ) -> usize {
        let head = &self.heads[queue];
        for taken in 0..most {
            if head.get() == 0 {
                head.set(control.load_u32(HEAD + WORD * queue, Acquire));
            }
            let port = Port(head.get());
            // An invalid number ends the queue.
            let word = self.word(port);
            head.set(word.map_or(0, Word::unlink));
            let is_last = head.get() == 0;
            if is_last {
                self.ready.set(self.ready.get() & !(1 << queue));
            }
            // The event is cleared before the handler is called: a later one sets it again.
            if word.is_some_and(Word::take) {
                raise(port);
            }
            if is_last {
                return taken + 1;
            }
        }
        most
    }
}
