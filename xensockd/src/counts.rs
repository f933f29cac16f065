//! The resources in use, for the report that SIGUSR1 requests.

use std::fmt;
use std::rc::Rc;
use xen::{Counted, Counter};

/// Counts one more until it is dropped.
pub type Ticket = Counted<Rc<Counter>>;

/// The counters of the daemon.
#[derive(Clone, Default)]
pub struct Counts {
    /// Connected devices of guests.
    pub guests: Rc<Counter>,
    /// Sockets of all guests, including listening ones.
    pub sockets: Rc<Counter>,
    /// Mappings of guests' memory: one per command ring, two per connection (one in draft 1).
    pub mappings: Rc<Counter>,
    /// Event channels.
    pub ports: Rc<Counter>,
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
