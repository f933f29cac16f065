//! An interface, and fakes of what surrounds it, in one process.
//!
//! [`FakeBackend`](backend::FakeBackend) is the interface's backend,
//! [`FakeNetwork`](network::FakeNetwork) what is behind that; [`FakeCable`](cable::FakeCable) joins
//! two stacks without a backend.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod backend;
pub mod cable;
pub mod network;

use backend::{FakeBackend, Features};
use embassy_time::{Duration, Timer, with_timeout};
use futures_executor::{LocalPool, LocalSpawner};
use futures_util::task::LocalSpawnExt;
use netfront::vif::{Config, Handle, NetFront};
use netfront::{Link, Nic};
use smoltcp::phy::{self, Device, RxToken as _, TxToken as _};
use smoltcp::time::Instant;
use std::cell::{RefCell, RefMut};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use xen::testing::FakeStore;
use xen::testing::{FakeMachine, World};
use xen::xenstore::Store;
use xen::{DomId, Errno};

pub const DOM0: DomId = DomId(0);
pub const GUEST: DomId = DomId(7);
pub const FRONT: &str = "/local/domain/7/device/vif/0";
pub const BACK: &str = "/local/domain/0/backend/vif/7/0";

/// The time limit of a test, generous for a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Fixture {
    pub world: World,
    pub store: FakeStore,
    /// The guest's connection to xenstore.
    pub guest_store: Store,
    device: RefCell<Option<NetFront<FakeMachine>>>,
    pub handle: Handle<FakeMachine>,
    pub spawner: LocalSpawner,
    pub ended: Rc<RefCell<Option<Errno>>>,
}

/// A short `linger`: the backend of a test never unmaps in time.
pub fn config() -> Config {
    Config { linger: Duration::from_millis(10), ..Config::default() }
}

/// Runs a test with an interface whose device exists. Afterwards nothing may be left behind.
pub fn with_interface<F: Future<Output = ()>>(config: Config, test: impl FnOnce(Rc<Fixture>) -> F) {
    let mut pool = LocalPool::new();
    let spawner = pool.spawner();
    let (world, store) = (World::new(), FakeStore::new());
    store.add_domain(DOM0);
    store.add_domain(GUEST);
    make_device(&store);
    let guest_store = connect(&store, GUEST, &spawner);
    let guest = world.machine(GUEST);
    let (store_of_guest, ended) = (guest_store.clone(), Rc::new(RefCell::new(None)));
    let made = pool.run_until(NetFront::new(guest, store_of_guest, FRONT, config));
    let (device, driver) = made.expect("the device has an address");
    let end = ended.clone();
    spawner
        .spawn_local(async move {
            let error = driver.run().await;
            *end.borrow_mut() = Some(error);
        })
        .unwrap();
    let handle = device.handle();
    let device = RefCell::new(Some(device));
    let fixture = Rc::new(Fixture { world, store, guest_store, device, handle, spawner, ended });
    let running = test(fixture.clone());
    pool.run_until(async {
        let in_time = with_timeout(LIMIT, async {
            running.await;
            fixture.handle.shutdown().await;
            fixture.until(|| fixture.ended.borrow().is_some()).await;
        });
        in_time.await.expect("the test takes too long");
    });
    fixture.world.assert_clean();
    let statistics = fixture.handle.statistics();
    assert_eq!((statistics.pages, statistics.quarantined_pages), (0, 0));
}

/// Makes the device, as the toolstack does.
pub fn make_device(store: &FakeStore) {
    store.add_device((FRONT, GUEST), (BACK, DOM0));
    store.write(&format!("{FRONT}/mac"), "00:16:3e:00:00:07");
}

/// A client of the store, whose connection is run.
pub fn connect(store: &FakeStore, domain: DomId, spawner: &LocalSpawner) -> Store {
    let (client, connection) = store.client(domain);
    spawner.spawn_local(connection).unwrap();
    client
}

impl Fixture {
    /// Starts a backend and waits until both ends are connected.
    pub async fn backend(&self, features: Features) -> FakeBackend {
        let client = connect(&self.store, DOM0, &self.spawner);
        let before = self.handle.statistics().sessions;
        let backend = FakeBackend::start(&self.world, client, features).await;
        self.until(|| self.handle.statistics().sessions > before).await;
        backend
    }

    /// Waits for a condition by polling it.
    pub async fn until(&self, holds: impl Fn() -> bool) {
        while !holds() {
            Timer::after_millis(1).await;
        }
    }

    pub fn device(&self) -> RefMut<'_, NetFront<FakeMachine>> {
        RefMut::map(self.device.borrow_mut(), |device| {
            device.as_mut().expect("the device was taken")
        })
    }

    /// The interface, for a stack.
    pub fn take_device(&self) -> NetFront<FakeMachine> {
        self.device.take().expect("the device was taken")
    }

    pub fn link(&self) -> Link {
        self.handle.link()
    }

    /// Sends a frame through the interface as a stack does: waits for room.
    pub async fn send(&self, frame: &[u8], segment: Option<u16>) {
        poll_fn(|cx| {
            let mut device = self.device();
            let Some(mut token) = device.transmit(Instant::ZERO) else {
                self.handle.flush();
                self.handle.register(cx.waker());
                return Poll::Pending;
            };
            let mut meta = smoltcp::phy::PacketMeta::default();
            meta.segmentation_offload_size = segment.and_then(std::num::NonZeroU16::new);
            token.set_meta(meta);
            token.consume(frame.len(), |to| to.copy_from_slice(frame));
            self.handle.flush();
            Poll::Ready(())
        })
        .await;
    }

    /// Receives the next frame.
    pub async fn receive(&self) -> Vec<u8> {
        poll_fn(|cx| {
            let mut device = self.device();
            if let Some((token, _)) = device.receive(Instant::ZERO) {
                let frame = token.consume(<[u8]>::to_vec);
                self.handle.flush();
                return Poll::Ready(frame);
            }
            self.handle.flush();
            self.handle.register(cx.waker());
            Poll::Pending
        })
        .await
    }
}

/// A frame of an unknown protocol, with bytes that depend on `seed`.
pub fn frame(len: usize, seed: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at * 7 + seed * 13) as u8).collect();
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// A received frame.
pub struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// Room for a frame, and what sends it.
pub struct TxToken<'a>(Box<dyn FnOnce(Vec<u8>) + 'a>);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        (self.0)(frame);
        result
    }
}
