//! A connection's data ring, as the guest offered it: mapped, checked, its channel bound.

use super::guest::{Guest, PageShare};
use super::{Channel, Host, Mapping};
use crate::ring::Notify;
use crate::wire::{Layout, Region, RingGrants, RingOffer};
use alloc::sync::Arc;
use alloc::vec::Vec;
use xen::Signal;
use xen::{Errno, GrantRef};

/// The pages of a data ring. Dropping it unmaps them.
pub(super) struct RingMemory<H: Host> {
    pages: Pages<H::Mapping>,
    /// Where things are in them.
    pub(super) layout: Layout,
    _shares: [Option<PageShare>; 2],
}

enum Pages<M> {
    /// The indexes page, and the data pages that it named.
    Apart { indexes: M, data: M, named: (u32, Vec<GrantRef>) },
    /// All pages, one after the other.
    Together(M),
}

impl<H: Host> RingMemory<H> {
    /// Maps what `grants` names.
    pub(super) fn map(guest: &Guest<'_, H>, grants: &RingGrants) -> Result<Self, Errno> {
        let Guest { host, id, protocol, limits, .. } = guest;
        match grants {
            RingGrants::Indexes(page) => {
                let one = guest.take_pages(1)?;
                let indexes = host.map(*id, &[*page])?;
                let named = protocol.dialect.read_ring(indexes.shared(), limits.max_ring_order)?;
                let layout = protocol.layout(named.0)?;
                let rest = guest.take_pages(named.1.len())?;
                let data = host.map(*id, &named.1)?;
                let pages = Pages::Apart { indexes, data, named };
                Ok(RingMemory { pages, layout, _shares: [Some(one), Some(rest)] })
            }
            RingGrants::Region(grants) => {
                let order = grants.len().checked_ilog2().ok_or(Errno::EINVAL)?;
                let layout = protocol.layout(order)?;
                if layout.pages != grants.len() {
                    return Err(Errno::EINVAL);
                }
                let all = guest.take_pages(grants.len())?;
                let pages = Pages::Together(host.map(*id, grants)?);
                Ok(RingMemory { pages, layout, _shares: [Some(all), None] })
            }
        }
    }

    /// The ring's memory.
    pub(super) fn region(&self) -> Region<'_> {
        match &self.pages {
            Pages::Apart { indexes, data, .. } => {
                Region { indexes: indexes.shared(), data: data.shared() }
            }
            Pages::Together(pages) => self.layout.split(pages.shared()),
        }
    }

    /// Whether the guest still names the pages that are mapped.
    fn is_current(&self, guest: &Guest<'_, H>) -> bool {
        match &self.pages {
            Pages::Apart { indexes, named, .. } => {
                let now =
                    guest.protocol.dialect.read_ring(indexes.shared(), guest.limits.max_ring_order);
                now.as_ref() == Ok(named)
            }
            Pages::Together(_) => true,
        }
    }
}

/// A connection's event channel. Dropping it unbinds it.
pub(super) struct Line<H: Host> {
    channel: H::Channel,
    /// What its events raise.
    pub(super) signal: Arc<Signal>,
}

impl<H: Host> Line<H> {
    /// Sends an event to the guest, if one is due.
    pub(super) fn notify(&self, notify: Notify) {
        if notify.is_due() {
            self.channel.notify();
        }
    }
}

/// A data ring and its channel.
pub(super) struct DataRing<H: Host> {
    pub(super) memory: RingMemory<H>,
    pub(super) line: Line<H>,
}

impl<H: Host> DataRing<H> {
    /// Maps and binds what `offer` names, if that is not so already.
    pub(super) fn attach(guest: &Guest<'_, H>, offer: &RingOffer) -> Result<Self, Errno> {
        if let Some(ring) = guest.parked(offer)
            && ring.memory.is_current(guest)
        {
            return Ok(ring);
        }
        let memory = RingMemory::map(guest, &offer.grants)?;
        let signal = Arc::new(Signal::new());
        let channel = guest.host.bind_port(guest.id, offer.port, signal.clone())?;
        Ok(DataRing { memory, line: Line { channel, signal } })
    }
}
