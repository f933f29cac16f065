//! The processor: its segments, its exceptions, its sleep.

pub mod exception_text;
pub mod registers;

#[cfg(target_os = "none")]
pub mod exceptions;
#[cfg(target_os = "none")]
mod segments;

#[cfg(target_os = "none")]
pub use segments::init as init_segments;
