//! A connection's data ring: the pages and the event channel that the guest offered.

use super::engine::{Engine, PageShare};
use super::host::{Channel, Host, Mapping};
use crate::ring::Notify;
use crate::wire::{Layout, Region, RingGrants, RingOffer};
use alloc::sync::Arc;
use alloc::vec::Vec;
use xen::Signal;
use xen::{Errno, GrantRef};

/// The pages of a data ring. Dropping it unmaps them.
pub(super) struct RingMemory<H: Host> {
    pages: Pages<H::Mapping>,
    pub(super) layout: Layout,
    _shares: [Option<PageShare>; 2],
}

enum Pages<M> {
    /// The indexes page, and the data pages that it listed.
    Apart { indexes: M, data: M, listed: (u32, Vec<GrantRef>) },
    /// All pages, one after the other.
    Together(M),
}

impl<H: Host> RingMemory<H> {
    /// Maps the pages of a ring. [`Errno::EINVAL`] for an order that the guest may not use.
    pub(super) fn map(engine: &Engine<'_, H>, grants: &RingGrants) -> Result<Self, Errno> {
        let Engine { host, guest, protocol, limits, .. } = engine;
        let max_order = protocol.max_order(limits.max_ring_order);
        match grants {
            RingGrants::Indexes(page) => {
                let one = engine.take_pages(1)?;
                let indexes = host.map(*guest, &[*page])?;
                let listed = protocol.dialect.read_ring(indexes.shared(), max_order)?;
                let layout = protocol.layout(listed.0)?;
                let rest = engine.take_pages(listed.1.len())?;
                let data = host.map(*guest, &listed.1)?;
                let pages = Pages::Apart { indexes, data, listed };
                Ok(RingMemory { pages, layout, _shares: [Some(one), Some(rest)] })
            }
            RingGrants::Region(grants) => {
                let order = grants.len().checked_ilog2().ok_or(Errno::EINVAL)?;
                let layout = protocol.layout(order)?;
                if layout.pages != grants.len() || order > max_order {
                    return Err(Errno::EINVAL);
                }
                let all = engine.take_pages(grants.len())?;
                let pages = Pages::Together(host.map(*guest, grants)?);
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

    /// Whether the indexes page still lists the pages that are mapped.
    fn is_current(&self, engine: &Engine<'_, H>) -> bool {
        match &self.pages {
            Pages::Apart { indexes, listed, .. } => {
                let now = engine.protocol.dialect.read_ring(indexes.shared(), listed.0);
                now.as_ref() == Ok(listed)
            }
            Pages::Together(_) => true,
        }
    }
}

/// A bound event channel and the signal that its events raise. Dropping it unbinds it.
pub(super) struct EventChannel<H: Host> {
    channel: H::Channel,
    pub(super) signal: Arc<Signal>,
}

impl<H: Host> EventChannel<H> {
    /// Sends an event to the guest, if one is due.
    pub(super) fn notify(&self, notify: Notify) {
        if notify.is_due() {
            self.channel.notify();
        }
    }
}

/// A data ring and its event channel.
pub(super) struct DataRing<H: Host> {
    pub(super) memory: RingMemory<H>,
    pub(super) channel: EventChannel<H>,
}

impl<H: Host> DataRing<H> {
    /// Maps the pages and binds the event channel of `offer`, unless they are parked.
    pub(super) fn attach(engine: &Engine<'_, H>, offer: &RingOffer) -> Result<Self, Errno> {
        if let Some(ring) = engine.parked(offer)
            && ring.memory.is_current(engine)
        {
            return Ok(ring);
        }
        let memory = RingMemory::map(engine, &offer.grants)?;
        let signal = Arc::new(Signal::new());
        let channel = engine.host.bind_port(engine.guest, offer.port, signal.clone())?;
        Ok(DataRing { memory, channel: EventChannel { channel, signal } })
    }
}
