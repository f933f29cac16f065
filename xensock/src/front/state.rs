//! What a frontend's handles, sockets and driver share.

use super::config::{Config, Statistics};
use super::link::Link;
use super::progress::Operations;
use super::rings::Rings;
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use embassy_time::with_timeout;
use xen::frontend::{self, PagePool};
use xen::{Errno, Machine};

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
    members: RefCell<BTreeMap<u64, Weak<dyn Member>>>,
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
            rings: Rings::new(pages.clone()),
            link: Link::new(pages.clone(), config.answer_within),
            pages,
            statistics: RefCell::default(),
            members: RefCell::default(),
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
        self.members.borrow_mut().insert(id, Rc::downgrade(&member));
    }

    /// Returns whether the member was registered.
    pub(super) fn unregister(&self, id: u64) -> bool {
        self.members.borrow_mut().remove(&id).is_some()
    }

    /// A copy of the list of members: a member may unregister itself while it is notified.
    pub(super) fn members(&self) -> Vec<Rc<dyn Member>> {
        self.members.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// Waits for a limited time until dropped sockets are released, then closes the device.
    pub(super) async fn shutdown(&self) {
        if with_timeout(self.config.linger, self.releasing.finished()).await.is_err() {
            log::warn!("the backend is slow to release sockets; closing the device anyway");
        }
        frontend::shutdown(self).await;
    }
}
