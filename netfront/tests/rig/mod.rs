//! An interface and its backend in one process.
#![allow(dead_code, reason = "each test file uses its own part of it")]

pub mod netback;
pub mod wire;

use embassy_time::{Duration, Timer, with_timeout};
use futures_executor::{LocalPool, LocalSpawner};
use futures_util::task::LocalSpawnExt;
use netback::{Features, Netback};
use netfront::vif::{Config, Handle, NetFront};
use netfront::{Link, Nic};
use smoltcp::phy::{Device, RxToken, TxToken};
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

/// No test takes longer, even on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Rig {
    pub world: World,
    pub store: FakeStore,
    /// The guest's connection to xenstore.
    pub guest_store: Store,
    device: RefCell<Option<NetFront<FakeMachine>>>,
    pub handle: Handle<FakeMachine>,
    pub spawner: LocalSpawner,
    pub ended: Rc<RefCell<Option<Errno>>>,
}

/// Short times: the backend of a test never lets go in time.
pub fn config() -> Config {
    Config { linger: Duration::from_millis(10), ..Config::default() }
}

/// Runs a test with an interface whose device is there; afterwards nothing must be left behind.
pub fn with_interface<F: Future<Output = ()>>(config: Config, test: impl FnOnce(Rc<Rig>) -> F) {
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
    let rig = Rc::new(Rig { world, store, guest_store, device, handle, spawner, ended });
    let running = test(rig.clone());
    pool.run_until(async {
        let in_time = with_timeout(LIMIT, async {
            running.await;
            rig.handle.shutdown().await;
            rig.until(|| rig.ended.borrow().is_some()).await;
        });
        in_time.await.expect("the test takes too long");
    });
    rig.world.assert_clean();
    let statistics = rig.handle.statistics();
    assert_eq!((statistics.pages, statistics.quarantined_pages), (0, 0));
}

/// Makes the device, as the toolstack does.
pub fn make_device(store: &FakeStore) {
    store.add_device((FRONT, GUEST), (BACK, DOM0));
    store.write(&format!("{FRONT}/mac"), "00:16:3e:00:00:07");
}

/// A client of the store, and the task that it needs.
pub fn connect(store: &FakeStore, domain: DomId, spawner: &LocalSpawner) -> Store {
    let (client, connection) = store.client(domain);
    spawner.spawn_local(connection).unwrap();
    client
}

impl Rig {
    /// Starts a backend and waits until both ends are connected.
    pub async fn backend(&self, features: Features) -> Netback {
        let client = connect(&self.store, DOM0, &self.spawner);
        let before = self.handle.statistics().sessions;
        let backend = Netback::start(&self.world, client, features).await;
        self.until(|| self.handle.statistics().sessions > before).await;
        backend
    }

    /// Waits until something holds.
    pub async fn until(&self, holds: impl Fn() -> bool) {
        while !holds() {
            Timer::after_millis(1).await;
        }
    }

    pub fn device(&self) -> RefMut<'_, NetFront<FakeMachine>> {
        RefMut::map(self.device.borrow_mut(), |device| {
            device.as_mut().expect("nobody has taken it")
        })
    }

    /// The interface, for a stack.
    pub fn take_device(&self) -> NetFront<FakeMachine> {
        self.device.take().expect("nobody has taken it")
    }

    pub fn link(&self) -> Link {
        self.handle.link()
    }

    /// Sends a frame through the interface, as a stack would, once there is room.
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

    /// The next frame that comes in.
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

/// A frame of this length that no protocol knows, with bytes that depend on `seed`.
pub fn frame(len: usize, seed: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at * 7 + seed * 13) as u8).collect();
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}
