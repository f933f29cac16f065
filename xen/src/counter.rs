//! Counting what happens, for statistics.

use core::cell::Cell;
use core::ops::Deref;

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

/// Declares a set of [`Counter`]s, and the struct of their values at one moment, whose fields and
/// their documentation are given. `read` takes the values.
///
/// ```
/// xen::counters! {
///     /// What the device has counted.
///     pub struct Statistics, read from pub(crate) struct Counters {
///         /// Bytes received.
///         bytes_in,
///         /// Bytes sent.
///         bytes_out,
///     }
/// }
///
/// let counters = Counters::default();
/// counters.bytes_in.add(100);
/// assert_eq!(counters.read(), Statistics { bytes_in: 100, bytes_out: 0 });
/// ```
#[macro_export]
macro_rules! counters {
    (
        $(#[$about:meta])*
        $visible:vis struct $values:ident, read from $inner:vis struct $counters:ident {
            $($(#[$doc:meta])* $name:ident,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        $visible struct $values {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The live counters.
        #[derive(Debug, Default)]
        $inner struct $counters {
            $($inner $name: $crate::Counter,)*
        }

        impl $counters {
            $inner fn read(&self) -> $values {
                $values { $($name: self.$name.get(),)* }
            }
        }
    };
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
