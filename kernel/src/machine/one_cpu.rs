//! Statics for a machine with one CPU.

/// A value that all code may reach although its type is for one thread: there is only one.
///
/// The guest has one vCPU. What interrupts it is the event upcall, which touches one byte and no Rust
/// value (`cpu/exceptions.S`), and exceptions, from which nothing returns.
#[derive(Debug)]
pub struct OneCpu<T>(T);

// SAFETY: without a second thread, nothing is shared between threads or sent to another. (This module
// is built for the target alone.)
unsafe impl<T> Sync for OneCpu<T> {}
// SAFETY: as above.
unsafe impl<T> Send for OneCpu<T> {}

impl<T> OneCpu<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> OneCpu<T> {
        OneCpu(value)
    }

    /// The value.
    pub fn get(&self) -> &T {
        &self.0
    }
}
