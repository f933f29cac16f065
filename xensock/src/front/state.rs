//! What a frontend's handles, sockets and driver share.

use super::config::{Config, Statistics};
use super::link::{Link, Session};
use super::progress::Operations;
use super::rings::{Ring, Rings};
use super::socket::{Elastic, Kind};
use crate::wire::RingOffer;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use embassy_time::{Duration, with_timeout};
use xen::frontend::{self, PagePool};
use xen::{Errno, Machine};

/// How long a new connection waits for memory of rings that have grown.
const GIVE_WAY: Duration = Duration::from_secs(1);

/// A socket or a listener, which is notified of changes of the link.
pub(super) trait Member {
    /// The link came up.
    fn link_up(self: Rc<Self>) {}

    /// The session ended, and perhaps the device.
    fn link_lost(&self, error: Errno);
}

/// The shared state of a frontend.
pub(super) struct Core<M: Machine + 'static> {
    pub(super) config: Config,
    pub(super) pages: Rc<PagePool<M>>,
    pub(super) rings: Rings<M>,
    pub(super) link: Link<M>,
    pub(super) statistics: RefCell<Statistics>,
    /// Sorted by id.
    members: RefCell<Vec<(u64, Weak<dyn Member>)>>,
    /// The connections whose rings have grown.
    pub(super) elastic: Elastic<M>,
    next_id: Cell<u64>,
    /// Sockets that are being released.
    pub(super) releasing: Operations,
    /// Dropped listeners that the backend has not released yet.
    pub(super) unbinding: Operations,
}

impl<M: Machine + 'static> Core<M> {
    pub(super) fn new(machine: M, config: Config) -> Self {
        let pages = Rc::new(PagePool::new(machine));
        Core {
            config,
            rings: Rings::new(pages.clone(), config.ring_budget),
            link: Link::new(pages.clone(), config.answer_within),
            pages,
            statistics: RefCell::default(),
            members: RefCell::default(),
            elastic: Elastic::default(),
            next_id: Cell::new(1),
            releasing: Operations::default(),
            unbinding: Operations::default(),
        }
    }

    /// The number of a new socket or member.
    pub(super) fn new_id(&self) -> u64 {
        self.next_id.replace(self.next_id.get() + 1)
    }

    pub(super) fn register(&self, id: u64, member: &Rc<impl Member + 'static>) {
        let member: Rc<dyn Member> = member.clone();
        let mut members = self.members.borrow_mut();
        let place = members.partition_point(|(other, _)| *other < id);
        members.insert(place, (id, Rc::downgrade(&member)));
    }

    /// Returns whether the member was registered.
    pub(super) fn unregister(&self, id: u64) -> bool {
        let mut members = self.members.borrow_mut();
        let found = members.binary_search_by_key(&id, |(other, _)| *other);
        found.map(|at| members.remove(at)).is_ok()
    }

    /// A copy of the list of members: a member may unregister itself while it is notified.
    pub(super) fn members(&self) -> Vec<Rc<dyn Member>> {
        self.members.borrow().iter().filter_map(|(_, member)| member.upgrade()).collect()
    }

    /// Opens a data ring for a socket with these requested sizes. If there is no memory, grant or
    /// port for it, rings that have grown give way.
    pub(super) async fn open_ring(
        &self,
        session: &Session,
        kind: Kind,
        sizes: [Option<u32>; 2],
    ) -> Result<(Ring, RingOffer), Errno> {
        let orders = match kind {
            _ if sizes != [None; 2] => [session.order_for(sizes); 2],
            Kind::Stream => [session.ring_order, session.max_ring_order],
            Kind::Datagrams => [self.rings.datagram_order(session); 2],
        };
        let open = || self.rings.open(session, orders[0]..=orders[1]);
        match open() {
            Err(Errno::ENOMEM | Errno::ENOSPC) if self.elastic.shrink(true) => {}
            opened => return opened,
        }
        let again = || match open() {
            Err(Errno::ENOMEM | Errno::ENOSPC) if !self.elastic.is_empty() => None,
            opened => Some(opened),
        };
        with_timeout(GIVE_WAY, self.rings.changed.until(again)).await.unwrap_or_else(|_| open())
    }

    /// Waits for a limited time until dropped sockets are released, then closes the device.
    pub(super) async fn shutdown(&self) {
        if with_timeout(self.config.linger, self.releasing.finished()).await.is_err() {
            log::warn!("the backend is slow to release sockets; closing the device anyway");
        }
        frontend::shutdown(self).await;
    }
}
