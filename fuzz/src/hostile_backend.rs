//! A hostile backend of sockets: it writes any state and any node in xenstore and any bytes in the
//! pages that it maps, and sends events at any time. At the end, the frontend must close, end all
//! operations of its users and give all memory back.

use crate::environment::{Environment, GUEST};
use crate::input::{Input, Player, play_steps};
use edge_nal::{
    Close, MulticastV4, Readable, TcpShutdown, TcpSplit, UdpReceive, UdpSend, UdpSplit,
};
use embassy_time::Duration;
use embedded_io_async::{BufRead, Read, Write};
use futures_util::future::join;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use xen::testing::{BoundPort, FakeMachine, MappedPages};
use xen::{Channel, Errno, Mapping, Neighbour, Port, Signal};
use xensock::front::{Config, Datagrams, Frontend, Listener, Statistics, Stream};
use xensock::ring::{CommandBack, Producer, len};
use xensock::wire::{
    Call, Command, Direction, Extensions, Layout, Protocol, RING_LIST, Record, Region, Response,
    RingGrants, RingOffer, SocketOption,
};

const FRONT: &str = "/local/domain/7/device/pvcalls/0";
const BACK: &str = "/local/domain/0/backend/pvcalls/7/0";

/// Runs an input.
pub fn run(bytes: &[u8]) {
    let _ = play(bytes);
}

/// Runs an input and returns how far the guest got.
pub fn play(bytes: &[u8]) -> Statistics {
    let mut input = Input::new(bytes);
    let protocol = input.protocol();
    let mut backend = Backend::new(protocol);
    play_steps(&mut backend, &mut input);
    backend.end()
}

struct Backend {
    environment: Environment,
    frontend: Frontend<FakeMachine>,
    protocol: Protocol,
    commands: Option<Commands>,
    rings: Vec<Ring>,
    users: usize,
    /// Whether the frontend's driver has ended.
    ended: Rc<Cell<bool>>,
}

/// The mapped command ring.
struct Commands {
    page: MappedPages,
    channel: BoundPort,
    ring: CommandBack,
}

/// A mapped data ring.
struct Ring {
    layout: Layout,
    pages: Pages,
    channel: Option<BoundPort>,
}

enum Pages {
    Apart(MappedPages, MappedPages),
    Together(MappedPages),
}

impl Ring {
    fn region(&self) -> Region<'_> {
        match &self.pages {
            Pages::Apart(indexes, data) => {
                Region { indexes: indexes.shared(), data: data.shared() }
            }
            Pages::Together(pages) => self.layout.split(pages.shared()),
        }
    }

    fn notify(&self) {
        if let Some(channel) = &self.channel {
            channel.notify();
        }
    }
}

fn address(port: u8) -> SocketAddr {
    ([127, 0, 0, 1], 80 + u16::from(port)).into()
}

impl Player for Backend {
    fn step(&mut self, step: u8, input: &mut Input<'_>) {
        match step % 18 {
            0 => self.shake_hands(),
            1..=3 => self.answer(input),
            4 => self.environment.set_state(input.byte() % 10),
            5 => {
                let own = ["state", "port", "ring-ref", "frontend", "frontend-id"];
                let name = match input.below(3) {
                    0 => own[input.below(own.len())],
                    _ => {
                        let all = Protocol { extensions: Extensions::all(), ..self.protocol };
                        let nodes = all.backend_nodes(2);
                        nodes[input.below(nodes.len())].0
                    }
                };
                self.environment.write(name, input.bytes());
            }
            6 => self.attach(),
            7 => match input.below(3) {
                0 => self.commands = None,
                1 => self.rings.clear(),
                _ if !self.rings.is_empty() => {
                    let which = input.below(self.rings.len());
                    drop(self.rings.swap_remove(which));
                }
                _ => {}
            },
            8 => {
                if let Some(commands) = &self.commands {
                    let (page, at) = (commands.page.shared(), 4 * input.below(4));
                    let near = page.load_u32(at, Relaxed);
                    page.store_u32(at, input.index(near), Release);
                    commands.channel.notify();
                }
            }
            9 => {
                if let Some(commands) = &self.commands {
                    let bytes = input.bytes();
                    let at = 64 + 8 * input.below(256);
                    commands.page.shared().write(at, bytes);
                    let rsp_prod = commands.page.shared().load_u32(8, Relaxed);
                    let more = u32::from(input.byte() & 1);
                    commands.page.shared().store_u32(8, rsp_prod.wrapping_add(more), Release);
                    commands.channel.notify();
                }
            }
            10 => self.index(input),
            11 => self.data(input),
            12 => {
                if let Some(commands) = &self.commands {
                    commands.channel.notify();
                }
                self.rings.iter().for_each(Ring::notify);
            }
            13 => self.environment.tasks.pass(Duration::from_millis(1 << input.below(16))),
            14 => self.environment.disturb(input),
            15 | 16 => self.user(input),
            _ => {
                if self.users < 8 {
                    self.users += 1;
                    let frontend = self.frontend.clone();
                    self.environment.spawner.spawn(async move { frontend.shutdown().await });
                }
            }
        }
    }

    fn settle(&mut self) {
        self.environment.tasks.run();
    }
}

impl Backend {
    fn new(protocol: Protocol) -> Backend {
        let (environment, client) = Environment::new(FRONT, BACK);
        let config = Config {
            dialect: protocol.dialect,
            extensions: protocol.extensions,
            answer_within: Duration::from_secs(20),
            linger: Duration::from_millis(200),
            ..Config::default()
        };
        let (frontend, driver) =
            Frontend::new(environment.world.machine(GUEST), client, FRONT, config);
        let ended = Rc::new(Cell::new(false));
        let has_ended = ended.clone();
        environment.spawner.spawn(async move {
            driver.run().await;
            has_ended.set(true);
        });
        Backend {
            environment,
            frontend,
            protocol,
            commands: None,
            rings: Vec::new(),
            users: 0,
            ended,
        }
    }

    /// Connects as a correct backend does.
    fn shake_hands(&mut self) {
        for (name, value) in self.protocol.backend_nodes(2) {
            self.environment.write(name, value);
        }
        self.environment.initialise();
        self.attach();
        self.environment.set_state(4);
    }

    fn attach(&mut self) {
        let (grant, port) = (self.environment.grant("ring-ref"), self.environment.number("port"));
        let (Some(grant), Some(port)) = (grant, port) else { return };
        let Ok(page) = self.environment.peer.map(GUEST, &[grant]) else { return };
        let signal = Arc::new(Signal::new());
        let Ok(channel) = self.environment.peer.bind_port(GUEST, Port(port), signal) else {
            return;
        };
        let ring = CommandBack::new(self.protocol);
        self.commands = Some(Commands { page, channel, ring });
    }

    /// Takes a request, if there is one, and answers it rightly or wrongly.
    fn answer(&mut self, input: &mut Input<'_>) {
        let Some(commands) = &mut self.commands else { return };
        let page = commands.page.shared();
        // The ring may be corrupt.
        let Ok(Some(Ok(request))) = commands.ring.pop(page) else { return };
        let how = input.byte();
        let right = request.answer(Ok(0));
        let response = match how {
            0..128 => Response { addr: Some(address(how)), ..right },
            128..160 => Response { result: Ok(input.u32() & 0x7fff_ffff), ..right },
            160..200 => request.answer(Err(Errno(i32::from(how) - 150))),
            200..210 => Response { id: input.u32(), ..right },
            210..220 => Response { socket: input.byte().into(), ..right },
            220..230 => Response { command: Command::Poll, ..right },
            _ => Response { command: Command::Unknown(input.u32()), ..right },
        };
        commands.ring.push(page, &response);
        if commands.ring.publish(page).is_due() {
            commands.channel.notify();
        }
        match &request.call {
            Call::Connect { ring, .. } | Call::Accept { ring, .. } | Call::Open { ring, .. } => {
                self.map(ring);
            }
            Call::Resize { grants } => {
                let ring = self.map_pages(grants).map(|(layout, pages)| Ring {
                    layout,
                    pages,
                    channel: None,
                });
                self.rings.extend(ring);
            }
            _ => {}
        }
    }

    fn map(&mut self, offer: &RingOffer) {
        let Some((layout, pages)) = self.map_pages(&offer.grants) else { return };
        let channel =
            self.environment.peer.bind_port(GUEST, offer.port, Arc::new(Signal::new())).ok();
        self.rings.push(Ring { layout, pages, channel });
    }

    fn map_pages(&self, grants: &RingGrants) -> Option<(Layout, Pages)> {
        match grants {
            RingGrants::Indexes(page) => {
                let indexes = self.environment.peer.map(GUEST, &[*page]).ok()?;
                let mut list = [0; RING_LIST];
                indexes.shared().read(0, &mut list);
                let (order, grants) = self.protocol.dialect.read_ring(&list, 4).ok()?;
                let data = self.environment.peer.map(GUEST, &grants).ok()?;
                Some((self.protocol.layout(order).ok()?, Pages::Apart(indexes, data)))
            }
            RingGrants::Region(grants) => {
                let layout = self.protocol.layout(grants.len().checked_ilog2()?).ok()?;
                let pages = self.environment.peer.map(GUEST, grants).ok()?;
                (layout.pages == grants.len()).then_some((layout, Pages::Together(pages)))
            }
        }
    }

    /// Changes a word of an indexes page.
    fn index(&mut self, input: &mut Input<'_>) {
        if self.rings.is_empty() {
            return;
        }
        let ring = &self.rings[input.below(self.rings.len())];
        let (one, other) = (ring.layout.input, ring.layout.output);
        let events = one.events.map_or(one.prod, |events| events.cons);
        let places = [one.prod, one.cons, one.error, other.prod, other.cons, other.error, events];
        let at = match input.byte() {
            any @ 128.. => 4 * (usize::from(any) - 128),
            one => places[usize::from(one) % places.len()],
        };
        let indexes = ring.region().indexes;
        let near = indexes.load_u32(at, Relaxed);
        indexes.store_u32(at, input.index(near), Release);
        ring.notify();
    }

    /// Puts data into a ring or takes data out.
    fn data(&mut self, input: &mut Input<'_>) {
        if self.rings.is_empty() {
            return;
        }
        let ring = &self.rings[input.below(self.rings.len())];
        let indexes = ring.region().indexes;
        let advance = |at, count: u32| {
            indexes.store_u32(at, indexes.load_u32(at, Relaxed).wrapping_add(count), Release);
        };
        let (one, other) = (ring.layout.input, ring.layout.output);
        match input.byte() {
            0..60 => advance(one.prod, 32 * u32::from(input.byte())),
            60..100 => record(ring, input),
            100..200 => {
                indexes.store_u32(other.cons, indexes.load_u32(other.prod, Relaxed), Release)
            }
            200..225 => advance(other.cons, u32::from(input.byte())),
            _ => indexes.store_u32(one.error, Errno::ENOTCONN.negated() as u32, Release),
        }
        ring.notify();
    }

    /// Starts a task in the guest that uses sockets.
    fn user(&mut self, input: &mut Input<'_>) {
        if self.users == 8 {
            return;
        }
        self.users += 1;
        let (frontend, what) = (self.frontend.clone(), input.byte());
        self.environment.spawner.spawn(async move {
            if what & 0x80 != 0 {
                let opened = match what & 1 {
                    0 => frontend.bind_udp(address(0)).await,
                    _ => frontend.connect_udp(address(0), address(1)).await,
                };
                if let Ok(datagrams) = opened {
                    use_datagrams(datagrams, what >> 1).await;
                }
            } else if what & 1 == 0 {
                if let Ok(stream) = frontend.connect(address(what)).await {
                    use_stream(stream, what >> 1).await;
                }
            } else if let Ok(listener) = frontend.bind(address(what)).await {
                use_listener(listener, what >> 1).await;
            }
        });
    }

    /// The backend disappears, then the frontend closes.
    fn end(mut self) -> Statistics {
        self.environment.tasks.run();
        self.environment.store.resume();
        self.commands = None;
        self.rings.clear();
        let frontend = self.frontend.clone();
        self.environment.spawner.spawn(async move { frontend.shutdown().await });
        self.environment.finish();
        assert!(self.ended.get(), "the driver does not end");
        let statistics = self.frontend.statistics();
        assert_eq!((statistics.streams_open, statistics.grants, statistics.pages), (0, 0, 0));
        assert_eq!(statistics.datagram_sockets_open, 0);
        assert_eq!(statistics.quarantined_pages, 0);
        let world = self.environment.world.clone();
        drop((self.environment, self.frontend));
        world.assert_clean();
        statistics
    }
}

/// Puts a record into a ring, which is right unless the input says otherwise.
fn record(ring: &Ring, input: &mut Input<'_>) {
    let (Direction { prod, cons, .. }, indexes) = (ring.layout.input, ring.region().indexes);
    let [at, end] = [prod, cons].map(|index| indexes.load_u32(index, Relaxed));
    let mut producer = Producer::at(ring.layout.input, at);
    let Ok(room) = producer.room(ring.region()) else { return };
    let what = input.byte();
    let mut record = Record::new(usize::from(what) * 3, Some(address(1)));
    if len(&room) < record.size as usize {
        return indexes.store_u32(prod, end, Release);
    }
    let how = input.byte();
    if (100..120).contains(&how) {
        record = Record::error(Errno::ECONNREFUSED, record.addr);
    }
    let size = record.size as usize;
    match how {
        120..140 => record.addr = None,
        140..160 => record.size = input.u32(),
        160..180 => record.len = input.u32(),
        _ => {}
    }
    record.put(&room);
    let _ = producer.advance(ring.region(), size);
}

/// Reads and writes, then closes the stream; `how` selects the operations.
async fn use_stream(mut stream: Stream<FakeMachine>, how: u8) {
    let mut bytes = [0; 700];
    if how & 1 == 1 {
        let (mut reader, mut writer) = stream.split();
        let writing = async { writer.write_all(&[7; 10_000]).await };
        let reading = async {
            for _ in 0..20 {
                if matches!(reader.read(&mut bytes).await, Ok(0) | Err(_)) {
                    break;
                }
            }
        };
        let _ = join(writing, reading).await;
    }
    if how & 2 == 2 {
        let _ = stream.local_addr().await;
        let option = SocketOption::ALL[usize::from(how) % SocketOption::ALL.len()];
        let _ = stream.set_option(option, 30_000).await;
        let _ = stream.option(option).await;
    }
    if how & 4 == 4 {
        for _ in 0..20 {
            let Ok(some) = stream.fill_buf().await else { break };
            let count = some.len();
            if count == 0 {
                break;
            }
            stream.consume(count);
            let _ = stream.write(&bytes).await;
            let _ = stream.readable().await;
        }
    }
    let _ = match how >> 3 & 3 {
        0 => return,
        1 => stream.close(Close::Both).await,
        2 => stream.close(Close::Write).await,
        _ => stream.abort().await,
    };
}

/// Sends and receives, then closes the socket; `how` selects the operations.
async fn use_datagrams(mut socket: Datagrams<FakeMachine>, how: u8) {
    let mut bytes = [0; 700];
    let to = address(1);
    if how & 1 == 1 {
        let (mut receiver, mut sender) = socket.split();
        // An error may be that of one datagram.
        let sending = async {
            for _ in 0..20 {
                let _ = sender.send(to, &[7; 600]).await;
            }
        };
        let receiving = async {
            for _ in 0..20 {
                let _ = receiver.receive(&mut bytes).await;
            }
        };
        join(sending, receiving).await;
    }
    if how & 2 == 2 {
        let _ = (socket.local_addr(), socket.dropped());
        let _ = socket.set_option(SocketOption::Broadcast, 1).await;
        let (group, any) = ([224, 0, 0, 251].into(), [0; 4].into());
        let _ = socket.join_v4(group, any).await;
        let _ = socket.leave_v4(group, any).await;
    }
    if how & 4 == 4 {
        for _ in 0..20 {
            let received = socket.receive_in_place(|_, data| len(&data)).await;
            let _ = socket.send_in_place(to, received.unwrap_or(0), |room| (len(&room), ())).await;
            let _ = socket.readable().await;
        }
    }
    if how & 8 == 8 {
        let _ = socket.close().await;
    }
}

async fn use_listener(listener: Listener<FakeMachine>, how: u8) {
    for _ in 0..3 {
        match listener.accept().await {
            Ok(stream) => use_stream(stream, how).await,
            Err(_) => break,
        }
    }
}

/// Sessions of a correct backend, for each protocol.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for protocol in [0x00, 0x7f, 0xff] {
        let hands = vec![0];
        let answers = [1, 1].repeat(6);
        let data = vec![11, 0, 0, 20, 11, 0, 150, 11, 0, 150, 11, 0, 0, 9, 11, 0, 250];
        let later = vec![13, 8, 1, 1, 13, 9, 1, 1];
        for user in [0b0000_0000, 0b0000_0010, 0b0000_1110, 0b0001_0010, 0b0001_1000] {
            // A task that connects, and one that listens.
            for user in [user, user | 1] {
                seeds.push(
                    [
                        &[protocol][..],
                        &hands,
                        &[15, user],
                        &answers,
                        &data,
                        &answers,
                        &data,
                        &later,
                    ]
                    .concat(),
                );
            }
        }
        if protocol & 0x40 != 0 {
            // Datagrams, right ones and at last a wrong one, for each kind of user.
            let records = [11, 0, 60, 5, 0, 11, 0, 60, 9, 100, 11, 0, 150, 11, 0, 60, 200, 0];
            let wrong = [11, 0, 60, 1, 140, 1, 0, 0, 0];
            for user in [0x82, 0x83, 0x88, 0x8a, 0x8e, 0x9f] {
                seeds.push(
                    [
                        &[protocol][..],
                        &hands,
                        &[15, user],
                        &answers,
                        &records,
                        &answers,
                        &records,
                        &wrong,
                    ]
                    .concat(),
                );
            }
        }
        // A backend that restarts.
        seeds.push(
            [
                &[protocol][..],
                &hands,
                &[15, 2],
                &answers,
                &[4, 5],
                &[7, 0, 7, 1],
                &[4, 6, 13, 12],
                &hands,
                &[15, 2],
                &answers,
                &data,
            ]
            .concat(),
        );
    }
    seeds
}
