//! Counts of resources that programs report.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of things that exist now, in all threads, and the most of them that may.
#[derive(Debug)]
pub struct Count {
    now: AtomicU64,
    most: AtomicU64,
}

impl Default for Count {
    /// Nothing yet, and no limit.
    fn default() -> Self {
        Count { now: AtomicU64::new(0), most: AtomicU64::new(u64::MAX) }
    }
}

impl Count {
    /// The number.
    pub fn get(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Sets how many there may be at a time.
    pub fn set_most(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }
}

/// Counts some more until it is dropped.
#[derive(Debug)]
pub struct Ticket {
    count: Arc<Count>,
    many: u64,
}

impl Ticket {
    /// Counts one more in `count`, beyond its limit, too.
    pub fn new(count: Arc<Count>) -> Self {
        count.now.fetch_add(1, Ordering::Relaxed);
        Ticket { count, many: 1 }
    }

    /// Counts one more, unless there are as many as there may be.
    pub fn take(count: &Arc<Count>) -> Option<Self> {
        Ticket::take_many(count, 1)
    }

    /// Counts so many more, or none of them if they are too many.
    pub fn take_many(count: &Arc<Count>, many: u64) -> Option<Self> {
        let most = count.most.load(Ordering::Relaxed);
        let more = |now: u64| now.checked_add(many).filter(|more| *more <= most);
        count.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Ticket { count: count.clone(), many })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.count.now.fetch_sub(self.many, Ordering::Relaxed);
    }
}

/// What a process holds of other domains.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Mappings of other domains' memory, of any number of pages each.
    pub mappings: Arc<Count>,
    /// The pages of these mappings.
    pub pages: Arc<Count>,
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

    #[test]
    fn no_ticket_is_taken_beyond_the_limit() {
        let count = Arc::new(Count::default());
        count.set_most(2);
        let first = Ticket::take(&count).unwrap();
        let _second = Ticket::take(&count).unwrap();
        assert!(Ticket::take(&count).is_none());
        drop(first);
        let third = Ticket::take(&count).unwrap();
        assert_eq!(count.get(), 2);
        drop(third);
        count.set_most(10);
        assert!(Ticket::take_many(&count, 10).is_none());
        drop(Ticket::take_many(&count, 9).unwrap());
        assert_eq!(count.get(), 1);
    }
}
