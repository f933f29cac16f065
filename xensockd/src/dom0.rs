//! This domain as the engine's host: its sockets, and what it has of the guests.

use crate::sockets::{Sockets, now};
use std::sync::Arc;
use std::time::Duration;
use xen::{DomId, Errno, GrantRef, Neighbour, Port, Signal};
use xen_linux::{BoundPort, Domain, MappedPages};
use xensock::back::{Host, Limit};

/// The domain in which the daemon runs.
pub struct Dom0 {
    /// The guests' pages and ports.
    pub domain: Domain,
    /// The sockets of Linux.
    pub sockets: Sockets,
}

impl Neighbour for Dom0 {
    type Mapping = MappedPages;
    type Channel = BoundPort;

    fn map(&self, owner: DomId, refs: &[GrantRef]) -> Result<MappedPages, Errno> {
        self.reported(owner, "a ring", self.domain.map(owner, refs))
    }

    fn bind_port(&self, owner: DomId, port: Port, signal: Arc<Signal>) -> Result<BoundPort, Errno> {
        self.reported(owner, "an event channel", self.domain.bind_port(owner, port, signal))
    }
}

impl Dom0 {
    /// The result of a call for a guest. The log gets a line if this domain has no more of what it
    /// needs.
    fn reported<T>(&self, guest: DomId, what: &str, result: Result<T, Errno>) -> Result<T, Errno> {
        result.inspect_err(|error| {
            if let Ok(guest) = self.sockets.guests().get(guest) {
                guest.report_shortage(what, *error);
            }
        })
    }
}

impl Host for Dom0 {
    type Network = Sockets;

    fn network(&self) -> &Sockets {
        &self.sockets
    }

    async fn sleep(&self, time: Duration) {
        self.sockets.reactor().sleep(time).await;
    }

    fn now(&self) -> Duration {
        now()
    }

    fn limited(&self, guest: DomId, limit: Limit) {
        if let Ok(guest) = self.sockets.guests().get(guest) {
            guest.report_limit(limit);
        }
    }

    fn copy(&self, guest: DomId, page: GrantRef, to: &mut [u8]) -> Result<(), Errno> {
        self.reported(guest, "a ring", self.domain.copy(guest, page, to))
    }
}
