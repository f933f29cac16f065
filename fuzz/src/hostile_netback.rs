//! A hostile network backend: it writes any state and any node in xenstore and any bytes in the
//! pages that it maps, and sends frames and events at any time. At the end, the interface must
//! close and give all memory back.

use crate::environment::{Environment, GUEST};
use crate::input::{Input, Player, play_steps};
use crate::tasks::Spawner;
use embassy_time::Duration;
use embedded_io_async::{Read, Write};
use netfront::Nic;
use netfront::stack::{self, Ipv4, Ipv4Cidr, Stack};
use netfront::vif::{Config, Handle, NetFront, Statistics};
use smoltcp::phy::{Device, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;
use std::cell::Cell;
use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::task::Poll;
use xen::abi::netif::*;
use xen::testing::{BoundPort, FakeMachine, MappedPages};
use xen::{Channel, GrantRef, Mapping, Neighbour, PAGE_SIZE, Port, Signal};

const FRONT: &str = "/local/domain/7/device/vif/0";
const BACK: &str = "/local/domain/0/backend/vif/7/0";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);

/// The features that a backend may announce.
const FEATURES: [&str; 7] = [
    "feature-rx-copy",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-no-csum-offload",
    "feature-ipv6-csum-offload",
    "feature-split-event-channels",
];

/// Runs an input.
pub fn run(bytes: &[u8]) {
    let _ = play(bytes);
}

/// Runs an input and returns how far the guest got.
pub fn play(bytes: &[u8]) -> Statistics {
    let mut input = Input::new(bytes);
    let mut backend = Backend::new(input.byte());
    play_steps(&mut backend, &mut input);
    backend.end()
}

struct Backend {
    environment: Environment,
    handle: Handle<FakeMachine>,
    rings: Option<Rings>,
    /// Whether the interface's driver has ended.
    ended: Rc<Cell<bool>>,
    enders: usize,
}

/// Both rings, mapped.
struct Rings {
    tx: MappedPages,
    rx: MappedPages,
    ports: Vec<BoundPort>,
    tx_done: u32,
    rx_done: u32,
}

fn set_address(environment: &Environment) {
    environment.write_front("mac", b"00:16:3e:00:00:07");
}

/// Sends every frame back; long ones are to be segmented.
async fn send_back(mut device: NetFront<FakeMachine>) {
    let nic = device.handle();
    poll_fn(|cx| {
        for _ in 0..300 {
            let Some((came, mut room)) = device.receive(Instant::ZERO) else { break };
            let frame = came.consume(<[u8]>::to_vec);
            let mut meta = PacketMeta::default();
            meta.segmentation_offload_size = NonZeroU16::new(1460).filter(|_| frame.len() > 1514);
            room.set_meta(meta);
            room.consume(frame.len(), |to| to.copy_from_slice(&frame));
        }
        nic.flush();
        nic.register(cx.waker());
        Poll::Pending
    })
    .await
}

/// Starts a stack with a task that listens and a task that connects.
fn start_stack(device: NetFront<FakeMachine>, spawner: &Spawner) {
    let ipv4 = Ipv4::Static { address: Ipv4Cidr::new(ADDRESS, 24), gateway: None };
    let config = stack::Config {
        ipv4,
        receive_buffer: 8 << 10,
        transmit_buffer: 8 << 10,
        ..stack::Config::default()
    };
    let nic = device.handle();
    let (stack, runner) = Stack::new(device, nic, config);
    spawner.spawn_endless(async move {
        runner.run().await;
    });
    let connecting = stack.clone();
    spawner.spawn_endless(async move {
        let peer = SocketAddr::from(([10, 0, 0, 1], 80));
        if let Ok(mut stream) = connecting.connect(peer).await {
            let _ = stream.write_all(&[7; 3000]).await;
        }
    });
    spawner.spawn_endless(async move {
        let Ok(listener) = stack.bind(SocketAddr::from((ADDRESS, 80))).await else { return };
        while let Ok(mut stream) = listener.accept().await {
            let mut some = [0; 500];
            while let Ok(1..) = stream.read(&mut some).await {
                if stream.write_all(&some).await.is_err() {
                    break;
                }
            }
        }
    });
}

impl Player for Backend {
    fn step(&mut self, step: u8, input: &mut Input<'_>) {
        match step % 18 {
            0 => self.shake_hands(input.byte()),
            1 | 2 => {
                let (flags, part) = (u16::from(input.byte()), input.byte());
                self.deliver(input.bytes(), flags, part);
            }
            3 | 4 => self.answer(input),
            5 => self.environment.set_state(input.byte() % 10),
            6 => {
                let own = ["state", "mtu", "carrier", "frontend", "frontend-id", "feature-rx-copy"];
                let name = match input.below(3) {
                    0 => own[input.below(own.len())],
                    _ => FEATURES[input.below(FEATURES.len())],
                };
                self.environment.write(name, input.bytes());
            }
            7 => self.attach(),
            8 => self.rings = None,
            9 => self.with_ring(input, |ring, input| {
                let at = 4 * input.below(4);
                ring.store_u32(at, input.index(ring.load_u32(at, Relaxed)), Release);
            }),
            10 => self.with_ring(input, |ring, input| {
                let at = RING_HEADER + 4 * input.below(256);
                ring.write(at, input.bytes());
                let produced = ring.load_u32(RSP_PROD, Relaxed);
                ring.store_u32(RSP_PROD, produced.wrapping_add(input.below(4) as u32), Release);
            }),
            11 => self.notify(),
            12 => self.environment.tasks.pass(Duration::from_millis(1 << input.below(16))),
            13 => self.environment.disturb(input),
            14 => {
                let names = ["mac", "mtu", "backend", "backend-id"];
                let name = names[input.below(names.len())];
                self.environment.write_front(name, input.bytes());
            }
            15 => self.put_rx(input),
            16 => {
                // The toolstack makes the device again.
                self.environment.store.rm(FRONT);
                self.environment.store.rm(BACK);
                self.environment.make_device();
                set_address(&self.environment);
            }
            _ if self.enders < 3 => {
                self.enders += 1;
                let (handle, anew) = (self.handle.clone(), input.byte() & 1 == 0);
                self.environment.spawner.spawn(async move {
                    if anew { handle.resume().await } else { handle.shutdown().await }
                });
            }
            _ => {}
        }
    }

    fn settle(&mut self) {
        self.environment.tasks.run();
    }
}

impl Backend {
    fn new(how: u8) -> Backend {
        let (mut environment, client) = Environment::new(FRONT, BACK);
        set_address(&environment);
        let config = Config {
            transmit_pages: 20,
            receive_pages: 24,
            segmentation: how & 1 == 0,
            checksums: how & 2 == 0,
            linger: Duration::from_millis(200),
        };
        let (ended, made) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(None)));
        let (has_ended, making) = (ended.clone(), made.clone());
        let (guest, starting) = (environment.world.machine(GUEST), environment.spawner.clone());
        environment.spawner.spawn(async move {
            let (nic, driver) = NetFront::new(guest, client, FRONT, config)
                .await
                .expect("the device has an address");
            making.set(Some(nic.handle()));
            if how & 4 == 0 {
                starting.spawn_endless(send_back(nic));
            } else {
                start_stack(nic, &starting);
            }
            driver.run().await;
            has_ended.set(true);
        });
        environment.tasks.run();
        let handle = made.take().expect("xenstore answers at once");
        Backend { environment, handle, rings: None, ended, enders: 0 }
    }

    /// Connects as a correct backend does, with some of the features.
    fn shake_hands(&mut self, features: u8) {
        for (number, name) in FEATURES.iter().enumerate() {
            let value = if number == 0 || features >> number & 1 == 1 { "1" } else { "0" };
            self.environment.write(name, value);
        }
        self.environment.initialise();
        self.attach();
        self.environment.set_state(4);
        self.environment.tasks.run();
    }

    fn attach(&mut self) {
        self.rings = None;
        let map = |name| self.environment.peer.map(GUEST, &[self.environment.grant(name)?]).ok();
        let (Some(tx), Some(rx)) = (map("tx-ring-ref"), map("rx-ring-ref")) else { return };
        let names = ["event-channel", "event-channel-tx", "event-channel-rx"];
        let bind = |name| {
            let port = Port(self.environment.number(name)?);
            self.environment.peer.bind_port(GUEST, port, Arc::new(Signal::new())).ok()
        };
        let ports = names.into_iter().filter_map(bind).collect();
        self.rings = Some(Rings { tx, rx, ports, tx_done: 0, rx_done: 0 });
    }

    fn notify(&self) {
        if let Some(rings) = &self.rings {
            rings.ports.iter().for_each(BoundPort::notify);
        }
    }

    fn with_ring(&self, input: &mut Input<'_>, work: impl FnOnce(xen::Shared<'_>, &mut Input<'_>)) {
        let Some(rings) = &self.rings else { return };
        let ring = if input.byte() & 1 == 0 { &rings.tx } else { &rings.rx };
        work(ring.shared(), input);
        self.notify();
    }

    /// Delivers a frame in parts, perhaps many times repeated.
    fn deliver(&mut self, bytes: &[u8], flags: u16, part: u8) {
        let Some(rings) = &mut self.rings else { return };
        let part = 16 * (usize::from(part) + 1);
        let bytes = if flags & 0x80 != 0 { bytes.repeat(64) } else { bytes.to_vec() };
        let parts: Vec<&[u8]> = bytes.chunks(part).collect();
        for (number, some) in parts.iter().enumerate() {
            let mut slot = [0; RX_SLOT];
            let at = RING_HEADER + rings.rx_done as usize % RING_SLOTS * RX_SLOT;
            rings.rx.shared().read(at, &mut slot);
            let RxRequest { id, gref } = RxRequest::decode(&slot);
            if let Ok(page) = self.environment.peer.map(GUEST, &[GrantRef(gref)]) {
                page.shared().write(0, some);
            }
            let more = if number + 1 < parts.len() { NETRXF_MORE_DATA } else { 0 };
            let flags = flags & (NETRXF_DATA_VALIDATED | NETRXF_CSUM_BLANK) | more;
            let response = RxResponse { id, offset: 0, flags, status: some.len() as i16 };
            rings.rx.shared().write(at, &response.encode());
            rings.rx_done = rings.rx_done.wrapping_add(1);
        }
        rings.rx.shared().store_u32(RSP_PROD, rings.rx_done, Release);
        self.notify();
    }

    /// Puts a response with arbitrary fields into the next slot.
    fn put_rx(&mut self, input: &mut Input<'_>) {
        let Some(rings) = &mut self.rings else { return };
        let mut slot = [0; RX_SLOT];
        let at = RING_HEADER + rings.rx_done as usize % RING_SLOTS * RX_SLOT;
        rings.rx.shared().read(at, &mut slot);
        let id = RxRequest::decode(&slot).id;
        let id = if input.byte() > 250 { input.byte().into() } else { id };
        let (offset, flags) = (16 * u16::from(input.byte()), input.byte().into());
        let status = match input.byte() {
            short @ 0..200 => short.into(),
            error @ 200..220 => 200 - i16::from(error),
            long => (PAGE_SIZE / 32) as i16 * i16::from(long - 219),
        };
        let response = RxResponse { id, offset, flags, status };
        rings.rx.shared().write(at, &response.encode());
        rings.rx_done = rings.rx_done.wrapping_add(1);
        rings.rx.shared().store_u32(RSP_PROD, rings.rx_done, Release);
        self.notify();
    }

    /// Answers some requests, rightly or wrongly.
    fn answer(&mut self, input: &mut Input<'_>) {
        let Some(rings) = &mut self.rings else { return };
        let how = input.byte();
        let mut extra = false;
        for _ in 0..=how % 32 {
            let ring = rings.tx.shared();
            if ring.load_u32(REQ_PROD, Relaxed) == rings.tx_done {
                break;
            }
            let mut slot = [0; TX_SLOT];
            let at = RING_HEADER + rings.tx_done as usize % RING_SLOTS * TX_SLOT;
            ring.read(at, &mut slot);
            let request = TxRequest::decode(&slot);
            let (id, status) = match how {
                224..232 => (request.id ^ 1, NETIF_RSP_OKAY),
                232..240 => (request.id, NETIF_RSP_NULL),
                240..248 => (request.id, input.byte().into()),
                _ if extra => (0, NETIF_RSP_NULL),
                192..224 => (request.id, NETIF_RSP_DROPPED),
                _ => (request.id, NETIF_RSP_OKAY),
            };
            extra = !extra && request.flags & NETTXF_EXTRA_INFO != 0;
            ring.write(at, &TxResponse { id, status }.encode());
            rings.tx_done = rings.tx_done.wrapping_add(1);
            ring.store_u32(RSP_PROD, rings.tx_done, Release);
        }
        self.notify();
    }

    /// The backend disappears, then the interface closes.
    fn end(mut self) -> Statistics {
        self.environment.tasks.run();
        self.environment.store.resume();
        self.rings = None;
        let handle = self.handle.clone();
        self.environment.spawner.spawn(async move { handle.shutdown().await });
        self.environment.finish();
        assert!(self.ended.get(), "the driver does not end");
        let statistics = self.handle.statistics();
        assert_eq!((statistics.pages, statistics.quarantined_pages), (0, 0));
        let world = self.environment.world.clone();
        drop((self.environment, self.handle));
        world.assert_clean();
        statistics
    }
}

/// Sessions of a correct backend, with frames of all kinds.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 1]);
    arp.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 7]);
    // A SYN with an MSS option.
    let mut syn = vec![0, 0x16, 0x3e, 0, 0, 7, 2, 0, 0, 0, 0, 9, 8, 0];
    syn.extend([0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0x26, 0xc4, 10, 0, 0, 1, 10, 0, 0, 7]);
    syn.extend([0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0x20, 0, 0, 0, 0, 0]);
    syn.extend([2, 4, 5, 0xb4]);
    let deliver =
        |frame: &[u8], flags: u8, part: u8| [&[1, flags, part, frame.len() as u8], frame].concat();
    let mut seeds = Vec::new();
    for how in 0..8u8 {
        for features in [0x6e, 0x2e, 0x02, 0x10, 0x7e] {
            let mut seed = vec![how, 0, features];
            seed.extend(deliver(&arp, 0, 255));
            seed.extend([3, 31]);
            seed.extend(deliver(&syn, 2, 255));
            seed.extend([3, 31]);
            // A long frame in many parts, and its answers.
            seed.extend(deliver(&syn, 0x83, 255));
            seed.extend([3, 31, 12, 9, 3, 31, 6, 1, 3, 1, b'1', 11]);
            // The backend restarts, and the toolstack makes the device again.
            seed.extend([5, 5, 8, 5, 6, 12, 12, 0, features]);
            seed.extend(deliver(&syn, 3, 1));
            seed.extend([3, 31, 8, 16, 12, 12, 0, features]);
            seed.extend(deliver(&arp, 1, 255));
            seed.extend([3, 31]);
            seeds.push(seed);
        }
    }
    seeds
}
