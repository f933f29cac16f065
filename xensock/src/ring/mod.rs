//! The rings in shared memory: requests and responses, and the bytes of a connection.
//!
//! The same code serves both ends. Each keeps its own indexes in private memory and only ever publishes
//! them; the peer's are read once per look and checked. What breaks the rules is
//! [`Errno::EPROTO`](xen::Errno::EPROTO): the peer cannot make an index lead out of the ring.

mod command;
mod data;
#[cfg(test)]
#[allow(unsafe_code, reason = "plain memory as shared memory")]
mod properties;

pub use command::{CommandBack, CommandFront};
pub use data::{Consumer, Guess, Producer, copy_in, copy_out, len};

/// Whether the other end must be sent an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a peer that sleeps and gets no event sleeps for ever"]
pub enum Notify {
    /// It may sleep.
    Due,
    /// It will look by itself.
    NotDue,
}

impl Notify {
    /// Whether an event is due.
    pub fn is_due(self) -> bool {
        self == Notify::Due
    }
}
