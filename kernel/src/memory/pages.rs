//! Whole pages: all free memory lies here until the heap or a frontend takes some.
//!
//! Sizes and addresses are multiples of a page, so pieces given back always fit together again with
//! their neighbours, and small objects (the heap's) never stand between them.
//!
//! The last [`RESERVE`] pages are the heap's alone: whoever can do without memory takes it by
//! [`alloc_beyond_reserve`] and is refused while the kernel's own small objects still have room.

use super::ram::{MAX_FREE, Region};
use arrayvec::ArrayVec;
use core::alloc::Layout;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use linked_list_allocator::Heap;
use spin::Mutex;
use xen::hypercall::FrameSource;
use xen::{Errno, Gfn, PAGE_SIZE, Shared};

/// Pages that only the heap may take: 512 KiB. Beside a few hundred connections the kernel's own
/// objects (requests to xenstore, messages, wakers, timers) are far from that.
pub const RESERVE: usize = 128;

struct Pages {
    pieces: ArrayVec<Heap, MAX_FREE>,
    free: usize,
    least_free: usize,
}

// No interrupt handler allocates (cpu/exceptions.S), so the lock is never wanted while it is held.
static PAGES: Mutex<Pages> =
    Mutex::new(Pages { pieces: ArrayVec::new_const(), free: 0, least_free: usize::MAX });

/// How many pages there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFigures {
    /// That nobody uses.
    pub free: usize,
    /// In use or free.
    pub all: usize,
    /// The least that were ever free.
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
        let owner = owner.expect("pages are given back to those who made them");
        // SAFETY: the piece that contains them made them; the rest is the caller's promise.
        unsafe { owner.deallocate(start, layout) };
        self.free += count;
    }
}

/// Adds memory: a piece of its own, more of the piece that ends where it begins, or pages that were
/// [allocated](alloc) and now lie there again. Whole pages.
///
/// # Safety
/// The memory must be mapped for reading and writing, and nobody else may use it ever after.
pub unsafe fn add(region: Region) {
    let mut pages = PAGES.lock();
    let (mut start, end) = (region.start as usize as *mut u8, region.end as usize as *mut u8);
    if let Some(piece) = pages.pieces.iter().find(|heap| contains(heap, start)) {
        let within = piece.top().min(end);
        let count = (within.addr() - start.addr()) / PAGE_SIZE;
        let first = NonNull::new(start).expect("pages have an address");
        // SAFETY: the caller's promise: they were this piece's and nobody has them.
        unsafe { pages.free(first, count) };
        start = within;
    }
    let bytes = end.addr() - start.addr();
    if bytes > 0 {
        match pages.pieces.iter_mut().find(|heap| heap.top() == start) {
            // SAFETY: the caller's promise; the memory begins where the piece ends.
            Some(piece) => unsafe { piece.extend(bytes) },
            // SAFETY: the caller's promise. There are no more pieces than `ram::free` finds.
            None => pages.pieces.push(unsafe { Heap::new(start, bytes) }),
        }
        pages.free += bytes / PAGE_SIZE;
        // What is added at boot was never missing.
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

/// Allocates `count` pages, contiguous, with whatever was in them.
pub fn alloc(count: usize) -> Option<NonNull<u8>> {
    PAGES.lock().alloc(count)
}

/// Allocates `count` pages likewise, unless that would touch the [`RESERVE`].
pub fn alloc_beyond_reserve(count: usize) -> Option<NonNull<u8>> {
    let mut pages = PAGES.lock();
    (pages.free >= RESERVE.saturating_add(count)).then(|| pages.alloc(count))?
}

/// Gives pages back.
///
/// # Safety
/// They came from [`alloc`] with the same count, and nobody uses them ever after.
pub unsafe fn free(start: NonNull<u8>, count: usize) {
    // SAFETY: the caller's promise is the same.
    unsafe { PAGES.lock().free(start, count) };
}

/// How many pages there are.
pub fn figures() -> PageFigures {
    let pages = PAGES.lock();
    let all = pages.pieces.iter().map(|heap| heap.size() / PAGE_SIZE).sum();
    PageFigures { free: pages.free, all, least_free: pages.least_free.min(pages.free) }
}

/// Gives free pages to the event channels, whose queues Xen keeps there.
#[derive(Clone, Copy, Debug)]
pub struct EventPages;

// SAFETY: `alloc` hands out each page once, and this one is never given back; memory is mapped to
// itself.
unsafe impl FrameSource for EventPages {
    fn take(&self) -> Result<(Gfn, Shared<'static>), Errno> {
        let start = alloc(1).ok_or(Errno::ENOMEM)?.expose_provenance().get();
        // SAFETY: as above, and nobody makes references to it.
        let page = unsafe { Shared::new(with_exposed_provenance_mut(start), PAGE_SIZE) };
        Ok((Gfn((start / PAGE_SIZE) as u64), page))
    }
}
