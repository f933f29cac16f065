//! This domain as the engine's host: grants, event channels and sockets of Linux.

use crate::counts::Counts;
use crate::evtchn::{self, EventChannels};
use crate::gntdev::{self, GntDev};
use crate::runtime::Reactor;
use crate::sockets::Sockets;
use std::sync::Arc;
use std::time::Duration;
use xen::{DomId, Errno, GrantRef, Neighbour, Port, Signal};
use xensock::back::Host;

/// The domain in which the daemon runs.
pub struct Dom0 {
    grants: GntDev,
    events: EventChannels,
    sockets: Sockets,
    reactor: Reactor,
}

impl Dom0 {
    /// Opens the device files for one thread. An error is a line for the user.
    pub fn open(reactor: &Reactor, counts: &Counts, sockets: Sockets) -> Result<Self, String> {
        let grants = GntDev::open(counts.mappings.clone())?;
        let events = EventChannels::open(reactor, counts.ports.clone())?;
        Ok(Dom0 { grants, events, sockets, reactor: reactor.clone() })
    }

    /// The reactor of the thread.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// The event channels, whose [`run`](EventChannels::run) the caller must poll.
    pub fn events(&self) -> &EventChannels {
        &self.events
    }
}

impl Neighbour for Dom0 {
    type Mapping = gntdev::Pages;
    type Channel = evtchn::Channel;

    fn map(&self, owner: DomId, refs: &[GrantRef]) -> Result<gntdev::Pages, Errno> {
        self.grants.map(owner, refs)
    }

    fn bind_port(
        &self,
        owner: DomId,
        port: Port,
        signal: Arc<Signal>,
    ) -> Result<evtchn::Channel, Errno> {
        self.events.bind(owner, port, signal)
    }
}

impl Host for Dom0 {
    type Network = Sockets;

    fn network(&self) -> &Sockets {
        &self.sockets
    }

    async fn sleep(&self, time: Duration) {
        self.reactor.sleep(time).await;
    }

    fn copy(&self, guest: DomId, page: GrantRef, to: &mut [u8]) -> Result<(), Errno> {
        self.grants.copy(guest, page, to)
    }
}
