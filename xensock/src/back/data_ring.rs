//! The data rings of a guest: the pages and event channels that it offered.

use super::host::{Channel, Host, Limits, Mapping};
use crate::ring::Notify;
use crate::wire::{Layout, Protocol, Region, RingGrants, RingOffer};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use xen::{DomId, Errno, GrantRef, Signal};

/// The most rings that stay mapped for the guest to use again.
const PARKED: usize = 16;

/// The data rings of a guest. Bounds the pages that are mapped.
pub(super) struct Rings<'h, H: Host> {
    host: &'h H,
    guest: DomId,
    protocol: Protocol,
    limits: Limits,
    /// The number of mapped pages.
    pages: Rc<Cell<usize>>,
    /// Rings that the guest will use again, the latest one last.
    parked: RefCell<VecDeque<(RingOffer, DataRing<H>)>>,
}

impl<'h, H: Host> Rings<'h, H> {
    pub(super) fn new(host: &'h H, guest: DomId, protocol: Protocol, limits: Limits) -> Self {
        Rings { host, guest, protocol, limits, pages: Rc::default(), parked: RefCell::default() }
    }

    /// Maps the pages and binds the event channel of `offer`, unless they are parked.
    pub(super) fn attach(&self, offer: &RingOffer) -> Result<DataRing<H>, Errno> {
        if let Some(ring) = self.take_parked(offer)
            && ring.memory.is_current(self.protocol)
        {
            return Ok(ring);
        }
        let memory = self.map(&offer.grants)?;
        let signal = Arc::new(Signal::new());
        let channel = self.host.bind_port(self.guest, offer.port, signal.clone())?;
        Ok(DataRing { memory, channel: EventChannel { channel, signal } })
    }

    /// Maps the pages of a ring. [`Errno::EINVAL`] for an order that the guest may not use,
    /// [`Errno::ENOMEM`] beyond its limit of pages.
    pub(super) fn map(&self, grants: &RingGrants) -> Result<RingMemory<H>, Errno> {
        let Rings { host, guest, protocol, limits, .. } = self;
        let max_order = protocol.max_order(limits.max_ring_order);
        match grants {
            RingGrants::Indexes(page) => {
                let one = self.take_pages(1)?;
                let indexes = host.map(*guest, &[*page])?;
                let listed = protocol.dialect.read_ring(indexes.shared(), max_order)?;
                let layout = protocol.layout(listed.0)?;
                let rest = self.take_pages(listed.1.len())?;
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
                let all = self.take_pages(grants.len())?;
                let pages = Pages::Together(host.map(*guest, grants)?);
                Ok(RingMemory { pages, layout, _shares: [Some(all), None] })
            }
        }
    }

    /// Reserves pages that are about to be mapped.
    fn take_pages(&self, count: usize) -> Result<PageShare, Errno> {
        let mut all = self.pages.get().saturating_add(count);
        while all > self.limits.pages {
            // Parked rings give way to rings in use.
            let parked = self.parked.borrow_mut().pop_front();
            drop(parked.ok_or(Errno::ENOMEM)?);
            all = self.pages.get().saturating_add(count);
        }
        self.pages.set(all);
        Ok(PageShare { all: self.pages.clone(), count })
    }

    /// Keeps the ring of a released connection mapped: the guest will use it again.
    pub(super) fn park(&self, offer: RingOffer, ring: DataRing<H>) {
        let mut parked = self.parked.borrow_mut();
        parked.push_back((offer, ring));
        if parked.len() > PARKED {
            parked.pop_front();
        }
    }

    /// Takes the parked ring of this offer. Drops parked rings that share only the pages or only
    /// the event channel with it: the guest has reused them for another ring.
    fn take_parked(&self, offer: &RingOffer) -> Option<DataRing<H>> {
        let mut parked = self.parked.borrow_mut();
        let shares = |other: &RingOffer| other.port == offer.port || other.grants == offer.grants;
        let mut found = None;
        while let Some(at) = parked.iter().position(|(other, _)| shares(other)) {
            let (other, ring) = parked.remove(at)?;
            if other == *offer {
                found = Some(ring);
            }
        }
        found
    }
}

/// A share of the pages that a guest may have mapped, given back when dropped.
struct PageShare {
    all: Rc<Cell<usize>>,
    count: usize,
}

impl Drop for PageShare {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.count);
    }
}

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
    fn is_current(&self, protocol: Protocol) -> bool {
        match &self.pages {
            Pages::Apart { indexes, listed, .. } => {
                protocol.dialect.read_ring(indexes.shared(), listed.0).as_ref() == Ok(listed)
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
