//! Memory: the memory map, page tables, allocators.

pub(crate) mod ram;
pub(crate) mod runs;

#[allow(unsafe_code, reason = "the global allocator")]
mod heap;
#[allow(unsafe_code, reason = "the linker's symbols, and the parts of the image between them")]
pub(crate) mod image;
#[allow(unsafe_code, reason = "lends the loader's modules to apps")]
pub mod modules;
#[allow(unsafe_code, reason = "hands out and takes back raw pages")]
pub mod pages;
#[allow(unsafe_code, reason = "writes page tables")]
pub(crate) mod paging;
#[allow(unsafe_code, reason = "addresses at which Xen's own pages and other domains' pages appear")]
pub(crate) mod window;

pub use heap::{HeapFigures, figures as heap_figures};

/// Whether an app may allocate `bytes` and leave enough for the kernel. Ask before each large
/// allocation that a peer can cause (a connection, a response): a failed allocation ends the
/// guest.
pub fn has_room(bytes: usize) -> bool {
    let beyond = pages::figures().free.saturating_sub(pages::RESERVE);
    bytes <= beyond.saturating_mul(xen::PAGE_SIZE)
}
