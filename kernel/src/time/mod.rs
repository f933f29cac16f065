//! Time for `embassy-time`: how late it is, and which tasks to wake when.

pub mod timers;

#[cfg(target_os = "none")]
mod driver;

#[cfg(target_os = "none")]
pub use driver::{expire, next_deadline, note_timer, waiting};
