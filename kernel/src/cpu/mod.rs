//! The processor: its segments, its exceptions, its sleep.

pub mod exception_text;
#[allow(unsafe_code, reason = "stores registers")]
pub mod registers;

#[cfg(target_os = "none")]
#[allow(unsafe_code, reason = "sets up the interrupt table; shares symbols with assembly")]
pub mod exceptions;
#[cfg(target_os = "none")]
#[allow(unsafe_code, reason = "loads segment registers and the task state segment")]
mod segments;

#[cfg(target_os = "none")]
pub use segments::init as init_segments;
