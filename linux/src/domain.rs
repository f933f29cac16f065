//! This domain, as one of its processes uses it.

use crate::counts::Counts;
use crate::evtchn::{BoundPort, EventChannels};
use crate::gntdev::{GntDev, MappedPages};
use crate::runtime::Reactor;
use crate::xenstored::{self, Reader, Writer};
use futures_util::future::{Either, select};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use xen::xenstore::{self, Store};
use xen::{DomId, Errno, GrantRef, Neighbour, Port, Signal};

/// The domain in which this process runs: other domains' pages and ports, and xenstore. Clones are
/// handles to the same open files.
#[derive(Clone)]
pub struct Domain {
    grants: Rc<GntDev>,
    events: EventChannels,
    store: Store,
}

/// Raises the signals of a domain's events, and moves the bytes of its connection to xenstored.
pub struct Driver {
    events: EventChannels,
    store: xenstore::Driver<Reader, Writer>,
}

impl Domain {
    /// Opens Xen's device files and connects to xenstored, for the thread of this reactor. Mappings
    /// and ports are counted in `counts`. An error is a line for the user.
    pub fn open(reactor: &Reactor, counts: &Counts) -> Result<(Self, Driver), String> {
        let grants = Rc::new(GntDev::open(counts)?);
        let events = EventChannels::open(reactor, counts.ports.clone())?;
        let (reader, writer) = xenstored::connect(reactor)?;
        let (store, driver) = xenstore::connect(reader, writer);
        let driver = Driver { events: events.clone(), store: driver };
        Ok((Domain { grants, events, store }, driver))
    }

    /// The client of xenstore. A path without a leading `/` begins at this domain's home.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Copies the first bytes of a page that `owner` granted, without mapping it; at most a page.
    /// [`Errno::EFAULT`] if the grant cannot be used.
    pub fn copy(&self, owner: DomId, page: GrantRef, to: &mut [u8]) -> Result<(), Errno> {
        self.grants.copy(owner, page, to)
    }
}

impl Neighbour for Domain {
    type Mapping = MappedPages;
    type Channel = BoundPort;

    /// [`Errno::EFAULT`] if a grant cannot be mapped: Linux does not report the hypervisor's
    /// reason.
    fn map(&self, owner: DomId, refs: &[GrantRef]) -> Result<MappedPages, Errno> {
        self.grants.map(owner, refs)
    }

    fn bind_port(&self, owner: DomId, port: Port, signal: Arc<Signal>) -> Result<BoundPort, Errno> {
        self.events.bind(owner, port, signal)
    }

    /// Linux does this also if the process is killed, and keeps the port bound for it. A kernel
    /// before 5.17 sends the event before it clears the byte.
    fn set_unmap_notify(
        &self,
        mapping: &MappedPages,
        offset: usize,
        channel: &BoundPort,
    ) -> Result<(), Errno> {
        mapping.set_unmap_notify(offset, channel.number())
    }
}

impl Driver {
    /// Runs until one of the files fails, and returns a line for the user. The domain is of no use
    /// then.
    pub async fn run(self) -> String {
        let events = pin!(self.events.run());
        match select(pin!(self.store.run()), events).await {
            Either::Left((error, _)) => format!(
                "the connection to xenstored was lost: {error}; start it, then this program"
            ),
            Either::Right((error, _)) => format!("event channels failed: {error}"),
        }
    }
}
