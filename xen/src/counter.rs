//! Counting what happens, for statistics.

use core::cell::Cell;

/// A count, for a single thread. It wraps rather than panics.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Adds `amount`.
    pub fn add(&self, amount: usize) {
        self.0.set(self.0.get().wrapping_add(amount as u64));
    }

    /// Subtracts `amount`.
    pub fn sub(&self, amount: usize) {
        self.0.set(self.0.get().wrapping_sub(amount as u64));
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}
