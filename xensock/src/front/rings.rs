//! Data rings: opened for a socket, then closed or parked for the next socket.
//!
//! A parked ring keeps its grants and its port, and the backend keeps it mapped.

use super::link::Session;
use crate::ring::{Consumer, NotifyPolicy, Producer, len};
use crate::wire::{Layout, Protocol, Region, RingGrants, RingOffer};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::RangeInclusive;
use xen::frontend::{GrantedPages, PagePool};
use xen::{Errno, Machine, Port, Signal, WaitList};

/// The most parked rings. Only connections of the same session can use them.
const PARKED: usize = 8;

/// By how many orders a ring grows or shrinks at a time: few requests, and no ring is more than 16
/// times as large as its traffic needs.
const STEP: u32 = 4;

/// A share of a number of rings or pages, given back when dropped.
struct Share {
    all: Rc<Cell<usize>>,
    count: usize,
}

impl Share {
    fn take(all: &Rc<Cell<usize>>, count: usize) -> Share {
        all.set(all.get() + count);
        Share { all: all.clone(), count }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.count);
    }
}

/// The pages of a data ring.
pub(super) struct RingPages {
    granted: GrantedPages,
    pub(super) layout: Layout,
    pub(super) order: u32,
    /// Its shares of all rings' pages and of the budget, once it was offered.
    shares: [Option<Share>; 2],
}

impl RingPages {
    pub(super) fn region(&self) -> Region<'_> {
        self.layout.split(self.granted.shared())
    }

    /// Resets the indexes, and describes the pages for the request that opens the ring.
    fn offer(&self, protocol: Protocol) -> RingGrants {
        let indexes = self.region().indexes;
        indexes.zero();
        protocol.dialect.offer_ring(indexes, self.order, self.granted.grants())
    }
}

/// A data ring with this side's ends of both directions.
pub(super) struct Ends {
    pub(super) pages: RingPages,
    pub(super) consumer: Consumer,
    pub(super) producer: Producer,
}

impl Ends {
    /// This side's ends of a new ring.
    pub(super) fn new(pages: RingPages) -> Self {
        let layout = pages.layout;
        let consumer = Consumer::new(layout.input, NotifyPolicy::HalfFull);
        Ends { consumer, producer: Producer::new(layout.output), pages }
    }

    pub(super) fn region(&self) -> Region<'_> {
        self.pages.region()
    }

    /// Whether both directions are empty.
    pub(super) fn is_empty(&mut self) -> bool {
        let region = self.pages.region();
        let read = self.consumer.data(region).is_ok_and(|data| len(&data) == 0);
        read && self.producer.unread(region) == Ok(0)
    }
}

/// A connection's data ring and its event channel.
pub(super) struct Ring {
    pub(super) pages: RingPages,
    pub(super) port: Port,
    pub(super) signal: Arc<Signal>,
}

/// A reserved place for a parked ring: shares of the places and of their pages.
pub(super) struct ParkSlot(
    #[expect(dead_code, reason = "held while the ring is parked")] [Share; 2],
);

/// Opens and closes data rings, and has those that no connection uses.
pub(super) struct Rings<M: Machine> {
    pages: Rc<PagePool<M>>,
    /// The most pages of rings that are larger than new ones.
    budget: usize,
    /// The pages of all open rings.
    open: Rc<Cell<usize>>,
    /// Those of rings that are larger than new ones.
    grown: Rc<Cell<usize>>,
    /// Rings for the next connections, each with its session's number.
    parked: RefCell<Vec<(u32, Ring, ParkSlot)>>,
    /// The places taken by parked rings, and the pages of those that are larger than new ones.
    parked_count: Rc<Cell<usize>>,
    parked_grown: Rc<Cell<usize>>,
    /// Pages with which a ring can shrink when no others are left, and their session's number.
    spare: RefCell<Option<(u32, RingPages)>>,
    /// Rings that the backend may still map, because it has not answered a request about them.
    kept: RefCell<Vec<Ring>>,
    /// Woken when a connection has closed a ring or finished a RESIZE.
    pub(super) changed: WaitList,
}

impl<M: Machine> Rings<M> {
    pub(super) fn new(pages: Rc<PagePool<M>>, budget: usize) -> Self {
        Rings {
            pages,
            budget,
            open: Rc::default(),
            grown: Rc::default(),
            parked: RefCell::default(),
            parked_count: Rc::default(),
            parked_grown: Rc::default(),
            spare: RefCell::default(),
            kept: RefCell::default(),
            changed: WaitList::default(),
        }
    }

    /// Opens a data ring and its event channel, for a CONNECT, ACCEPT or OPEN: a parked ring of one
    /// of these orders, or a new ring of the first of them.
    pub(super) fn open(
        &self,
        session: &Session,
        orders: RangeInclusive<u32>,
    ) -> Result<(Ring, RingOffer), Errno> {
        if let Some(ring) = self.unpark(session, &orders) {
            let (grants, port) = (ring.pages.offer(session.protocol), ring.port);
            return Ok((ring, RingOffer { grants, port }));
        }
        let (pages, grants) = self.open_pages(session, *orders.start())?;
        let signal = Arc::new(Signal::new());
        match self.pages.machine().open_port(session.backend, signal.clone()) {
            Ok(port) => Ok((Ring { pages, port, signal }, RingOffer { grants, port })),
            Err(error) => {
                self.close_pages(pages);
                Err(error)
            }
        }
    }

    /// Opens a data ring for a connection that already has an event channel, for a RESIZE.
    pub(super) fn open_pages(
        &self,
        session: &Session,
        order: u32,
    ) -> Result<(RingPages, RingGrants), Errno> {
        Ok(self.offer(session, self.allocate(session, order)?))
    }

    fn allocate(&self, session: &Session, order: u32) -> Result<RingPages, Errno> {
        let layout = session.protocol.layout(order)?;
        let granted = self.pages.share_reusable(session.backend, layout.pages)?;
        Ok(RingPages { granted, layout, order, shares: [None, None] })
    }

    /// Counts a ring, and describes it for the backend.
    fn offer(&self, session: &Session, mut pages: RingPages) -> (RingPages, RingGrants) {
        let count = pages.layout.pages;
        let is_grown = pages.order > session.ring_order;
        let grown = is_grown.then(|| Share::take(&self.grown, count));
        pages.shares = [Some(Share::take(&self.open, count)), grown];
        let grants = pages.offer(session.protocol);
        (pages, grants)
    }

    /// Opens the smallest ring for a RESIZE: the spare pages if there are no others.
    pub(super) fn open_least(&self, session: &Session) -> Result<(RingPages, RingGrants), Errno> {
        let pages = self.allocate(session, session.ring_order).or_else(|error| {
            let spare = self.spare.take().filter(|spare| spare.0 == session.number);
            spare.map(|(_, pages)| pages).ok_or(error)
        })?;
        Ok(self.offer(session, pages))
    }

    /// Sets the spare pages aside, unless there are some or they cannot be had.
    pub(super) fn set_spare(&self, session: &Session) {
        if self.spare.borrow().is_none()
            && let Ok(pages) = self.allocate(session, session.ring_order)
        {
            self.spare.replace(Some((session.number, pages)));
        }
    }

    /// Closes the spare pages.
    pub(super) fn close_spare(&self) {
        if let Some((_, pages)) = self.spare.take() {
            self.close_pages(pages);
        }
    }

    /// The next larger order for a ring, if there is memory for it.
    pub(super) fn larger(&self, session: &Session, present: u32) -> Option<u32> {
        self.affordable(session, present + 1..=session.max_ring_order.min(present + STEP))
    }

    /// The order of a datagram socket's ring, which does not grow: a smaller one than it should
    /// have if there is no memory for that.
    pub(super) fn datagram_order(&self, session: &Session) -> u32 {
        let (least, best) = (session.ring_order, session.datagram_order);
        self.affordable(session, least + 1..=best).unwrap_or(least.min(best))
    }

    /// The largest of these orders for which there is memory. A ring takes at most half of what is
    /// left of the budget, so that others can grow, too.
    fn affordable(&self, session: &Session, orders: RangeInclusive<u32>) -> Option<u32> {
        // Pages in quarantine count, or a backend that never unmaps could use up all memory.
        let used = self.grown.get() + self.pages.usage().quarantined_pages as usize;
        let most = self.budget.saturating_sub(used) / 2;
        let fits =
            |&order: &u32| session.protocol.layout(order).is_ok_and(|layout| layout.pages <= most);
        orders.rev().find(fits).filter(|_| !self.is_short())
    }

    /// The next smaller order for a ring.
    pub(super) fn smaller(&self, session: &Session, present: u32) -> u32 {
        present.saturating_sub(STEP).max(session.ring_order)
    }

    /// Whether memory is short.
    pub(super) fn is_short(&self) -> bool {
        self.pages.machine().is_short()
    }

    /// Closes a ring that the backend has released, or never knew.
    pub(super) fn close(&self, ring: Ring) {
        self.pages.machine().close_port(ring.port);
        self.close_pages(ring.pages);
    }

    /// Closes the pages of a ring that was replaced by another.
    pub(super) fn close_pages(&self, pages: RingPages) {
        self.pages.withdraw(pages.granted);
    }

    /// Reserves a place to park a ring, if there is one. A ring that has grown needs memory to
    /// spare, too: a parked ring's pages serve nothing but the next connection.
    pub(super) fn reserve(&self, session: &Session, pages: &RingPages) -> Option<ParkSlot> {
        let is_grown = pages.order > session.ring_order;
        let count = if is_grown { pages.layout.pages } else { 0 };
        let is_free = self.parked_count.get() < PARKED
            && self.parked_grown.get() + count <= self.budget / 2
            && !(is_grown && self.is_short());
        let can_park = is_free && session.protocol.dialect.can_reuse_rings();
        can_park.then(|| {
            ParkSlot([Share::take(&self.parked_count, 1), Share::take(&self.parked_grown, count)])
        })
    }

    /// Keeps a ring whose RELEASE announced that it will be used again.
    pub(super) fn park(&self, slot: ParkSlot, session: &Session, ring: Ring) {
        self.parked.borrow_mut().push((session.number, ring, slot));
    }

    fn unpark(&self, session: &Session, orders: &RangeInclusive<u32>) -> Option<Ring> {
        let mut parked = self.parked.borrow_mut();
        let fits = |(number, ring, _): &(u32, Ring, ParkSlot)| {
            *number == session.number && orders.contains(&ring.pages.order)
        };
        // The most recently used ring is likely to be in the caches.
        let index = parked.iter().rposition(fits)?;
        Some(parked.remove(index).1)
    }

    /// The number of parked rings.
    pub(super) fn parked(&self) -> usize {
        self.parked.borrow().len()
    }

    /// The pages of all rings, and the spare ones.
    pub(super) fn ring_pages(&self) -> usize {
        let spare = self.spare.borrow();
        self.open.get() + spare.as_ref().map_or(0, |(_, pages)| pages.layout.pages)
    }

    /// Keeps a ring as it is until the session ends: the backend may still map it.
    pub(super) fn keep(&self, ring: Ring) {
        self.kept.borrow_mut().push(ring);
    }

    /// Closes the rings that were parked or kept for the session.
    pub(super) fn end_session(&self) {
        self.close_spare();
        let parked = self.parked.take().into_iter().map(|(_, ring, _)| ring);
        parked.chain(self.kept.take()).for_each(|ring| self.close(ring));
    }
}
