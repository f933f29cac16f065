//! The guest's memory: which there is, who may do what with it, and who has it.

pub mod ram;

#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
pub mod image;
#[cfg(target_os = "none")]
pub mod pages;
#[cfg(target_os = "none")]
pub mod paging;
#[cfg(target_os = "none")]
pub mod window;

#[cfg(target_os = "none")]
pub use heap::{HeapFigures, figures as heap_figures};
