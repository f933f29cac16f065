//! Counts of resources that programs report.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of things that exist now, in all threads.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts one more until it is dropped.
#[derive(Debug)]
pub struct Ticket(Arc<Count>);

impl Ticket {
    /// Counts one more in `count`.
    pub fn new(count: Arc<Count>) -> Self {
        count.0.fetch_add(1, Ordering::Relaxed);
        Ticket(count)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a process holds of other domains.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Mappings of other domains' memory, of any number of pages each.
    pub mappings: Arc<Count>,
    /// Bound event channels.
    pub ports: Arc<Count>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mappings={} ports={}", self.mappings.get(), self.ports.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_counts_until_it_is_dropped() {
        let counts = Counts::default();
        let (first, _second) =
            (Ticket::new(counts.ports.clone()), Ticket::new(counts.ports.clone()));
        assert_eq!(counts.to_string(), "mappings=0 ports=2");
        drop(first);
        assert_eq!(counts.ports.get(), 1);
    }
}
