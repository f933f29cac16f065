//! The pages that the frontend shares: allocated, granted, taken back, kept for the next ring.
//!
//! A page is in exactly one place: in a ring, in a ring that is parked (and that the backend was told to keep
//! mapped), in the pool (granted to nobody), or in quarantine: the backend still has it mapped, so neither it nor its grants can be used again until it lets go.

use super::counters::Counters;
use super::device::Attachment;
use crate::wire::{Layout, Protocol, Region, RingGrants, RingOffer};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use xen::WaitList;
use xen::{DomId, Errno, GrantRef, PAGE_SIZE, Port};
use xen::{Machine, Pages, Signal};

/// Rings whose pages are kept for reuse.
const POOL: usize = 64;

/// Rings that are kept for reuse with their grants and ports, mapped by the backend. Until the session
/// ends nothing but another connection can use them, so they are few.
const PARKED: usize = 8;

/// Pages and the grants of them.
pub(super) struct Granted {
    pub(super) pages: Pages,
    grants: Vec<GrantRef>,
    peer: DomId,
}

impl Granted {
    pub(super) fn grants(&self) -> &[GrantRef] {
        &self.grants
    }
}

/// The pages of a data ring.
pub(super) struct RingPages {
    granted: Granted,
    layout: Layout,
    order: u32,
}

impl RingPages {
    pub(super) fn region(&self) -> Region<'_> {
        self.layout.split(self.granted.pages.shared())
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn order(&self) -> u32 {
        self.order
    }

    /// What the request that opens the ring says of its pages. The indexes must be zero.
    fn offer(&self, protocol: Protocol) -> RingGrants {
        let indexes = self.region().indexes;
        protocol.dialect.offer_ring(indexes, self.order, self.granted.grants())
    }
}

/// A connection's data ring and its event channel.
pub(super) struct Ring {
    pub(super) pages: RingPages,
    pub(super) port: Port,
    pub(super) signal: Arc<Signal>,
}

/// A place for a ring to be parked in, until the ring is there or the value is dropped.
pub(super) struct Berth(Rc<Cell<usize>>);

impl Drop for Berth {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// All memory and all ports of a frontend.
pub(super) struct Memory<M: Machine> {
    machine: M,
    counters: Rc<Counters>,
    /// Pages of closed rings, which only this domain ever shared with them.
    pool: RefCell<Vec<(DomId, Pages)>>,
    quarantine: RefCell<Vec<Granted>>,
    /// Rings that the backend keeps mapped for their next connection, with their session.
    parked: RefCell<Vec<(u32, Ring)>>,
    /// Places for parked rings that are taken and still empty.
    berths: Rc<Cell<usize>>,
    /// Rings that the backend may map at any time, as it has not answered.
    kept: RefCell<Vec<Ring>>,
    /// Told when something enters the quarantine.
    pub(super) quarantined: WaitList,
}

impl<M: Machine> Memory<M> {
    pub(super) fn new(machine: M, counters: Rc<Counters>) -> Self {
        Memory {
            machine,
            counters,
            pool: RefCell::default(),
            quarantine: RefCell::default(),
            parked: RefCell::default(),
            berths: Rc::default(),
            kept: RefCell::default(),
            quarantined: WaitList::default(),
        }
    }

    /// Opens a data ring and its event channel: what a CONNECT or an ACCEPT offers.
    pub(super) fn open_ring(
        &self,
        at: &Attachment,
        order: u32,
    ) -> Result<(Ring, RingOffer), Errno> {
        if let Some(ring) = self.unpark(at, order) {
            ring.pages.region().indexes.zero();
            let grants = ring.pages.offer(at.protocol);
            let port = ring.port;
            return Ok((ring, RingOffer { grants, port }));
        }
        let (pages, grants) = self.open_pages(at, order)?;
        let signal = Arc::new(Signal::new());
        match self.open_port(at.backend, signal.clone()) {
            Ok(port) => Ok((Ring { pages, port, signal }, RingOffer { grants, port })),
            Err(error) => {
                self.close_pages(pages);
                Err(error)
            }
        }
    }

    /// Opens a data ring for a connection that has an event channel already: what a RESIZE offers.
    pub(super) fn open_pages(
        &self,
        at: &Attachment,
        order: u32,
    ) -> Result<(RingPages, RingGrants), Errno> {
        let layout = at.protocol.layout(order)?;
        let pages = self.pages(at.backend, &layout)?;
        let pages = RingPages { granted: self.grant(at.backend, pages)?, layout, order };
        let grants = pages.offer(at.protocol);
        Ok((pages, grants))
    }

    /// Closes a ring that the backend was told to release, or never heard of.
    pub(super) fn close_ring(&self, ring: Ring) {
        self.close_port(ring.port);
        self.close_pages(ring.pages);
    }

    /// Closes the pages of a ring that the backend has left for another.
    pub(super) fn close_pages(&self, pages: RingPages) {
        self.withdraw(pages.granted);
    }

    /// A place for one more ring that is kept as it is for the next connection, if there is one.
    pub(super) fn berth(&self, at: &Attachment) -> Option<Berth> {
        let free = PARKED.saturating_sub(self.parked.borrow().len() + self.berths.get());
        if free == 0 || !at.protocol.dialect.can_reuse_rings() {
            return None;
        }
        self.berths.set(self.berths.get() + 1);
        Some(Berth(self.berths.clone()))
    }

    /// Keeps a ring whose RELEASE has said that it will be used again.
    pub(super) fn park(&self, _berth: Berth, at: &Attachment, ring: Ring) {
        self.counters.parked_rings.add(1);
        self.parked.borrow_mut().push((at.session, ring));
    }

    fn unpark(&self, at: &Attachment, order: u32) -> Option<Ring> {
        let mut parked = self.parked.borrow_mut();
        let fits =
            |(session, ring): &(u32, Ring)| *session == at.session && ring.pages.order == order;
        // The one that was used last is in the caches.
        let at = parked.iter().rposition(fits)?;
        self.counters.parked_rings.sub(1);
        Some(parked.remove(at).1)
    }

    /// Keeps a ring as it is until the session ends: the backend may come to map it.
    pub(super) fn keep(&self, ring: Ring) {
        self.kept.borrow_mut().push(ring);
    }

    /// Closes the rings that were kept for the session, which is over.
    pub(super) fn end_session(&self) {
        for (_, ring) in self.parked.take() {
            self.counters.parked_rings.sub(1);
            self.close_ring(ring);
        }
        for ring in self.kept.take() {
            self.close_ring(ring);
        }
    }

    /// Allocates and grants the single page of a command ring.
    pub(super) fn grant_page(&self, peer: DomId) -> Result<Granted, Errno> {
        let pages = self.machine.alloc(1)?;
        self.counters.pages.add(1);
        self.grant(peer, pages)
    }

    pub(super) fn open_port(&self, peer: DomId, signal: Arc<Signal>) -> Result<Port, Errno> {
        self.machine.open_port(peer, signal)
    }

    pub(super) fn close_port(&self, port: Port) {
        self.machine.close_port(port);
    }

    pub(super) fn notify(&self, port: Port) {
        self.counters.notifications_sent.add(1);
        self.machine.notify(port);
    }

    /// Ends the grants of pages, and keeps the pages for the next ring, or frees them. Those that the
    /// peer still maps go into quarantine.
    pub(super) fn withdraw(&self, mut granted: Granted) {
        if self.revoke(&mut granted) {
            self.pool(granted);
            return;
        }
        self.counters.quarantined_pages.add(granted.pages.count());
        self.quarantine.borrow_mut().push(granted);
        self.quarantined.wake_all();
    }

    /// Whether there is no page in quarantine.
    pub(super) fn quarantine_is_empty(&self) -> bool {
        self.quarantine.borrow().is_empty()
    }

    /// Tries again to end the grants in quarantine.
    pub(super) fn retry_quarantine(&self) {
        for mut granted in self.quarantine.take() {
            if self.revoke(&mut granted) {
                self.counters.quarantined_pages.sub(granted.pages.count());
                self.pool(granted);
            } else {
                self.quarantine.borrow_mut().push(granted);
            }
        }
    }

    /// Frees the pool.
    pub(super) fn drain_pool(&self) {
        for (_, pages) in self.pool.take() {
            self.free(pages);
        }
    }

    /// Zeroed pages for a ring.
    fn pages(&self, peer: DomId, layout: &Layout) -> Result<Pages, Errno> {
        let mut pool = self.pool.borrow_mut();
        let fits =
            |(owner, pages): &(DomId, Pages)| *owner == peer && pages.count() == layout.pages;
        if let Some(at) = pool.iter().rposition(fits) {
            let (_, pages) = pool.swap_remove(at);
            // What the data pages still hold, this same peer has seen: only indexes must be zero.
            pages.shared().slice(layout.indexes_page * PAGE_SIZE, PAGE_SIZE).zero();
            return Ok(pages);
        }
        drop(pool);
        let pages = match self.machine.alloc(layout.pages) {
            Err(Errno::ENOMEM) if !self.pool.borrow().is_empty() => {
                self.drain_pool();
                self.machine.alloc(layout.pages)?
            }
            pages => pages?,
        };
        self.counters.pages.add(pages.count());
        Ok(pages)
    }

    /// Grants all pages, or none.
    fn grant(&self, peer: DomId, pages: Pages) -> Result<Granted, Errno> {
        let count = pages.count();
        let mut granted = Granted { pages, grants: Vec::with_capacity(count), peer };
        for index in 0..count {
            match self.machine.grant(peer, &granted.pages, index) {
                Ok(grant) => granted.grants.push(grant),
                Err(error) => {
                    self.counters.grants.add(granted.grants.len());
                    self.withdraw(granted);
                    return Err(error);
                }
            }
        }
        self.counters.grants.add(count);
        Ok(granted)
    }

    /// Ends as many grants as the peer lets go of; whether that was all.
    fn revoke(&self, granted: &mut Granted) -> bool {
        let before = granted.grants.len();
        granted.grants.retain(|&grant| match self.machine.revoke(grant) {
            Ok(()) => false,
            Err(error) => {
                if error != Errno::EBUSY {
                    log::debug!("revoking grant {} failed: {error}; its page is kept", grant.0);
                }
                true
            }
        });
        self.counters.grants.sub(before - granted.grants.len());
        granted.grants.is_empty()
    }

    fn pool(&self, granted: Granted) {
        if self.machine.is_short() {
            self.drain_pool();
            return self.free(granted.pages);
        }
        let mut pool = self.pool.borrow_mut();
        if pool.len() < POOL && granted.pages.count() > 1 {
            pool.push((granted.peer, granted.pages));
        } else {
            self.free(granted.pages);
        }
    }

    fn free(&self, pages: Pages) {
        self.counters.pages.sub(pages.count());
        // SAFETY: pages come here from `pool`, after all of their grants were revoked, and they came
        // from this machine's `alloc`.
        unsafe { self.machine.free(pages) }
    }
}
