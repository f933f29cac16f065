//! Ranges of physical addresses above all memory, in which Xen's own pages are mapped, and those
//! that other domains granted.
//!
//! Mapping them over RAM would lose that RAM: Xen frees the page that was there.

use super::paging;
use super::ram::{Kind, Region, end_of_everything};
use super::runs::Runs;
use core::cell::Cell;
use xen::hypercall::FrameSource;
use xen::{Errno, Gfn, PAGE_SIZE, Shared};

/// The size of a large page. The windows are mapped by such pages: no table is needed for each.
const LARGE: u64 = 512 * PAGE_SIZE as u64;

/// The most bytes of other domains' pages that are mapped at a time: 64 MiB.
const FOREIGN: u64 = 64 << 20;

/// Frames for Xen's own pages that are not in use yet.
#[derive(Debug)]
pub struct Window {
    next: Cell<u64>,
    end: u64,
}

/// Maps a window of at least `pages` pages above everything in the memory map, for Xen's own pages,
/// and another one for those of other domains. Returns the first one, and the other one's frames.
///
/// # Safety
/// Called once, after memory was set up.
pub unsafe fn open(memory_map: &[Region], pages: u64) -> (Window, Runs) {
    let start = end_of_everything(memory_map).next_multiple_of(LARGE);
    let own = pages.saturating_mul(PAGE_SIZE as u64).next_multiple_of(LARGE);
    let window = Region::new(start, own, Kind::Reserved);
    let foreign = Region::new(window.end, FOREIGN, Kind::Reserved);
    // SAFETY: there is no memory above the map, so none of the kernel's.
    unsafe { paging::map_large(Region { end: foreign.end, ..window }) };
    let frame = |address| address / PAGE_SIZE as u64;
    let frames = Runs::new(frame(foreign.start)..frame(foreign.end));
    (Window { next: Cell::new(window.start), end: window.end }, frames)
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
