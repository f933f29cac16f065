//! The guest's memory: which there is, who may do what with it, and who has it.

pub mod ram;

#[cfg(target_os = "none")]
#[allow(unsafe_code, reason = "gives free pages to Xen, and takes them back")]
pub mod balloon;
#[cfg(target_os = "none")]
#[allow(unsafe_code, reason = "the global allocator")]
mod heap;
#[cfg(target_os = "none")]
#[allow(unsafe_code, reason = "the linker's symbols, and the parts of the image between them")]
pub mod image;
#[cfg(target_os = "none")]
#[allow(unsafe_code, reason = "hands out and takes back raw pages")]
pub mod pages;
#[cfg(target_os = "none")]
#[allow(unsafe_code, reason = "writes page tables")]
pub mod paging;
#[cfg(target_os = "none")]
#[allow(unsafe_code, reason = "addresses at which Xen's own pages appear")]
pub mod window;

#[cfg(target_os = "none")]
pub use heap::{HeapFigures, figures as heap_figures};

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

/// Whether an app may allocate `bytes` and leave the kernel what it needs for itself. What takes much
/// memory for somebody else (a connection, an answer) asks first, and refuses when there is no room:
/// an allocation that finds no memory at all ends the guest.
#[cfg(target_os = "none")]
pub fn has_room(bytes: usize) -> bool {
    let beyond = pages::figures().free.saturating_sub(pages::RESERVE);
    bytes <= beyond.saturating_mul(xen::PAGE_SIZE)
}

/// On a host there always is.
#[cfg(not(target_os = "none"))]
pub fn has_room(_bytes: usize) -> bool {
    true
}

/// A text with room for `bytes`, unless [memory is short](has_room).
pub fn text(bytes: usize) -> Option<String> {
    let mut text = String::new();
    (has_room(bytes) && text.try_reserve_exact(bytes).is_ok()).then_some(text)
}

/// `size` zeroes, unless [memory is short](has_room).
pub fn buffer(size: usize) -> Option<Box<[u8]>> {
    let mut buffer = Vec::new();
    if !has_room(size) || buffer.try_reserve_exact(size).is_err() {
        return None;
    }
    buffer.resize(size, 0);
    Some(buffer.into_boxed_slice())
}
