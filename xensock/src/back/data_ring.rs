//! A connection's data ring, as the guest offered it: mapped, checked, its channel bound.

use super::guest::{Guest, PageShare};
use super::{Channel, Host, Mapping};
use crate::Signal;
use crate::ring::Notify;
use crate::wire::{Layout, Region, RingGrants, RingOffer};
use alloc::sync::Arc;
use xen::Errno;

/// A data ring. Dropping it unmaps its pages and unbinds its channel.
pub(super) struct DataRing<H: Host> {
    pages: Pages<H::Mapping>,
    channel: H::Channel,
    /// What the channel's events raise.
    pub(super) signal: Arc<Signal>,
    /// Where things are in its pages.
    pub(super) layout: Layout,
    _shares: [Option<PageShare>; 2],
}

enum Pages<M> {
    /// The indexes page, and the data pages that it named.
    Apart { indexes: M, data: M },
    /// All pages, one after the other.
    Together(M),
}

impl<H: Host> DataRing<H> {
    /// Maps and binds what `offer` names.
    pub(super) fn attach(guest: &Guest<'_, H>, offer: &RingOffer) -> Result<Self, Errno> {
        let Guest { host, id, dialect, limits, .. } = guest;
        let (pages, layout, shares) = match &offer.grants {
            RingGrants::Indexes(page) => {
                let one = guest.take_pages(1)?;
                let indexes = host.map(*id, &[*page])?;
                let (order, grants) = dialect.read_ring(indexes.shared(), limits.max_ring_order)?;
                let layout = dialect.layout(order)?;
                let rest = guest.take_pages(grants.len())?;
                let data = host.map(*id, &grants)?;
                (Pages::Apart { indexes, data }, layout, [Some(one), Some(rest)])
            }
            RingGrants::Region(grants) => {
                let order = grants.len().checked_ilog2().ok_or(Errno::EINVAL)?;
                let layout = dialect.layout(order)?;
                if layout.pages != grants.len() {
                    return Err(Errno::EINVAL);
                }
                let all = guest.take_pages(grants.len())?;
                (Pages::Together(host.map(*id, grants)?), layout, [Some(all), None])
            }
        };
        let signal = Arc::new(Signal::new());
        let channel = host.bind_port(*id, offer.port, signal.clone())?;
        Ok(DataRing { pages, channel, signal, layout, _shares: shares })
    }

    /// The ring's memory.
    pub(super) fn region(&self) -> Region<'_> {
        match &self.pages {
            Pages::Apart { indexes, data } => {
                Region { indexes: indexes.shared(), data: data.shared() }
            }
            Pages::Together(pages) => self.layout.split(pages.shared()),
        }
    }

    /// Sends an event to the guest, if one is due.
    pub(super) fn notify(&self, notify: Notify) {
        if notify.is_due() {
            self.channel.notify();
        }
    }
}
