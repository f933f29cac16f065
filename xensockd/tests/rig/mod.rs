//! A thread of the daemon and its guests, over fakes of xenstored and of the guests' memory.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use xen::testing::{FakeMachine, FakeStore, World};
use xen::xenstore::{self, Store};
use xen::{DomId, Flag};
use xen_linux::runtime::Spawner;
use xensock::back::Network;
use xensock::front::{Config, Driver, Frontend};
use xensock::testing::FakeDom0;
use xensock::wire::{Dialect, Extensions};
use xensockd::counts::Counts;
use xensockd::device::Backend;
use xensockd::guests::{Guests, Shared};
use xensockd::rules::Policy;
use xensockd::threads::Seat;

pub const DOM0: DomId = DomId(0);

/// Rules that allow everything.
pub const OPEN: &str = "[defaults]\nconnect = [\"any\"]\nlisten = [\"1-65535\"]\n";

/// Guests with these rules.
pub fn guests(rules: &str) -> Guests {
    Guests::new(policy(rules), Shared::default())
}

pub fn policy(rules: &str) -> Arc<Policy> {
    Arc::new(Policy::parse(Path::new("rules.toml"), rules).unwrap())
}

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
    front_of(guest, Dialect::PvCalls)
}

pub fn back(guest: DomId) -> String {
    back_of(DOM0, guest, Dialect::PvCalls)
}

pub fn front_of(guest: DomId, dialect: Dialect) -> String {
    format!("/local/domain/{guest}/device/{}/0", dialect.device())
}

pub fn back_of(own: DomId, guest: DomId, dialect: Dialect) -> String {
    format!("/local/domain/{own}/backend/{}/{guest}/0", dialect.device())
}

/// What the devices of a thread in this domain have in common, with these sockets.
#[allow(clippy::too_many_arguments, reason = "they are the parts of a thread")]
pub fn backend<N: Network + 'static>(
    own: DomId,
    world: &World,
    store: Store,
    sockets: N,
    guests: Guests,
    counts: &Counts,
    stop: &Rc<Flag>,
    seat: Seat,
) -> Rc<Backend<FakeDom0<N>>> {
    Rc::new(Backend {
        store,
        host: FakeDom0::new(world, own, sockets),
        own,
        guests,
        extensions: Extensions::all(),
        connected: counts.guests.clone(),
        stop: stop.clone(),
        seat,
    })
}

/// A guest's frontend, whose driver the caller runs.
pub fn frontend(world: &World, store: Store, guest: DomId) -> (Guest, Driver<FakeMachine>) {
    frontend_of(world, store, guest, Dialect::PvCalls)
}

pub fn frontend_of(
    world: &World,
    store: Store,
    guest: DomId,
    dialect: Dialect,
) -> (Guest, Driver<FakeMachine>) {
    let config = Config { dialect, ..Config::default() };
    Frontend::new(world.machine(guest), store, &front_of(guest, dialect), config)
}
