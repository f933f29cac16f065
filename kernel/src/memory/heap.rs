//! The heap, for small objects. It takes chunks of pages as needed, and frees empty ones.

use super::pages;
use arrayvec::ArrayVec;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use linked_list_allocator::Heap;
use spin::Mutex;
use xen::PAGE_SIZE;

/// A chunk has at least this many pages.
const CHUNK: usize = 64;

/// The most chunks. Above half of that, new chunks are larger.
const MAX_CHUNKS: usize = 128;

/// Room for the allocator's own data in a chunk for a single object.
const OVERHEAD: usize = 64;

struct Chunks {
    // The order of chunks does not matter.
    chunks: ArrayVec<Heap, MAX_CHUNKS>,
    figures: HeapFigures,
}

/// The heap's state, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapFigures {
    /// In use.
    pub used: usize,
    /// In use or free. More is taken from the free pages when needed.
    pub total: usize,
    /// The most that was ever in use.
    pub high_water: usize,
    /// How often something was allocated, ever.
    pub allocations: u64,
}

struct Global(Mutex<Chunks>);

#[global_allocator]
static HEAP: Global = Global(Mutex::new(Chunks {
    chunks: ArrayVec::new_const(),
    figures: HeapFigures { used: 0, total: 0, high_water: 0, allocations: 0 },
}));

/// The heap's state.
pub fn figures() -> HeapFigures {
    HEAP.0.lock().figures
}

impl Chunks {
    fn alloc(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let found = self.chunks.iter_mut().find_map(|chunk| Self::take(chunk, layout));
        let (object, bytes) = found.or_else(|| Self::take(self.grow(layout)?, layout))?;
        let figures = &mut self.figures;
        figures.used += bytes;
        figures.high_water = figures.high_water.max(figures.used);
        figures.allocations = figures.allocations.wrapping_add(1);
        Some(object)
    }

    /// Allocates from one chunk. Also returns the number of bytes that this took.
    fn take(chunk: &mut Heap, layout: Layout) -> Option<(NonNull<u8>, usize)> {
        let before = chunk.used();
        let object = chunk.allocate_first_fit(layout).ok()?;
        Some((object, chunk.used() - before))
    }

    fn grow(&mut self, layout: Layout) -> Option<&mut Heap> {
        if self.chunks.is_full() {
            return None;
        }
        let needed = layout.size().checked_add(layout.align() + OVERHEAD)?.div_ceil(PAGE_SIZE);
        let half = MAX_CHUNKS / 2;
        let usual = CHUNK << (self.chunks.len().saturating_sub(half) / (half / 8)).min(8);
        // If memory is short, a chunk for this object alone may still fit.
        let (start, count) = [usual.max(needed), needed]
            .into_iter()
            .find_map(|count| Some((pages::alloc(count)?, count)))?;
        // SAFETY: the pages are whole, mapped, and belong to this chunk until `dealloc` frees
        // them.
        let chunk = unsafe { Heap::new(start.as_ptr(), count * PAGE_SIZE) };
        self.figures.total += chunk.size();
        self.chunks.push(chunk);
        self.chunks.last_mut()
    }

    /// # Safety
    /// As for [`GlobalAlloc::dealloc`].
    unsafe fn dealloc(&mut self, object: NonNull<u8>, layout: Layout) {
        let owns = |chunk: &Heap| (chunk.bottom()..chunk.top()).contains(&object.as_ptr());
        let index = self.chunks.iter().position(owns).expect("the object was allocated here");
        let chunk = &mut self.chunks[index];
        let before = chunk.used();
        // SAFETY: the object lies in this chunk; the caller guarantees the rest.
        unsafe { chunk.deallocate(object, layout) };
        self.figures.used -= before - chunk.used();
        if chunk.used() == 0 && self.chunks.len() > 1 {
            let chunk = self.chunks.swap_remove(index);
            self.figures.total -= chunk.size();
            let start = NonNull::new(chunk.bottom()).expect("a chunk has an address");
            // SAFETY: `grow` allocated exactly these pages, and they contain no object.
            unsafe { pages::free(start, chunk.size() / PAGE_SIZE) };
        }
    }
}

// SAFETY: objects come from `linked_list_allocator`, which honours layouts. Chunks do not
// overlap, and a chunk's pages are freed only when it is empty.
unsafe impl GlobalAlloc for Global {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().alloc(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        let object = NonNull::new(object).expect("an object has an address");
        // SAFETY: the caller guarantees the same.
        unsafe { self.0.lock().dealloc(object, layout) };
    }
}
