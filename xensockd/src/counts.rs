//! How many of each thing exist at this moment, for the report that SIGUSR1 asks for.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

/// Counts the tickets that exist.
#[derive(Clone, Default)]
pub struct Counter(Rc<Cell<usize>>);

impl Counter {
    /// A ticket for a thing that now exists; the thing keeps it for as long as it does.
    pub fn ticket(&self) -> Ticket {
        self.0.set(self.0.get() + 1);
        Ticket(self.clone())
    }

    /// How many tickets exist.
    pub fn get(&self) -> usize {
        self.0.get()
    }
}

/// One more in its [`Counter`] until it is dropped.
pub struct Ticket(Counter);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

/// What the daemon holds.
#[derive(Clone, Default)]
pub struct Counts {
    /// Devices of guests that are connected.
    pub guests: Counter,
    /// Sockets of all guests, listeners among them.
    pub sockets: Counter,
    /// Mappings of guests' memory: one for a command ring, two for a connection (one in draft 1).
    pub mappings: Counter,
    /// Event channels.
    pub ports: Counter,
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
    fn a_thing_that_is_gone_is_counted_no_more() {
        let counts = Counts::default();
        let (first, _second) = (counts.sockets.ticket(), counts.sockets.ticket());
        assert_eq!(counts.to_string(), "guests=0 sockets=2 mappings=0 ports=0");
        drop(first);
        assert_eq!(counts.sockets.get(), 1);
    }
}
