//! The resources in use, for the report that SIGUSR1 requests.

use std::fmt;
use std::sync::Arc;
use xen_linux::Count;

/// The counters of the daemon.
#[derive(Clone, Default)]
pub struct Counts {
    /// Connected devices of guests.
    pub guests: Arc<Count>,
    /// Sockets of all guests, including listening ones.
    pub sockets: Arc<Count>,
    /// Mappings of guests' memory (one per command ring, one per data ring) and event channels.
    pub xen: xen_linux::Counts,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guests={} sockets={} {}", self.guests.get(), self.sockets.get(), self.xen)
    }
}
