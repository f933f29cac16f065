//! The 2-level ABI: a bit for each port, which Xen sets and the guest clears, and a selector bit
//! for each word of them.

use crate::abi::event_channel::EVTCHN_2L_NR_CHANNELS;
use crate::abi::xen::{SharedInfo, VcpuInfo};
use crate::shared::fence;
use crate::{Port, Shared};
use core::cell::Cell;
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

pub(crate) const UPCALL_PENDING: usize = offset_of!(VcpuInfo, evtchn_upcall_pending);
pub(crate) const SELECTOR: usize = offset_of!(VcpuInfo, evtchn_pending_sel);
pub(crate) const PENDING: usize = offset_of!(SharedInfo, evtchn_pending);
pub(crate) const MASK: usize = offset_of!(SharedInfo, evtchn_mask);
const WORDS: usize = 64;

/// The bits in the shared info page. Xen sets pending bits at any time; the guest does all else.
/// Numbers that no port can have are ignored.
pub(super) struct TwoLevel {
    shared: Shared<'static>,
    /// Where the next dispatch begins, so that busy ports do not starve others.
    next_word: Cell<u32>,
}

/// The place of a port's bits: the offset of a word in either array, and the bit in it.
pub(crate) fn place(port: Port) -> Option<(usize, u64)> {
    (port.0 < EVTCHN_2L_NR_CHANNELS).then(|| (8 * (port.0 as usize / 64), 1 << (port.0 % 64)))
}

impl TwoLevel {
    pub(super) fn new(shared_info: Shared<'static>) -> TwoLevel {
        TwoLevel { shared: shared_info, next_word: Cell::new(0) }
    }

    pub(super) fn mask_all(&self) {
        for word in 0..WORDS {
            self.shared.store_u64(MASK + 8 * word, u64::MAX, SeqCst);
        }
    }

    pub(super) fn mask(&self, port: Port) {
        if let Some((word, bit)) = place(port) {
            self.shared.fetch_or_u64(MASK + word, bit, SeqCst);
        }
    }

    /// Clears a port's event.
    pub(super) fn clear(&self, port: Port) {
        if let Some((word, bit)) = place(port) {
            self.shared.fetch_and_u64(PENDING + word, !bit, SeqCst);
        }
    }

    /// Xen announces events that it sends to an unmasked port. Earlier ones are announced here.
    pub(super) fn unmask(&self, port: Port) {
        let Some((word, bit)) = place(port) else { return };
        self.shared.fetch_and_u64(MASK + word, !bit, SeqCst);
        // Xen sets the pending bit and then reads the mask. So one of the two sides sees the
        // other's change.
        fence(SeqCst);
        if self.shared.load_u64(PENDING + word, Relaxed) & bit != 0 {
            self.announce(1 << (port.0 / 64));
        }
    }

    /// Sets selector bits, and the flag that makes Xen interrupt the CPU's next halt.
    fn announce(&self, words: u64) {
        self.shared.fetch_or_u64(SELECTOR, words, SeqCst);
        self.shared.store_u8(UPCALL_PENDING, 1, SeqCst);
    }

    pub(super) fn is_pending(&self) -> bool {
        self.shared.load_u64(SELECTOR, SeqCst) != 0
    }

    /// Calls `raise` for at most `budget` unmasked ports with events, and returns whether there may
    /// be more.
    pub(super) fn dispatch(&self, budget: usize, mut raise: impl FnMut(Port)) -> bool {
        let mut left = budget;
        let mut words = self.shared.swap_u64(SELECTOR, 0, SeqCst);
        let start = self.next_word.get();
        while words != 0 {
            // The first word from `start` on, wrapping around.
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
                // The bit is cleared before the handler is called: a later event sets it again.
                self.shared.fetch_and_u64(PENDING + offset, !bit, SeqCst);
                raise(Port(word * 64 + bit.trailing_zeros()));
            }
            self.next_word.set((word + 1) % WORDS as u32);
        }
        self.is_pending()
    }
}
