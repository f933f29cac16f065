//! Whole pages: all free memory lies here until the heap or a frontend takes some.
//!
//! Sizes and addresses are multiples of a page, so pieces given back always fit together again with
//! their neighbours, and small objects (the heap's) never stand between them.

use super::ram::{Free, MAX_FREE};
use arrayvec::ArrayVec;
use core::alloc::Layout;
use core::ptr::NonNull;
use linked_list_allocator::Heap;
use spin::Mutex;
use xen::PAGE_SIZE;

// No interrupt handler allocates (cpu/exceptions.S), so the lock is never wanted while it is held.
static PAGES: Mutex<ArrayVec<Heap, MAX_FREE>> = Mutex::new(ArrayVec::new_const());

/// Takes over the free memory.
///
/// # Safety
/// Once. The memory must be mapped for reading and writing, and nobody else may use it ever after.
pub unsafe fn add(free: Free) {
    let mut pieces = PAGES.lock();
    for region in free {
        // SAFETY: the caller's promise.
        let heap = unsafe { Heap::new(region.start as *mut u8, region.len() as usize) };
        pieces.push(heap);
    }
}

fn layout(count: usize) -> Option<Layout> {
    Layout::from_size_align(count.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()
}

/// Allocates `count` pages, contiguous, with whatever was in them.
pub fn alloc(count: usize) -> Option<NonNull<u8>> {
    let layout = layout(count).filter(|layout| layout.size() > 0)?;
    PAGES.lock().iter_mut().find_map(|heap| heap.allocate_first_fit(layout).ok())
}

/// Gives pages back.
///
/// # Safety
/// They came from [`alloc`] with the same count, and nobody uses them ever after.
pub unsafe fn free(start: NonNull<u8>, count: usize) {
    let layout = layout(count).expect("these pages were allocated");
    let mut pieces = PAGES.lock();
    let owner =
        pieces.iter_mut().find(|heap| (heap.bottom()..heap.top()).contains(&start.as_ptr()));
    let owner = owner.expect("pages are given back to those who made them");
    // SAFETY: the piece that contains them made them; the rest is the caller's promise.
    unsafe { owner.deallocate(start, layout) };
}

/// The number of pages: free, and all.
pub fn count() -> (usize, usize) {
    let pieces = PAGES.lock();
    let free: usize = pieces.iter().map(|heap| heap.free()).sum();
    let all: usize = pieces.iter().map(|heap| heap.size()).sum();
    (free / PAGE_SIZE, all / PAGE_SIZE)
}
