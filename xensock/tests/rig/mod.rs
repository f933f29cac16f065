//! A guest and its backend in one process, and the surroundings of a test.
#![allow(dead_code, reason = "each test file uses its own part of it")]

pub mod script;

use embassy_time::{Duration, Timer, with_timeout};
use futures_executor::{LocalPool, LocalSpawner};
use futures_util::future::{AbortHandle, abortable};
use futures_util::task::LocalSpawnExt;
use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use xen::DomId;
use xen::testing::FakeStore;
use xen::testing::{FakeMachine, World};
use xen::xenstore::Store;
use xensock::Errno;
use xensock::back::Limits;
use xensock::front::{Config, Frontend};
use xensock::testing::{FakeDom0, FakeNet, backend};
use xensock::wire::{Dialect, Extensions, Protocol};

pub const DOM0: DomId = DomId(0);
pub const GUEST: DomId = DomId(7);
pub const FRONT: &str = "/local/domain/7/device/pvcalls/0";
pub const BACK: &str = "/local/domain/0/backend/pvcalls/7/0";

/// The protocols under test: each dialect, with all extensions and with none.
pub fn protocols() -> impl Iterator<Item = Protocol> {
    Dialect::ALL.into_iter().flat_map(|dialect| {
        [Extensions::all(), Extensions::empty()].map(|extensions| Protocol { dialect, extensions })
    })
}

/// Every dialect with all extensions.
pub fn extended() -> impl Iterator<Item = Protocol> {
    protocols().filter(|protocol| protocol.extensions == Extensions::all())
}

/// The longest time for a test, even on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Rig {
    pub world: World,
    /// The frontend's machine.
    pub guest: FakeMachine,
    pub net: FakeNet,
    pub store: FakeStore,
    pub frontend: Frontend<FakeMachine>,
    /// The guest's connection to xenstore, which the frontend uses.
    pub guest_store: Store,
    pub dom0: FakeDom0,
    pub spawner: LocalSpawner,
    driver_ended: Rc<RefCell<Option<Errno>>>,
}

/// A running backend.
pub struct Backend(AbortHandle);

impl Backend {
    /// Kills it, as SIGKILL would: its nodes in xenstore stay as they are.
    pub fn kill(self) {
        self.0.abort();
    }
}

/// An address of the fake network.
pub fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Short times, so that tests can wait for them.
pub fn config() -> Config {
    Config {
        answer_within: Duration::from_secs(20),
        linger: Duration::from_millis(200),
        ..Config::default()
    }
}

/// The limits of a backend, for [`config`].
pub fn limits() -> Limits {
    Limits { linger: core::time::Duration::from_millis(200), ..Limits::default() }
}

/// Runs a test with a frontend and a backend, for each of [`protocols`], and checks that nothing is
/// left behind.
pub fn with_backend<F: Future<Output = ()>>(test: impl Fn(Rc<Rig>) -> F) {
    with_backend_and(config(), limits(), test);
}

pub fn with_backend_and<F: Future<Output = ()>>(
    config: Config,
    limits: Limits,
    test: impl Fn(Rc<Rig>) -> F,
) {
    for protocol in protocols() {
        println!("with {protocol:?}");
        with_backend_of(protocol, config, limits, &test);
    }
}

/// Runs a test with a backend of this protocol.
pub fn with_backend_of<F: Future<Output = ()>>(
    protocol: Protocol,
    config: Config,
    limits: Limits,
    test: impl FnOnce(Rc<Rig>) -> F,
) {
    with_frontend(Config { dialect: protocol.dialect, ..config }, |rig| {
        rig.start_backend(protocol, limits);
        test(rig)
    });
}

/// Runs a test with a frontend only; the test acts as the backend.
pub fn with_frontend<F: Future<Output = ()>>(config: Config, test: impl FnOnce(Rc<Rig>) -> F) {
    let mut pool = LocalPool::new();
    let spawner = pool.spawner();
    let (world, net, store) = (World::new(), FakeNet::new(), FakeStore::new());
    store.add_domain(DOM0);
    store.add_domain(GUEST);
    let (front, back) = (of(config.dialect, FRONT), of(config.dialect, BACK));
    store.add_device((&front, GUEST), (&back, DOM0));
    let client = connect(&store, GUEST, &spawner);
    let guest = world.machine(GUEST);
    let (frontend, driver) = Frontend::new(guest.clone(), client.clone(), &front, config);
    let driver_ended = Rc::new(RefCell::new(None));
    let ended = driver_ended.clone();
    spawner
        .spawn_local(async move {
            let error = driver.run().await;
            *ended.borrow_mut() = Some(error);
        })
        .unwrap();
    let dom0 = FakeDom0::new(&world, DOM0, net.clone());
    let guest_store = client;
    let rig = Rc::new(Rig {
        world,
        guest,
        net,
        store,
        frontend,
        guest_store,
        dom0,
        spawner,
        driver_ended,
    });
    let running = test(rig.clone());
    pool.run_until(async {
        let in_time = with_timeout(LIMIT, async {
            running.await;
            rig.frontend.shutdown().await;
            rig.until(|| rig.driver_ended.borrow().is_some()).await;
        });
        in_time.await.expect("the test takes too long");
    });
    rig.world.assert_clean();
    let statistics = rig.frontend.statistics();
    assert_eq!((statistics.streams_open, statistics.grants, statistics.pages), (0, 0, 0));
}

/// The path of a device of this dialect.
pub fn of(dialect: Dialect, path: &str) -> String {
    path.replace("pvcalls", dialect.device())
}

/// A connection to xenstore with its driver running.
pub fn connect(store: &FakeStore, domain: DomId, spawner: &LocalSpawner) -> Store {
    let (client, connection) = store.client(domain);
    spawner.spawn_local(connection).unwrap();
    client
}

impl Rig {
    /// Starts a backend, which continues if the result is dropped.
    pub fn start_backend(&self, protocol: Protocol, limits: Limits) -> Backend {
        let client = connect(&self.store, DOM0, &self.spawner);
        let (dom0, path) = (self.dom0.clone(), of(protocol.dialect, BACK));
        let (serving, handle) = abortable(async move {
            backend(&dom0, &client, &path, protocol, limits).await;
        });
        self.spawn(async move {
            let _ = serving.await;
        });
        Backend(handle)
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawner.spawn_local(task).unwrap();
    }

    /// The error that ended the driver, if any.
    pub fn driver_ended(&self) -> Option<Errno> {
        *self.driver_ended.borrow()
    }

    /// Whether the only ports of the frontend are those of the command ring and of parked rings.
    pub fn holds_nothing_in_use(&self) -> bool {
        self.world.ports() as u64 == 1 + self.frontend.statistics().parked_rings
    }

    /// Polls a condition until it holds.
    pub async fn until(&self, mut done: impl FnMut() -> bool) {
        while !done() {
            Timer::after_millis(1).await;
        }
    }
}

/// Bytes that differ wherever they are out of order or lost.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}
