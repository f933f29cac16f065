//! A part of the physical address space behind all memory, where Xen's own pages are made to
//! appear.
//!
//! To put them over RAM would lose that RAM: Xen drops the page that was there.

use super::paging;
use super::ram::{Kind, Region, end_of_everything};
use core::cell::Cell;
use xen::hypercall::FrameSource;
use xen::{Errno, Gfn, PAGE_SIZE, Shared};

/// What one page table maps: the window begins at a multiple of it.
const TABLE: u64 = 512 * PAGE_SIZE as u64;

/// The pages not given away yet.
#[derive(Debug)]
pub struct Window {
    next: Cell<u64>,
    end: u64,
}

impl Window {
    /// Maps a window of so many pages, behind everything in the memory map.
    ///
    /// # Safety
    /// Once, after memory was set up.
    pub unsafe fn open(memory_map: &[Region], pages: u64) -> Window {
        let start = end_of_everything(memory_map).next_multiple_of(TABLE);
        let size = pages.saturating_mul(PAGE_SIZE as u64);
        let window = Region::new(start, size, Kind::Reserved);
        // SAFETY: there is nothing behind the end of the map, so nothing of the kernel's.
        unsafe { paging::map_special(window) };
        Window { next: Cell::new(window.start), end: window.end }
    }
}

// SAFETY: the addresses are mapped to themselves and each is given away once; until Xen's page
// appears there, there is no memory behind them, and the receiver does not touch them.
unsafe impl FrameSource for Window {
    fn take(&self) -> Result<(Gfn, Shared<'static>), Errno> {
        let start = self.next.get();
        if start == self.end {
            return Err(Errno::ENOMEM);
        }
        self.next.set(start + PAGE_SIZE as u64);
        let page = core::ptr::with_exposed_provenance_mut(start as usize);
        // SAFETY: as above; the page stays mapped for ever and nobody makes references to it.
        let shared = unsafe { Shared::new(page, PAGE_SIZE) };
        Ok((Gfn(start / PAGE_SIZE as u64), shared))
    }
}
