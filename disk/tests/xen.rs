//! Disks over shared rings, between fakes of domains.

mod suite;

use futures_util::FutureExt;
use idc::Place;
use idc::xen::XenTransport;
use std::cell::Cell;
use std::rc::Rc;
use suite::{Rig, Tasks};
use xen::DomId;
use xen::testing::{FakeMachine, FakeStore, Peer, World};

/// The domains of a host.
#[derive(Clone)]
struct Host {
    world: World,
    store: FakeStore,
    next: Rc<Cell<u16>>,
    /// Whether the first one is a process of dom0, which maps only, and leaves its nodes in
    /// xenstore when it is killed. All others are guests.
    has_process: bool,
}

impl Host {
    fn new(has_process: bool) -> Self {
        let next = Rc::new(Cell::new(if has_process { 0 } else { 1 }));
        Host { world: World::new(), store: FakeStore::new(), next, has_process }
    }
}

impl Rig for Host {
    type Transport = XenTransport<FakeMachine, Peer>;

    async fn start(&self, again: Option<Place>, tasks: &Tasks) -> (Self::Transport, Place) {
        let id = match again {
            Some(Place::Domain(id)) => id,
            _ => DomId(self.next.replace(self.next.get() + 1)),
        };
        let is_process = self.has_process && id == DomId(0);
        if !is_process {
            if again.is_some() {
                self.store.remove_domain(id);
            }
            self.store.add_domain(id);
        }
        let (store, connection) = self.store.client(id);
        tasks.spawn(connection);
        let machine = (!is_process).then(|| self.world.machine(id));
        let peer = self.world.peer(id);
        let (transport, run) = XenTransport::new(id, store, machine, Some(peer), 2);
        tasks.spawn(run.map(|never| match never {}));
        (transport, Place::Domain(id))
    }
}

mod between_guests {
    use super::{Host, suite};
    suite!(Host::new(false));
}

mod with_a_process_of_dom0 {
    use super::{Host, suite};
    suite!(Host::new(true));
}
