//! The data rings of a guest: the pages and event channels that it offered.

use super::account::{Account, Share};
use super::host::{Host, Limit, Ring, RingUsage};
use crate::ring::Notify;
use crate::wire::{Direction, Layout, Protocol, RING_LIST, Region, RingGrants, RingOffer};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::Ordering::Relaxed;
use xen::{Channel, DomId, Errno, GrantRef, Mapping, Signal};

/// The most rings that stay mapped for the guest to use again.
const PARKED: usize = 16;

/// The data rings of a guest. Bounds the pages that are mapped.
pub(super) struct Rings<'h, H: Host> {
    host: &'h H,
    guest: DomId,
    protocol: Protocol,
    account: Rc<Account>,
    /// Rings that the guest will use again, the latest one last.
    parked: RefCell<VecDeque<(RingOffer, DataRing<H>)>>,
}

impl<'h, H: Host> Rings<'h, H> {
    pub(super) fn new(host: &'h H, guest: DomId, protocol: Protocol, account: Rc<Account>) -> Self {
        Rings { host, guest, protocol, account, parked: RefCell::default() }
    }

    /// Maps the pages and binds the event channel of `offer`, unless they are parked.
    pub(super) fn attach(&self, offer: &RingOffer) -> Result<DataRing<H>, Errno> {
        if let Some(ring) = self.take_parked(offer)
            && ring.memory.is_current(self.protocol, &offer.grants)
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
    pub(super) fn map(&self, grants: &RingGrants) -> Result<Rc<RingMemory<H>>, Errno> {
        let Rings { host, guest, protocol, account, .. } = self;
        let max_order = protocol.max_order(account.limits().max_ring_order);
        let (order, refs) = match grants {
            RingGrants::Indexes(page) => {
                let mut list = [0; RING_LIST];
                host.copy(*guest, *page, &mut list)?;
                let (order, mut refs) = protocol.dialect.read_ring(&list, max_order)?;
                refs.insert(0, *page);
                (order, refs)
            }
            RingGrants::Region(refs) => {
                (refs.len().checked_ilog2().ok_or(Errno::EINVAL)?, refs.to_vec())
            }
        };
        let layout = protocol.layout(order)?;
        if layout.pages != refs.len() || order > max_order {
            return Err(Errno::EINVAL);
        }
        let share = self.take_pages(refs.len())?;
        let pages = host.map(*guest, &refs)?;
        Ok(Rc::new(RingMemory { pages, layout, order, refs, _share: share }))
    }

    /// Reserves pages that are about to be mapped.
    fn take_pages(&self, count: usize) -> Result<Share, Errno> {
        loop {
            if let Some(share) = self.account.take_pages(count) {
                return Ok(share);
            }
            // Parked rings give way to rings in use.
            let parked = self.parked.borrow_mut().pop_front();
            if parked.is_none() {
                self.host.limited(self.guest, Limit::Pages);
                return Err(Errno::ENOMEM);
            }
        }
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

/// The pages of a data ring, mapped one after the other. Dropping it unmaps them, so what only
/// looks at them has a weak reference.
pub(super) struct RingMemory<H: Host> {
    pages: H::Mapping,
    pub(super) layout: Layout,
    order: u32,
    refs: Vec<GrantRef>,
    _share: Share,
}

impl<H: Host> RingMemory<H> {
    /// The ring's memory.
    pub(super) fn region(&self) -> Region<'_> {
        self.layout.split(self.pages.shared())
    }

    /// Whether these grants, which are those that the ring was mapped by, still stand for the same
    /// pages: the guest may have changed the list in the indexes page.
    fn is_current(&self, protocol: Protocol, grants: &RingGrants) -> bool {
        if let RingGrants::Region(_) = grants {
            return true;
        }
        let mut list = [0; RING_LIST];
        self.region().indexes.read(0, &mut list);
        let listed = protocol.dialect.read_ring(&list, self.order);
        listed.is_ok_and(|(order, data)| order == self.order && data == self.refs[1..])
    }
}

impl<H: Host> Ring for RingMemory<H> {
    fn usage(&self) -> RingUsage {
        let Layout { input, output, .. } = self.layout;
        let indexes = self.region().indexes;
        let used = |of: Direction| {
            let [prod, cons] = [of.prod, of.cons].map(|at| indexes.load_u32(at, Relaxed));
            // The guest may write anything.
            prod.wrapping_sub(cons).min(of.size)
        };
        RingUsage {
            in_size: input.size,
            in_used: used(input),
            out_size: output.size,
            out_used: used(output),
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
    pub(super) memory: Rc<RingMemory<H>>,
    pub(super) channel: EventChannel<H>,
}
