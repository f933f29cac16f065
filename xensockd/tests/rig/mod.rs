//! A thread of the daemon and its guests, over fakes of xenstored and of the guests' memory.

use std::rc::Rc;
use xen::testing::{FakeMachine, FakeStore, World};
use xen::xenstore::{self, Store};
use xen::{DomId, Flag};
use xen_linux::runtime::Spawner;
use xensock::back::{Limits, Network};
use xensock::front::{Config, Driver, Frontend};
use xensock::testing::FakeDom0;
use xensock::wire::Extensions;
use xensockd::counts::Counts;
use xensockd::device::Backend;
use xensockd::threads::Seat;

pub const DOM0: DomId = DomId(0);

/// A frontend of the fake machine.
pub type Guest = Frontend<FakeMachine>;

pub fn client(tree: &FakeStore, domain: DomId, spawner: &Spawner) -> Store {
    let (reader, writer) = tree.connect(domain);
    let (store, driver) = xenstore::connect(reader, writer);
    spawner.spawn(async move {
        driver.run().await;
    });
    store
}

pub fn front(guest: DomId) -> String {
    format!("/local/domain/{guest}/device/pvcalls/0")
}

pub fn back(guest: DomId) -> String {
    format!("/local/domain/0/backend/pvcalls/{guest}/0")
}

/// What the devices of a thread have in common, with these sockets.
pub fn backend<N: Network>(
    world: &World,
    store: Store,
    sockets: N,
    counts: &Counts,
    stop: &Rc<Flag>,
    seat: Seat,
) -> Rc<Backend<FakeDom0<N>>> {
    Rc::new(Backend {
        store,
        host: FakeDom0::new(world, DOM0, sockets),
        limits: Limits::default(),
        extensions: Extensions::all(),
        guests: counts.guests.clone(),
        stop: stop.clone(),
        seat,
    })
}

/// A guest's frontend, whose driver the caller runs.
pub fn frontend(world: &World, store: Store, guest: DomId) -> (Guest, Driver<FakeMachine>) {
    Frontend::new(world.machine(guest), store, &front(guest), Config::default())
}
