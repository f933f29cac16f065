//! A range of physical addresses above all memory, in which Xen's own pages are mapped.
//!
//! Mapping them over RAM would lose that RAM: Xen frees the page that was there.

use super::paging;
use super::ram::{Kind, Region, end_of_everything};
use core::cell::Cell;
use xen::hypercall::FrameSource;
use xen::{Errno, Gfn, PAGE_SIZE, Shared};

/// The memory that one page table maps. The window is aligned to it.
const TABLE: u64 = 512 * PAGE_SIZE as u64;

/// The pages that are not in use yet.
#[derive(Debug)]
pub struct Window {
    next: Cell<u64>,
    end: u64,
}

impl Window {
    /// Maps a window of `pages` pages above everything in the memory map.
    ///
    /// # Safety
    /// Called once, after memory was set up.
    pub unsafe fn open(memory_map: &[Region], pages: u64) -> Window {
        let start = end_of_everything(memory_map).next_multiple_of(TABLE);
        let size = pages.saturating_mul(PAGE_SIZE as u64);
        let window = Region::new(start, size, Kind::Reserved);
        // SAFETY: there is no memory above the map, so none of the kernel's.
        unsafe { paging::map_special(window) };
        Window { next: Cell::new(window.start), end: window.end }
    }
}

// SAFETY: the addresses are identity-mapped and each is returned once. There is no memory behind
// them until Xen maps its page, and the caller does not access them before.
unsafe impl FrameSource for Window {
    fn take(&self) -> Result<(Gfn, Shared<'static>), Errno> {
        let start = self.next.get();
        if start == self.end {
            return Err(Errno::ENOMEM);
        }
        self.next.set(start + PAGE_SIZE as u64);
        let page = core::ptr::with_exposed_provenance_mut(start as usize);
        // SAFETY: as above; the page stays mapped and no references to it are made.
        let shared = unsafe { Shared::new(page, PAGE_SIZE) };
        Ok((Gfn(start / PAGE_SIZE as u64), shared))
    }
}
