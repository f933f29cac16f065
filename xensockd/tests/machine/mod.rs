//! A machine with a daemon: its own code and real sockets on the loopback interface, over fakes of
//! xenstored and of the guests' memory and events.

use super::rig::{DOM0, Guest, OPEN, back_of, backend, client, front, frontend_of, guests};
use futures_util::future::{Either, join, select};
use std::cell::Cell;
use std::iter;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use xen::testing::{FakeStore, World};
use xen::xenstore::{Access, Permission};
use xen::{DomId, Errno, Flag};
use xen_linux::runtime::{Reactor, Runtime, Spawner, Task, timeout};
use xensock::back::Network;
use xensock::wire::{Dialect, Family, Options};
use xensockd::counts::Counts;
use xensockd::finder::Finder;
use xensockd::guests::Guests;
use xensockd::sockets::{Bound, Connected, Sockets};
use xensockd::threads::Placement;

/// The longest time for a test, even on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A port that no guest uses. A connection to it is a bug of the daemon.
pub const BUG: u16 = 6;

/// Real sockets, and a bug.
struct Faulty(Sockets);

impl Network for Faulty {
    type Stream = Connected;
    type Listener = Bound;
    type Datagrams = <Sockets as Network>::Datagrams;

    async fn connect(
        &self,
        guest: DomId,
        to: SocketAddr,
        options: &Options,
    ) -> Result<Connected, Errno> {
        assert_ne!(to.port(), BUG, "a bug, for a test");
        self.0.connect(guest, to, options).await
    }

    fn bind(&self, guest: DomId, to: SocketAddr, options: &Options) -> Result<Bound, Errno> {
        self.0.bind(guest, to, options)
    }

    fn datagrams(
        &self,
        guest: DomId,
        family: Family,
        local: Option<SocketAddr>,
        options: &Options,
    ) -> Result<Self::Datagrams, Errno> {
        self.0.datagrams(guest, family, local, options)
    }
}

/// A domain for the daemon where the toolstack is not.
pub const DRIVER: DomId = DomId(3);

/// A machine with a daemon.
pub struct Rig {
    /// The daemon's domain.
    pub own: DomId,
    pub world: World,
    pub tree: FakeStore,
    pub counts: Counts,
    pub guests: Guests,
    pub stop: Rc<Flag>,
    pub daemon: Task,
    pub reactor: Reactor,
    pub spawner: Spawner,
}

/// Runs a test, and checks that the daemon holds nothing afterwards.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<Rig>) -> F) {
    run_with(OPEN, test);
}

pub fn run_with<F: Future<Output = ()>>(rules: &str, test: impl FnOnce(Rc<Rig>) -> F) {
    run_in(DOM0, rules, test);
}

pub fn run_in<F: Future<Output = ()>>(own: DomId, rules: &str, test: impl FnOnce(Rc<Rig>) -> F) {
    let mut runtime = Runtime::new().unwrap();
    let (reactor, spawner) = (runtime.reactor().clone(), runtime.spawner().clone());
    let (world, tree) = (World::new(), FakeStore::new());
    tree.add_domain(own);
    let counts = Counts::default();
    let stop = Rc::new(Flag::default());
    let guests = guests(rules);
    let sockets = Faulty(Sockets::new(&reactor, counts.sockets.clone(), guests.clone()));
    let store = client(&tree, own, &spawner);
    let seat = Placement::new(1).seat(0);
    let backend = backend(own, &world, store, sockets, guests.clone(), &counts, &stop, seat);
    let [mut finder, mut second] =
        Dialect::ALL.map(|dialect| Finder::new(backend.clone(), &spawner, dialect));
    let stopping = stop.clone();
    let daemon = spawner.spawn(async move {
        {
            let finding = select(Box::pin(finder.run()), Box::pin(second.run()));
            if let Either::Left(_) = select(finding, pin!(stopping.raised())).await {
                panic!("a finder failed");
            }
        }
        join(finder.stopped(), second.stopped()).await;
    });
    let rig = Rc::new(Rig { own, world, tree, counts, guests, stop, daemon, reactor, spawner });
    let whole = async {
        timeout(&rig.reactor, LIMIT, test(rig.clone())).await.expect("the test takes too long");
        rig.stop.raise();
        rig.daemon.finished().await;
        assert_eq!(rig.counts.to_string(), "guests=0 sockets=0 mappings=0 ports=0");
        rig.world.assert_clean();
    };
    runtime.block_on(whole).unwrap();
}

/// The driver of a guest's frontend.
pub struct Driver {
    task: Task,
    ended: Rc<Cell<Option<Errno>>>,
}

impl Driver {
    pub async fn finished(self) -> Option<Errno> {
        self.task.finished().await;
        self.ended.get()
    }
}

impl Rig {
    /// Creates a domain with a device, as the toolstack does.
    pub fn create(&self, guest: DomId) {
        self.tree.add_domain(guest);
        self.create_with_frontend(guest, &front(guest));
    }

    pub fn create_with_frontend(&self, guest: DomId, frontend: &str) {
        let (front, back) = (front(guest), self.back(guest));
        self.tree.add_device((&front, guest), (&back, self.own));
        self.tree.write(&format!("{back}/frontend"), frontend);
    }

    /// Boots a guest with a frontend.
    pub fn boot(&self, guest: DomId) -> (Guest, Driver) {
        self.boot_over(guest, Dialect::PvCalls)
    }

    pub fn boot_over(&self, guest: DomId, dialect: Dialect) -> (Guest, Driver) {
        let store = client(&self.tree, guest, &self.spawner);
        let (frontend, driver) = frontend_of(&self.world, store, guest, dialect);
        let ended = Rc::new(Cell::new(None));
        let end = ended.clone();
        let task = self.spawner.spawn(async move { end.set(Some(driver.run().await)) });
        (frontend, Driver { task, ended })
    }

    pub async fn sleep(&self, time: Duration) {
        self.reactor.sleep(time).await;
    }

    pub fn state(&self, guest: DomId) -> String {
        self.tree.read(&format!("{}/state", self.back(guest))).unwrap_or_default()
    }

    pub fn back(&self, guest: DomId) -> String {
        back_of(self.own, guest, Dialect::PvCalls)
    }

    /// Names a guest, and lets only these domains read its name and its UUID.
    pub fn name(&self, guest: DomId, name: &str, readers: &[DomId]) {
        let readers = readers.iter().map(|domain| (Access::Read, *domain));
        let all = iter::once((Access::None, DOM0)).chain(readers);
        let all: Vec<_> = all.map(|(access, domain)| Permission { access, domain }).collect();
        for (node, value) in [("name", name), ("vm", "/vm/3c9b1f0e")] {
            let node = format!("/local/domain/{guest}/{node}");
            self.tree.write(&node, value);
            self.tree.set_permissions(&node, &all);
        }
    }

    pub async fn until(&self, mut done: impl FnMut() -> bool) {
        while !done() {
            self.sleep(Duration::from_millis(2)).await;
        }
    }
}
