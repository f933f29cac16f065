//! Counting what happens, for statistics.

use core::cell::Cell;
use core::ops::Deref;

/// A count, for a single thread. It wraps rather than panics.
///
/// ```
/// use xen::{Counted, Counter};
///
/// let connections = Counter::default();
/// let open = Counted::new(&connections);
/// assert_eq!(connections.get(), 1);
/// drop(open);
/// assert_eq!(connections.get(), 0);
/// ```
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

/// Counts as one in a [`Counter`] until it is dropped. It has a reference to the counter, or an
/// `Rc`.
#[derive(Debug)]
pub struct Counted<C: Deref<Target = Counter>>(C);

impl<C: Deref<Target = Counter>> Counted<C> {
    /// Adds one to `counter`.
    pub fn new(counter: C) -> Self {
        counter.add(1);
        Counted(counter)
    }
}

impl<C: Deref<Target = Counter>> Drop for Counted<C> {
    fn drop(&mut self) {
        self.0.sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;

    #[test]
    fn a_thing_counts_until_it_is_dropped() {
        let counter = Rc::new(Counter::default());
        let (first, second) = (Counted::new(counter.clone()), Counted::new(&*counter));
        assert_eq!(counter.get(), 2);
        drop(first);
        assert_eq!(counter.get(), 1);
        drop(second);
        assert_eq!(counter.get(), 0);
    }
}
