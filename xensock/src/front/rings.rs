//! Data rings: opened for a connection, then closed or parked for the next connection.
//!
//! A parked ring keeps its grants and its port, and the backend keeps it mapped.

use super::link::Session;
use super::progress::{Operation, Operations};
use crate::ring::{Consumer, NotifyPolicy, Producer, len};
use crate::wire::{Layout, Protocol, Region, RingGrants, RingOffer};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::RefCell;
use xen::frontend::{GrantedPages, PagePool};
use xen::{Errno, Machine, Port, Signal};

/// The most parked rings. Only connections of the same session can use them.
const PARKED: usize = 8;

/// The pages of a data ring.
pub(super) struct RingPages {
    granted: GrantedPages,
    pub(super) layout: Layout,
    pub(super) order: u32,
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

/// A reserved place for a parked ring.
pub(super) struct ParkSlot(
    #[expect(dead_code, reason = "held until the ring is parked")] Operation,
);

/// Opens and closes data rings, and has those that no connection uses.
pub(super) struct Rings<M: Machine> {
    pages: Rc<PagePool<M>>,
    /// Rings for the next connections, each with its session's number.
    parked: RefCell<Vec<(u32, Ring)>>,
    reserved: Operations,
    /// Rings that the backend may still map, because it has not answered a request about them.
    kept: RefCell<Vec<Ring>>,
}

impl<M: Machine> Rings<M> {
    pub(super) fn new(pages: Rc<PagePool<M>>) -> Self {
        Rings {
            pages,
            parked: RefCell::default(),
            reserved: Operations::default(),
            kept: RefCell::default(),
        }
    }

    /// Opens a data ring and its event channel, for a CONNECT or an ACCEPT.
    pub(super) fn open(&self, session: &Session, order: u32) -> Result<(Ring, RingOffer), Errno> {
        if let Some(ring) = self.unpark(session, order) {
            let (grants, port) = (ring.pages.offer(session.protocol), ring.port);
            return Ok((ring, RingOffer { grants, port }));
        }
        let (pages, grants) = self.open_pages(session, order)?;
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
        let layout = session.protocol.layout(order)?;
        let granted = self.pages.share_reusable(session.backend, layout.pages)?;
        let pages = RingPages { granted, layout, order };
        let grants = pages.offer(session.protocol);
        Ok((pages, grants))
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

    /// Reserves a place to park a ring, if there is one.
    pub(super) fn reserve(&self, session: &Session) -> Option<ParkSlot> {
        let is_free = self.parked.borrow().len() + self.reserved.count() < PARKED;
        let can_park = is_free && session.protocol.dialect.can_reuse_rings();
        can_park.then(|| ParkSlot(self.reserved.begin()))
    }

    /// Keeps a ring whose RELEASE announced that it will be used again.
    pub(super) fn park(&self, _slot: ParkSlot, session: &Session, ring: Ring) {
        self.parked.borrow_mut().push((session.number, ring));
    }

    fn unpark(&self, session: &Session, order: u32) -> Option<Ring> {
        let mut parked = self.parked.borrow_mut();
        let fits =
            |(number, ring): &(u32, Ring)| *number == session.number && ring.pages.order == order;
        // The most recently used ring is likely to be in the caches.
        let index = parked.iter().rposition(fits)?;
        Some(parked.remove(index).1)
    }

    /// The number of parked rings.
    pub(super) fn parked(&self) -> usize {
        self.parked.borrow().len()
    }

    /// Keeps a ring as it is until the session ends: the backend may still map it.
    pub(super) fn keep(&self, ring: Ring) {
        self.kept.borrow_mut().push(ring);
    }

    /// Closes the rings that were parked or kept for the session.
    pub(super) fn end_session(&self) {
        let parked = self.parked.take().into_iter().map(|(_, ring)| ring);
        parked.chain(self.kept.take()).for_each(|ring| self.close(ring));
    }
}
