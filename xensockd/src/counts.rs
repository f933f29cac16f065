//! The resources in use, for the report that SIGUSR1 requests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of things that exist now, in all threads.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts one more until it is dropped.
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

/// The counters of the daemon.
#[derive(Clone, Default)]
pub struct Counts {
    /// Connected devices of guests.
    pub guests: Arc<Count>,
    /// Sockets of all guests, including listening ones.
    pub sockets: Arc<Count>,
    /// Mappings of guests' memory: one per command ring, one per data ring.
    pub mappings: Arc<Count>,
    /// Event channels.
    pub ports: Arc<Count>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "guests={} sockets={} mappings={} ports={}",
            self.guests.get(),
            self.sockets.get(),
            self.mappings.get(),
            self.ports.get()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_counts_until_it_is_dropped() {
        let counts = Counts::default();
        let (first, _second) =
            (Ticket::new(counts.sockets.clone()), Ticket::new(counts.sockets.clone()));
        assert_eq!(counts.to_string(), "guests=0 sockets=2 mappings=0 ports=0");
        drop(first);
        assert_eq!(counts.sockets.get(), 1);
    }
}
