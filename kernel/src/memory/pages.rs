//! The allocator of whole pages, from which the heap and frontends take memory.
//!
//! Sizes and addresses are multiples of a page, so freed pieces always merge with their
//! neighbours, and the heap's small objects do not fragment this memory.
//!
//! The last [`RESERVE`] pages are for the heap alone. Users that can do without memory call
//! [`alloc_beyond_reserve`], which fails while the kernel's own objects still have room.

use super::ram::{MAX_FREE, Region};
use arrayvec::ArrayVec;
use core::alloc::Layout;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use linked_list_allocator::Heap;
use spin::Mutex;
use xen::hypercall::FrameSource;
use xen::{Errno, Gfn, PAGE_SIZE, Shared};

/// Pages for the heap alone: 512 KiB. With a few hundred connections, the kernel's own objects
/// (requests to xenstore, messages, wakers, timers) take far less.
pub const RESERVE: usize = 128;

struct Pages {
    pieces: ArrayVec<Heap, MAX_FREE>,
    free: usize,
    least_free: usize,
}

// No interrupt handler allocates (cpu/upcall.S), so the lock never blocks.
static PAGES: Mutex<Pages> =
    Mutex::new(Pages { pieces: ArrayVec::new_const(), free: 0, least_free: usize::MAX });

/// The numbers of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFigures {
    /// Free pages.
    pub free: usize,
    /// Pages in use and free pages.
    pub all: usize,
    /// The fewest free pages ever.
    pub least_free: usize,
}

impl Pages {
    fn alloc(&mut self, count: usize) -> Option<NonNull<u8>> {
        let layout = layout(count).filter(|layout| layout.size() > 0)?;
        let start = self.pieces.iter_mut().find_map(|heap| heap.allocate_first_fit(layout).ok())?;
        self.free -= count;
        self.least_free = self.least_free.min(self.free);
        Some(start)
    }

    /// # Safety
    /// As for [`free`].
    unsafe fn free(&mut self, start: NonNull<u8>, count: usize) {
        let layout = layout(count).expect("these pages were allocated");
        let owner = self.pieces.iter_mut().find(|heap| contains(heap, start.as_ptr()));
        let owner = owner.expect("the pages came from here");
        // SAFETY: the pages came from this piece; the caller guarantees the rest.
        unsafe { owner.deallocate(start, layout) };
        self.free += count;
    }
}

/// Adds whole pages: a new piece, an extension at a piece's end, or pages that were
/// [allocated](alloc()) here before.
///
/// # Safety
/// The memory must be mapped for reading and writing, and nothing else may use it from now on.
pub unsafe fn add(region: Region) {
    let mut pages = PAGES.lock();
    let (mut start, end) = (region.start as usize as *mut u8, region.end as usize as *mut u8);
    if let Some(piece) = pages.pieces.iter().find(|heap| contains(heap, start)) {
        let within = piece.top().min(end);
        let count = (within.addr() - start.addr()) / PAGE_SIZE;
        let first = NonNull::new(start).expect("pages have an address");
        // SAFETY: the pages came from this piece and are not in use (guaranteed by the caller).
        unsafe { pages.free(first, count) };
        start = within;
    }
    let bytes = end.addr() - start.addr();
    if bytes > 0 {
        match pages.pieces.iter_mut().find(|heap| heap.top() == start) {
            // SAFETY: guaranteed by the caller; the memory begins at the piece's end.
            Some(piece) => unsafe { piece.extend(bytes) },
            // SAFETY: guaranteed by the caller. `ram::free` finds no more pieces than fit.
            None => pages.pieces.push(unsafe { Heap::new(start, bytes) }),
        }
        pages.free += bytes / PAGE_SIZE;
        // Memory that is added at boot was never in use.
        if pages.least_free == usize::MAX || pages.least_free + bytes / PAGE_SIZE == pages.free {
            pages.least_free = pages.free;
        }
    }
}

fn contains(heap: &Heap, address: *mut u8) -> bool {
    (heap.bottom()..heap.top()).contains(&address)
}

fn layout(count: usize) -> Option<Layout> {
    Layout::from_size_align(count.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()
}

/// Allocates `count` contiguous pages, with arbitrary contents.
pub fn alloc(count: usize) -> Option<NonNull<u8>> {
    PAGES.lock().alloc(count)
}

/// The same, unless that would use the [`RESERVE`].
pub fn alloc_beyond_reserve(count: usize) -> Option<NonNull<u8>> {
    let mut pages = PAGES.lock();
    (pages.free >= RESERVE.saturating_add(count)).then(|| pages.alloc(count))?
}

/// Frees pages.
///
/// # Safety
/// They came from [`alloc()`] with the same count, and nothing uses them any more.
pub unsafe fn free(start: NonNull<u8>, count: usize) {
    // SAFETY: the caller guarantees the same.
    unsafe { PAGES.lock().free(start, count) };
}

/// The numbers of pages.
pub fn figures() -> PageFigures {
    let pages = PAGES.lock();
    let all = pages.pieces.iter().map(|heap| heap.size() / PAGE_SIZE).sum();
    PageFigures { free: pages.free, all, least_free: pages.least_free.min(pages.free) }
}

/// Gives free pages to the event channels, for queues that Xen writes to.
#[derive(Clone, Copy, Debug)]
pub struct EventPages;

// SAFETY: `alloc` returns each page once, this one is never freed, and memory is identity-mapped.
unsafe impl FrameSource for EventPages {
    fn take(&self) -> Result<(Gfn, Shared<'static>), Errno> {
        let start = alloc(1).ok_or(Errno::ENOMEM)?.expose_provenance().get();
        // SAFETY: as above, and no references to the page are made.
        let page = unsafe { Shared::new(with_exposed_provenance_mut(start), PAGE_SIZE) };
        Ok((Gfn((start / PAGE_SIZE) as u64), page))
    }
}
