//! A hostile guest: it sends any request, writes any bytes in the pages that it shares, and sends
//! events at any time. At the end, the backend's engine must leave nothing of the guest mapped or
//! bound.

use crate::environment::{DOM0, GUEST};
use crate::input::{Input, Player, play_steps};
use crate::tasks::{Spawner, Tasks};
use embassy_time::Duration;
use futures_util::FutureExt;
use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use xen::testing::{FakeMachine, World};
use xen::{Errno, GrantRef, Machine, Neighbour, Pages, Port, Shared, Signal};
use xensock::back::{CommandLink, Limits, serve};
use xensock::ring::{Consumer, NotifyPolicy, Producer, copy_in, len, split_at};
use xensock::testing::{FakeDatagrams, FakeDom0, FakeListener, FakeNet, FakeStream};
use xensock::wire::{
    Call, Family, Group, Layout, MAX_SLOT, Protocol, RECORD_HEADER, Record, Region, Request,
    RingGrants, RingOffer, Shutdown, SocketOption,
};

const LIMITS: Limits = Limits {
    sockets: 8,
    pages: 160,
    max_ring_order: 2,
    backlog: 32,
    // More than an honest guest would notice, and less than a storm.
    connections_per_second: Some(100),
    bytes_in_per_second: Some(1 << 20),
    bytes_out_per_second: Some(1 << 20),
    linger: std::time::Duration::from_millis(150),
};

/// A group that sockets of datagrams join.
const GROUP: Group =
    Group::V4 { group: Ipv4Addr::new(239, 0, 0, 1), interface: Ipv4Addr::UNSPECIFIED };

/// Words and slots of the command ring (`ring.h`).
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const SLOTS: usize = 64;

/// Runs an input.
pub fn run(bytes: &[u8]) {
    let _ = play(bytes);
}

/// How far a guest got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Answered requests.
    pub answered: usize,
    /// Answered requests that succeeded.
    pub done: usize,
    /// Bytes received by remote ends.
    pub sent: usize,
}

/// Runs an input and returns how far the guest got.
pub fn play(bytes: &[u8]) -> Reached {
    let mut input = Input::new(bytes);
    let protocol = input.protocol();
    let mut frontend = Frontend::new(protocol);
    play_steps(&mut frontend, &mut input);
    frontend.end()
}

struct Frontend {
    tasks: Tasks,
    spawner: Spawner,
    world: World,
    net: FakeNet,
    machine: FakeMachine,
    protocol: Protocol,
    page: Pages,
    grant: GrantRef,
    port: Port,
    req_prod: u32,
    next_id: u32,
    rsp_cons: u32,
    reached: Reached,
    rings: Vec<Ring>,
    server: Option<FakeListener>,
    peers: Vec<FakeStream>,
    connected: Rc<RefCell<Vec<FakeStream>>>,
    datagrams: Vec<FakeDatagrams>,
}

/// A data ring's memory and channel.
struct Ring {
    pages: Pages,
    grants: Vec<GrantRef>,
    port: Port,
    layout: Layout,
    offered: RingGrants,
}

impl Ring {
    fn new(machine: &FakeMachine, protocol: Protocol, order: u32) -> Ring {
        let layout = protocol.layout(order).expect("a valid order");
        let pages = machine.alloc(layout.pages).expect("enough memory");
        let grants: Vec<GrantRef> = (0..layout.pages)
            .map(|index| machine.grant(DOM0, &pages, index).expect("enough grants"))
            .collect();
        let indexes = layout.split(pages.shared()).indexes;
        let offered = protocol.dialect.offer_ring(indexes, order, &grants);
        let port = machine.open_port(DOM0, Arc::new(Signal::new())).expect("enough ports");
        Ring { pages, grants, port, layout, offered }
    }

    fn region(&self) -> Region<'_> {
        self.layout.split(self.pages.shared())
    }
}

fn address(port: usize) -> SocketAddr {
    ([127, 0, 0, 1], 80 + port as u16).into()
}

impl Player for Frontend {
    fn step(&mut self, step: u8, input: &mut Input<'_>) {
        let which = input.below(self.rings.len());
        match step % 21 {
            0..=3 => self.request(input),
            4 => {
                let bytes = input.bytes().to_vec();
                self.push(&bytes);
            }
            5 => {
                let at = 4 * input.below(4);
                let near = self.page.shared().load_u32(at, Relaxed);
                self.page.shared().store_u32(at, input.index(near), Release);
                self.machine.notify(self.port);
            }
            6 => self.machine.notify(self.port),
            7 => {
                // A word of the indexes page: one of the first 48, which are in use.
                let at = 4 * input.below(48);
                let indexes = self.rings[which].region().indexes;
                let near = indexes.load_u32(at, Relaxed);
                indexes.store_u32(at, input.index(near), Release);
                self.machine.notify(self.rings[which].port);
            }
            8 => {
                let direction = self.rings[which].layout.output;
                let indexes = self.rings[which].region().indexes;
                let prod = indexes.load_u32(direction.prod, Relaxed);
                let count = u32::from(input.byte()) * 32;
                indexes.store_u32(direction.prod, prod.wrapping_add(count), Release);
                self.machine.notify(self.rings[which].port);
            }
            9 => {
                let direction = self.rings[which].layout.input;
                let indexes = self.rings[which].region().indexes;
                indexes.store_u32(
                    direction.cons,
                    indexes.load_u32(direction.prod, Relaxed),
                    Release,
                );
                self.machine.notify(self.rings[which].port);
            }
            10 => self.machine.notify(self.rings[which].port),
            11 => {
                let to = address(input.below(4));
                if let Some(Ok(socket)) = self.net.connect(to).now_or_never() {
                    self.peers.push(socket);
                }
            }
            12 => {
                if let Some(Some(socket)) =
                    self.server.as_ref().map(|server| server.accept().now_or_never())
                {
                    self.peers.push(socket);
                }
            }
            13 => self.peer(input),
            14 => self.tasks.pass(Duration::from_millis(1 << input.below(10))),
            15 => match input.below(4) {
                0 => self.server = None,
                1 => self.net.silence(address(0)),
                2 => self.net.speak(address(0)),
                _ => {
                    let (net, connected) = (self.net.clone(), self.connected.clone());
                    let to = address(input.below(4));
                    self.spawner.spawn_endless(async move {
                        if let Ok(socket) = net.connect(to).await {
                            connected.borrow_mut().push(socket);
                        }
                    });
                }
            },
            16 => {
                // A new ring, perhaps of another size.
                let orders = self.protocol.orders();
                let order = (*orders.start() + input.below(3) as u32).min(*orders.end());
                if self.rings.len() < 4 && order <= 4 {
                    self.rings.push(Ring::new(&self.machine, self.protocol, order));
                }
            }
            17 => {
                // A new event channel for a ring.
                self.machine.close_port(self.rings[which].port);
                let signal = Arc::new(Signal::new());
                let port = self.machine.open_port(DOM0, signal).expect("enough ports");
                self.rings[which].port = port;
            }
            18 => self.record(which, input),
            19 => self.datagrams(input),
            _ => {
                // Takes one record, as an honest guest does.
                let Ring { layout, port, .. } = &self.rings[which];
                let region = self.rings[which].region();
                let cons = region.indexes.load_u32(layout.input.cons, Relaxed);
                let mut consumer = Consumer::at(layout.input, NotifyPolicy::HalfFull, cons);
                if let Ok(data) = consumer.data(region)
                    && let Ok(Some(next)) = Record::next(data)
                {
                    let _ = consumer.advance(region, next.record.size as usize);
                    self.machine.notify(*port);
                }
            }
        }
    }

    fn settle(&mut self) {
        self.tasks.run();
        self.responses();
    }
}

impl Frontend {
    fn new(protocol: Protocol) -> Frontend {
        let (world, net) = (World::new(), FakeNet::new());
        let tasks = Tasks::new();
        let spawner = tasks.spawner();
        let machine = world.machine(GUEST);
        let page = machine.alloc(1).expect("enough memory");
        // As `ring.h` initialises it.
        page.shared().store_u32(4, 1, Relaxed);
        page.shared().store_u32(12, 1, Relaxed);
        let grant = machine.grant(DOM0, &page, 0).expect("enough grants");
        let port = machine.open_port(DOM0, Arc::new(Signal::new())).expect("enough ports");
        let order = *protocol.orders().start();
        let rings = (0..2).map(|_| Ring::new(&machine, protocol, order)).collect();
        let dom0 = FakeDom0::new(&world, DOM0, net.clone());
        let events = Arc::new(Signal::new());
        let link = CommandLink {
            ring: dom0.map(GUEST, &[grant]).expect("the page is granted"),
            channel: dom0.bind_port(GUEST, port, events.clone()).expect("the port is open"),
            signal: events,
        };
        spawner.spawn_endless(async move {
            serve(&dom0, GUEST, link, protocol, LIMITS).await;
        });
        let server = net.listen(address(0)).ok();
        Frontend {
            tasks,
            spawner,
            world,
            net,
            machine,
            protocol,
            page,
            grant,
            port,
            req_prod: 0,
            next_id: 0,
            rsp_cons: 0,
            reached: Reached::default(),
            rings,
            server,
            peers: Vec::new(),
            connected: Rc::default(),
            datagrams: Vec::new(),
        }
    }

    /// Writes a record, which may be wrong in a field.
    fn record(&mut self, which: usize, input: &mut Input<'_>) {
        let ring = &self.rings[which];
        let (region, output) = (ring.region(), ring.layout.output);
        let prod = region.indexes.load_u32(output.prod, Relaxed);
        let mut producer = Producer::at(output, prod);
        let Ok(room) = producer.room(region) else { return };
        let payload = vec![1; 16 * usize::from(input.byte())];
        let to = Some(address(input.below(4))).filter(|to| to.port() != 83);
        let mut record = Record::new(payload.len(), to);
        let size = record.size as usize;
        if len(&room) < size {
            return;
        }
        match input.below(12) {
            0 => record.size = input.index(record.size),
            1 => record.len = input.index(record.len),
            2 => record.error = Some(Errno::EIO),
            3 => record.addr = "255.255.255.255:9".parse().ok(),
            4 => record.addr = "[::1]:80".parse().ok(),
            _ => {}
        }
        record.put(&room);
        copy_in(&split_at(room, RECORD_HEADER).1, &payload);
        let _ = producer.advance(region, size);
        self.machine.notify(ring.port);
    }

    /// Takes a step of the remote ends of datagrams.
    fn datagrams(&mut self, input: &mut Input<'_>) {
        let which = input.below(self.datagrams.len());
        let (step, to) = (input.below(7), address(input.below(4)));
        match step {
            0 if self.datagrams.len() < 4 => {
                self.datagrams.extend(self.net.datagrams_at(to));
            }
            1 => self.net.hold_datagrams(input.byte() & 1 == 1),
            _ if self.datagrams.is_empty() => {}
            2 => drop(self.datagrams.remove(which)),
            3 => {
                while let Some((_, payload)) = self.datagrams[which].try_receive() {
                    self.reached.sent += payload.len();
                }
            }
            4 => {
                let to = SocketAddr::new(GROUP.addr(), to.port());
                let _ = self.datagrams[which].send(to, &[2; 100]);
            }
            _ => {
                let payload = vec![3; 32 * usize::from(input.byte())];
                for _ in 0..=input.below(40) {
                    let _ = self.datagrams[which].send(to, &payload);
                }
            }
        }
    }

    /// Takes a step of a remote end.
    fn peer(&mut self, input: &mut Input<'_>) {
        if self.peers.is_empty() {
            self.peers.append(&mut self.connected.borrow_mut());
        }
        if self.peers.is_empty() {
            return;
        }
        let which = input.below(self.peers.len());
        let peer = &self.peers[which];
        match input.below(6) {
            0 => {
                let mut bytes = [0; 3000];
                if let Some(Ok(count)) = peer.read(&mut bytes).now_or_never() {
                    self.reached.sent += count;
                }
            }
            1 => drop(peer.write(&[1; 3000]).now_or_never()),
            2 => drop(peer.write(input.bytes()).now_or_never()),
            3 => peer.finish(),
            4 => peer.reset(),
            _ => drop(self.peers.remove(which)),
        }
    }

    /// Sends a well-formed request.
    fn request(&mut self, input: &mut Input<'_>) {
        let socket = u64::from(input.byte() % 6);
        let ring = &self.rings[input.below(self.rings.len())];
        let offer = RingOffer { grants: ring.offered.clone(), port: ring.port };
        let addr = address(input.below(4));
        let options = SocketOption::ALL;
        let call = match input.below(18) {
            0 => Call::Socket { family: Family::V4 },
            1 => Call::Connect { addr, flags: 0, ring: offer },
            2 => Call::Release { reuse: input.byte() & 1 == 1 },
            3 => Call::Bind { addr },
            4 => Call::Listen { backlog: input.byte().into() },
            5 => Call::Accept { new: u64::from(input.byte() % 6), ring: offer },
            6 => Call::Poll,
            7 => {
                Call::SetOption { option: options[input.below(options.len())], value: input.u32() }
            }
            8 => Call::GetOption { option: options[input.below(options.len())] },
            9 => Call::Shutdown {
                how: [Shutdown::Read, Shutdown::Write, Shutdown::Both][input.below(3)],
            },
            10 => Call::LocalAddr,
            11 => Call::PeerAddr,
            12 => Call::Resize { grants: offer.grants },
            13 => Call::DatagramSocket { family: Family::V4 },
            14 => Call::Open { peer: None, ring: offer },
            15 => Call::Open { peer: Some(addr), ring: offer },
            16 => Call::Join(GROUP),
            _ => Call::Leave(GROUP),
        };
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let mut slot = [0; MAX_SLOT];
        let slot = &mut slot[..self.protocol.slots().request];
        if self.protocol.encode_request(&Request { id, socket, call }, slot).is_ok() {
            self.push(slot);
        }
    }

    /// Counts the responses.
    fn responses(&mut self) {
        let slots = self.protocol.slots();
        let rsp_prod = self.page.shared().load_u32(RSP_PROD, Acquire);
        if rsp_prod.wrapping_sub(self.rsp_cons) > slots.count {
            // The guest has overwritten the index.
            self.rsp_cons = rsp_prod;
        }
        while self.rsp_cons != rsp_prod {
            let at = SLOTS + (self.rsp_cons & (slots.count - 1)) as usize * slots.stride();
            let mut slot = vec![0; slots.response];
            self.page.shared().read(at, &mut slot);
            self.reached.answered += 1;
            self.reached.done += usize::from(self.protocol.decode_response(&slot).result.is_ok());
            self.rsp_cons = self.rsp_cons.wrapping_add(1);
        }
    }

    /// Writes and publishes the next slot.
    fn push(&mut self, bytes: &[u8]) {
        let slots = self.protocol.slots();
        let at = SLOTS + (self.req_prod & (slots.count - 1)) as usize * slots.stride();
        let page: Shared<'_> = self.page.shared();
        page.write(at, &bytes[..bytes.len().min(slots.request)]);
        self.req_prod = self.req_prod.wrapping_add(1);
        page.store_u32(REQ_PROD, self.req_prod, Release);
        self.machine.notify(self.port);
    }

    /// The guest disappears.
    fn end(mut self) -> Reached {
        self.tasks.run();
        drop((self.tasks, self.spawner, self.server));
        self.peers.clear();
        self.datagrams.clear();
        self.connected.borrow_mut().clear();
        assert_eq!(self.net.open_sockets(), 0, "the engine left a socket open");
        assert_eq!(self.net.bound_sockets(), 0, "the engine left a listening socket behind");
        assert_eq!(self.net.datagram_sockets(), 0, "the engine left a socket of datagrams open");
        for ring in self.rings {
            self.machine.close_port(ring.port);
            give_back(&self.machine, ring.pages, &ring.grants);
        }
        self.machine.close_port(self.port);
        give_back(&self.machine, self.page, &[self.grant]);
        self.world.assert_clean();
        self.reached
    }
}

#[allow(unsafe_code, reason = "gives pages back to the fake machine")]
fn give_back(machine: &FakeMachine, pages: Pages, grants: &[GrantRef]) {
    for grant in grants {
        assert_eq!(machine.revoke(*grant), Ok::<(), Errno>(()), "the engine left a page mapped");
    }
    // SAFETY: all grants of the pages were revoked, and the pages came from this machine.
    unsafe { machine.free(pages) };
}

/// Connections that are opened, used and released, for each protocol.
pub fn seeds() -> Vec<Vec<u8>> {
    let request = |socket, call: u8, more: &[u8]| [&[0, 0, socket, 0, 0, call], more].concat();
    let mut seeds = Vec::new();
    for protocol in [0x00, 0x7f, 0xff] {
        let connected = [request(1, 0, &[]), request(1, 1, &[]), vec![12, 0]].concat();
        let released = [request(1, 2, &[0]), vec![14, 0, 9]].concat();
        let served = [
            request(1, 0, &[]),
            [&[0, 0, 1, 0, 1, 3][..]].concat(),
            request(1, 4, &[9]),
            request(1, 6, &[]),
            request(1, 5, &[2]),
            vec![11, 0, 1],
        ]
        .concat();
        let moved = vec![8, 0, 9, 13, 0, 0, 0, 13, 0, 0, 1, 9, 0, 7, 0, 1, 3];
        let asked = [
            request(1, 7, &[3, 1, 0, 0, 0]),
            request(1, 8, &[3]),
            request(1, 9, &[1]),
            request(1, 10, &[]),
            request(1, 11, &[]),
            [&[0, 0, 1, 1, 0, 12][..]].concat(),
        ]
        .concat();
        // A socket at port 81, and a peer at port 82.
        let datagrams = [
            request(1, 13, &[]),
            [&[0, 0, 1, 0, 1, 3][..]].concat(),
            request(1, 14, &[]),
            request(1, 16, &[]),
            vec![19, 0, 0, 0, 2, 18, 0, 10, 2, 11, 19, 0, 0, 5, 1, 3, 9, 19, 0, 0, 3, 0],
            vec![20, 0, 20, 0, 18, 0, 5, 3, 11, 18, 0, 5, 2, 3, 19, 0, 0, 4, 1],
        ]
        .concat();
        let all = |parts: &[&Vec<u8>]| {
            let parts: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            [vec![protocol], parts].concat()
        };
        seeds.push(all(&[&connected, &moved, &released]));
        seeds.push(all(&[&served, &moved, &request(2, 2, &[0]), &released]));
        if protocol != 0 {
            seeds.push(all(&[&datagrams, &moved, &released]));
        }
        seeds.push(all(&[&connected, &moved, &asked, &released]));
        seeds.push(all(&[&connected, &moved, &request(1, 2, &[1]), &connected, &released]));
    }
    seeds
}
