//! Counting what happens, for whoever shows it.

use core::cell::Cell;

/// A count that never panics and never stops: past its end it begins anew. For a single thread.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Counts `amount` more.
    pub fn add(&self, amount: usize) {
        self.0.set(self.0.get().wrapping_add(amount as u64));
    }

    /// Counts `amount` less.
    pub fn sub(&self, amount: usize) {
        self.0.set(self.0.get().wrapping_sub(amount as u64));
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}
