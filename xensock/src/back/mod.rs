//! The backend's protocol engine, without I/O of its own.
//!
//! [`serve`] is one guest's device: a future that owns all that the guest has here. It takes commands
//! from the command ring, carries them out through a [`Host`], and moves bytes between sockets and
//! data rings. Dropping it closes every socket, unmaps every page and unbinds every channel.
//!
//! It believes nothing that the guest writes. A command that makes no sense is answered with an
//! error; impossible indexes on a data ring end that connection; impossible indexes on the command
//! ring end the future. What a guest can make it hold is bounded by [`Limits`] and by the slots of
//! the command ring, and what it does at a time is bounded too, so that guests which share an executor
//! with this one get their turns.

mod commands;
mod connection;
mod data_ring;
mod guest;
mod host;
mod passive;
mod pump;
mod socket;

pub use guest::{CommandLink, Violation, serve};
pub use host::{Channel, Host, Mapping, Socket, Stream};

use core::time::Duration;

/// What one guest may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most sockets at a time, listening ones and those being opened or closed among them.
    pub sockets: usize,
    /// The most pages of data rings that are mapped at a time. What a guest may grant does not bound
    /// this: it can offer one page many times.
    pub pages: usize,
    /// The largest order of a data ring, which is made of two to that power of pages.
    pub max_ring_order: u32,
    /// How long a socket that is released may go without sending any of what is left in its ring. Four
    /// times this long is the most it gets in all.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { sockets: 1024, pages: 32768, max_ring_order: 9, linger: Duration::from_secs(30) }
    }
}
