//! Hostile ends of IDC: they dial a node and let it dial them, say any HELLO, and send any frames
//! to its endpoints, its buffer service and its courier. An honest pair goes on meanwhile. At the
//! end, everything that was submitted is complete, and all drivers end.

mod application;
mod link;

use crate::input::{Input, Player, play_steps};
use crate::tasks::{Spawner, Tasks};
use application::{Application, Done, Jobs, carry, exchange};
use edge_nal::{TcpAccept, TcpBind, TcpConnect};
use embassy_time::Duration;
use futures_util::FutureExt;
use idc::buffer::Key;
use idc::life::Publication;
use idc::tcp::Tcp;
use idc::testing::{FakeAcceptor, FakeHost, FakeNet};
use idc::wire::{Header, Hello, Kind, Transfer};
use idc::{Courier, Endpoint, LocalBuffer, Node, Quota, Registration, RemoteBuffer, Rights};
use link::Link;
use std::net::SocketAddr;
use std::rc::Rc;
use xen::testing::CountingAllocator;

type Transport = Tcp<'static, FakeHost, FakeAcceptor>;

/// The bytes that each direction of a connection buffers.
const CAPACITY: usize = 2048;

/// The most connections at a time.
const SOCKETS: usize = 100;

/// The most bytes that all this may take.
const MEMORY: usize = 4 << 20;

const QUOTA: Quota =
    Quota { messages: 3, message: 200, transactions: 2, parameters: 100, status: 50 };

/// The hosts: the node's, an honest one, and a hostile one.
struct Hosts {
    net: FakeNet,
    hosts: [FakeHost; 3],
    acceptors: [FakeAcceptor; 3],
}

thread_local! {
    /// Transports refer to them, so they stay.
    static HOSTS: &'static Hosts = {
        let net = FakeNet::new(CAPACITY);
        let hosts = [1, 2, 9].map(|last| net.host([10, 0, 0, last]));
        let acceptors = [0, 1, 2].map(|at| {
            let bound = hosts[at].bind(address(0)).now_or_never();
            bound.expect("it does not wait").expect("the address is free")
        });
        Box::leak(Box::new(Hosts { net, hosts, acceptors }))
    };
}

/// Where visitors of a host are let in.
fn address(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 900).into()
}

/// Runs an input.
pub fn run(bytes: &[u8]) {
    let _ = play(bytes);
}

/// How far the hostile ends got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Connections with endpoints.
    pub connections: usize,
    /// Messages and transactions that the node has received.
    pub received: usize,
    /// Messages and transactions of the node that were answered.
    pub answered: usize,
    /// Frames of data that the hostile ends have received.
    pub data: usize,
    /// Transfers of the node's courier that succeeded.
    pub transfers: usize,
}

/// Runs an input and returns how far the hostile ends got.
pub fn play(bytes: &[u8]) -> Reached {
    let mut input = Input::new(bytes);
    if input.byte() == 0xff {
        texts(input.rest());
        return Reached::default();
    }
    let mut ends = Ends::new();
    play_steps(&mut ends, &mut input);
    ends.end()
}

/// Decodes what other ends send as text or as a reference.
fn texts(bytes: &[u8]) {
    if let Ok(hello) = Hello::from_bytes(bytes) {
        assert_eq!(hello.to_string().as_bytes(), bytes);
        assert!(hello.publication.quota.memory() <= Quota::MAX_MEMORY);
    }
    if let Some(head) = bytes.first_chunk()
        && let Ok(header) = Header::from_bytes(head)
    {
        assert_eq!(header.to_bytes(), *head);
    }
    if let Some(reference) = bytes.first_chunk()
        && let Ok(buffer) = RemoteBuffer::from_bytes(reference)
    {
        assert_eq!(RemoteBuffer::from_bytes(&buffer.to_bytes()), Ok(buffer));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok((publication, words)) = Publication::from_text(text)
    {
        let again = publication.to_string();
        assert!(text.starts_with(&again) && words.is_none_or(|words| text.ends_with(words)));
    }
}

struct Ends {
    tasks: Tasks,
    spawner: Spawner,
    start: usize,
    hosts: &'static Hosts,
    node: Node<Transport>,
    endpoints: Vec<Endpoint>,
    registered: Vec<Registration<Transport>>,
    jobs: Rc<Jobs>,
    done: Rc<Done>,
    links: Vec<Link>,
}

impl Player for Ends {
    fn step(&mut self, step: u8, input: &mut Input<'_>) {
        let which = input.below(self.links.len());
        match step % 14 {
            0 => self.dial(),
            1 => self.accept(),
            2 => self.with(which, |link, _| link.shake_hands(input.byte())),
            3 => self.with(which, |link, _| link.hello(input)),
            4 | 5 => self.with(which, |link, _| link.frame(input)),
            6 => self.with(which, |link, _| link.send(input.bytes())),
            7 => self.with(which, |link, done| link.receive(done)),
            8 => self.with(which, |link, _| link.answer(input)),
            9 => self.transfer(which, input),
            10 => {
                if which < self.links.len() {
                    self.links.swap_remove(which);
                }
            }
            11 => self.tasks.pass(Duration::from_millis(1 << input.below(15))),
            12 => self.application(input),
            _ => self.courier(input),
        }
    }

    fn settle(&mut self) {
        self.tasks.run();
        let taken = CountingAllocator::allocated().saturating_sub(self.start);
        assert!(taken < MEMORY, "{taken} bytes are allocated");
    }
}

impl Ends {
    fn new() -> Ends {
        let (tasks, hosts) = (Tasks::new(), HOSTS.with(|hosts| *hosts));
        let start = CountingAllocator::allocated();
        hosts.net.clear();
        let (spawner, done, jobs) = (tasks.spawner(), Rc::new(Done::default()), Rc::default());
        let node = |at: usize| {
            let here = address([1, 2][at]);
            let transport = Transport::new(&hosts.hosts[at], Some(here));
            let door = transport.clone();
            spawner.spawn_endless(async move {
                let error = door.serve(&hosts.acceptors[at]).await;
                panic!("nobody can be accepted: {error:?}");
            });
            let mut number = at as u8;
            let random = move || {
                number += 2;
                [number; 16]
            };
            Node::new(transport, random)
        };
        let (node, honest) = (node(0), node(1));
        exchange(&spawner, &node, &honest, done.clone());
        let serving = node.clone();
        spawner.spawn_endless(async move {
            let error = serving.serve_buffers(2).await;
            panic!("buffers are not served: {error}");
        });
        let (endpoints, registered, links) = Default::default();
        let mut ends =
            Ends { tasks, spawner, start, hosts, node, endpoints, registered, jobs, done, links };
        for service in ["any/test", "any/test", "tcp:10.0.0.9:900/back"] {
            ends.create(service);
        }
        let (courier, drive) = Courier::create(ends.node.resource(Quota::default()).expect("none"));
        ends.spawner.spawn(drive.map(drop));
        ends.spawner.spawn(carry(courier, ends.jobs.clone(), ends.done.clone()));
        ends.register();
        ends.tasks.run();
        ends
    }

    /// Creates an endpoint with an application.
    fn create(&mut self, address: &str) {
        let resource = self.node.resource(QUOTA).expect("there is memory");
        let address = address.parse().expect("an address");
        let (endpoint, events, drive) = Endpoint::create(resource, address);
        self.spawner.spawn(drive.map(drop));
        let application = Application {
            endpoint: endpoint.clone(),
            spawner: self.spawner.clone(),
            done: self.done.clone(),
        };
        self.spawner.spawn(application.run(events));
        self.endpoints.push(endpoint);
    }

    fn register(&mut self) {
        let buffer = LocalBuffer::from(vec![0xa5; 5000]);
        let rights = Rights::READ | Rights::WRITE;
        self.registered.push(self.node.register(&buffer, rights).expect("there is memory"));
    }

    fn with(&mut self, which: usize, step: impl FnOnce(&mut Link, &Done)) {
        if let Some(link) = self.links.get_mut(which) {
            step(link, &self.done);
        }
    }

    fn dial(&mut self) {
        if self.links.len() < SOCKETS
            && let Some(Ok(socket)) = self.hosts.hosts[2].connect(address(1)).now_or_never()
        {
            self.links.push(Link::new(socket));
        }
    }

    /// Accepts all that have dialled.
    fn accept(&mut self) {
        while self.links.len() < SOCKETS
            && let Some(Ok((_, socket))) = self.hosts.acceptors[2].accept().now_or_never()
        {
            self.links.push(Link::new(socket));
        }
    }

    /// Asks for bytes of a registered buffer, or sends some.
    fn transfer(&mut self, which: usize, input: &mut Input<'_>) {
        let Some(registered) = self.registered.first() else { return };
        let reference = registered.reference().to_bytes();
        let mut key = Key(reference[32..48].try_into().expect("16 bytes"));
        let id = u32::from_le_bytes(reference[4..8].try_into().expect("4 bytes"));
        let how = input.byte();
        if how & 2 != 0 {
            key.0[0] ^= how;
        }
        let offset = u64::from(input.index(0)).wrapping_mul(1 + u64::from(how >> 4));
        let length = u64::from(input.index(0)) * 20;
        let kind = if how & 1 == 0 { Kind::Read } else { Kind::Write };
        let transfer = Transfer { id, key, offset, length }.to_bytes();
        let header = Header { kind, slot: 3, len: Transfer::LEN as u32, code: 0 };
        self.with(which, |link, _| link.send(&[&header.to_bytes()[..], &transfer].concat()));
    }

    /// Registers or unregisters a buffer, or ends an endpoint for another one.
    fn application(&mut self, input: &mut Input<'_>) {
        match input.below(3) {
            0 if self.registered.len() < 4 => self.register(),
            1 if !self.registered.is_empty() => drop(self.registered.remove(0)),
            _ => {
                let which = input.below(self.endpoints.len());
                self.endpoints.remove(which).destroy();
                self.create(["any/test", "tcp:10.0.0.9:900/back"][input.below(2)]);
            }
        }
    }

    /// Lets the courier transfer something to or from a buffer of the hostile host.
    fn courier(&mut self, input: &mut Input<'_>) {
        let how = input.byte();
        if how & 1 == 0 {
            self.jobs.given_up.set(true);
        } else if self.jobs.waiting.borrow().len() < 4
            && let Some(registered) = self.registered.first()
        {
            let mut bytes = registered.reference().to_bytes();
            // The owner's node, and its address, which may be the node's own.
            bytes[16..32].fill(how >> 4);
            if how & 8 == 0 {
                bytes[63] = 9;
            }
            let buffer = RemoteBuffer::from_bytes(&bytes).expect("a reference");
            let job = (buffer, how & 2 == 0, 100 * usize::from(input.byte()));
            self.jobs.waiting.borrow_mut().push_back(job);
        }
        self.jobs.changed.wake_all();
    }

    /// Checks that the honest pair goes on, and ends everything.
    fn end(mut self) -> Reached {
        self.settle();
        let before = self.done.exchanges.get();
        self.tasks.pass(Duration::from_secs(1));
        assert!(self.done.exchanges.get() > before, "the honest pair does not go on");
        self.endpoints.iter().for_each(Endpoint::destroy);
        self.jobs.over.set(true);
        self.jobs.given_up.set(true);
        self.jobs.changed.wake_all();
        // The hostile ends stay, and do nothing.
        for _ in 0..20 {
            self.tasks.pass(Duration::from_secs(1));
        }
        assert_eq!(self.tasks.unfinished(), 0, "a driver waits for the other end");
        assert_eq!(self.done.submitted.get(), self.done.completed.get());
        self.done.reached.get()
    }
}

/// Ends that keep to the protocol for a while.
pub fn seeds() -> Vec<Vec<u8>> {
    let shake = |link: u8, how: u8| [2, link, how, 7, link];
    let connected = |service: u8| {
        let shake = shake(0, service << 1);
        [&[0, 0][..], &shake, &shake, &[7, 0]].concat()
    };
    let frame = |kind: u8, slot: u8, body: &[u8]| {
        [&[4, 0, kind, slot, 0, 0, body.len() as u8][..], body].concat()
    };
    let all = |parts: &[&[u8]]| [&[0][..], &parts.concat()].concat();
    let mut seeds = Vec::new();
    // What an application submits at once: a message, a transaction, two messages, a transaction.
    let answered = [7, 0, 8, 0, 8, 0, 5, 8, 0, 8, 0, 8, 0, 5];
    let used = [frame(0, 0, b"one"), frame(2, 1, b"two"), frame(0, 1, b"three")].concat();
    let more = [7, 0, 8, 0, 8, 0, 7, 0, 11, 0, 3];
    seeds.push(all(&[&connected(0), &answered, &used, &more, &used, &more]));
    seeds.push(all(&[&connected(0), &used, &[10, 0], &connected(0), &answered, &used]));
    seeds.push(all(&[&connected(0), &connected(0), &answered, &[12, 0, 2, 0, 0], &used]));
    // The buffer service: some reads, one with a wrong key, and a write.
    let read = [9, 0, 0, 0, 20, 7, 0, 9, 0, 0, 9, 9, 7, 0, 9, 0, 2, 0, 9, 7, 0];
    let written = [&[9, 0, 1, 0, 5][..], &frame(4, 3, &[1; 100]), &[7, 0]].concat();
    seeds.push(all(&[&connected(2), &read, &written, &read]));
    seeds.push(all(&[&connected(2), &read, &[12, 0, 1, 7, 0], &read]));
    // The endpoint that dials is the first link, and the courier the second one.
    let let_in = |link: u8| [&[7, link][..], &shake(link, 1), &shake(link, 1)].concat();
    let dialled = [1, 0];
    seeds.push(all(&[&dialled, &let_in(0), &answered, &used, &more]));
    for how in [0x91, 0x93] {
        let asked = [&[13, 0, how, 3][..], &dialled].concat();
        let carried = [7, 1, 8, 1, 13, 0, how, 9, 7, 1, 8, 1, 13, 0, how, 200, 7, 1, 13, 0, 0];
        seeds.push(all(&[&asked, &let_in(1), &carried]));
    }
    let text = "test\n1 000102030405060708090a0b0c0d0e0f 9 ready 7 5 4 256 8 64 32";
    seeds.push([&[0xff][..], text.as_bytes()].concat());
    seeds.push([&[0xff][..], &text.as_bytes()[5..], b" both 8 9 5"].concat());
    seeds
}
