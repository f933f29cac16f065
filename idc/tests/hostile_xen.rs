//! What another domain of the host may do to a node. While it does so, an honest pair goes on, and
//! nothing is left behind.

mod patience;
#[allow(dead_code, reason = "each test crate uses its own part")]
mod suite;

use embassy_time::{Duration, Instant, Timer, with_timeout};
use futures_executor::{LocalPool, LocalSpawner};
use futures_util::FutureExt;
use futures_util::future::{AbortHandle, LocalBoxFuture, abortable, join};
use futures_util::task::LocalSpawnExt;
use idc::life::{Epoch, NodeId, Phase, Publication};
use idc::wire::{Header, Kind};
use idc::xen::XenTransport;
use idc::{Address, Event, LocalBuffer, Node, Place, Quota, Rights, Service};
use patience::within;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use suite::{Couriers, End, QUOTA, create};
use xen::frontend::{Direction, EventIndexes, Producer, Region, copy_in, len};
use xen::frontend::{GrantedPages, PagePool};
use xen::testing::{BoundPort, FakeMachine, FakeStore, MappedPages, Peer, World};
use xen::xenstore::{Access, Permission, Store};
use xen::yield_now;
use xen::{Channel, DomId, GrantRef, Machine, Mapping, Neighbour, PAGE_SIZE, Port, Signal};

type Guest = XenTransport<FakeMachine, Peer>;

/// The node's domain, the honest visitor's, and the hostile one's.
const NODE: DomId = DomId(7);
const HONEST: DomId = DomId(9);
const HOSTILE: DomId = DomId(8);

/// The longest time for a test, even on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The order of all links.
const ORDER: u32 = 1;

/// The offset of the list of grants in the first page.
const GRANTS: usize = 132;

/// A node, an honest pair and a hostile domain.
struct Stage {
    world: World,
    store: FakeStore,
    spawner: LocalSpawner,
    node: Node<Guest>,
    honest: Node<Guest>,
    /// What the hostile domain does in xenstore.
    hostile: Store,
}

impl Stage {
    /// Serves the node's buffers to so many couriers, until the handle ends it.
    fn serve_buffers(&self, visitors: usize) -> AbortHandle {
        let node = self.node.clone();
        let serve = async move { panic!("not served: {}", node.serve_buffers(visitors).await) };
        let (serve, handle) = abortable(serve);
        self.spawner.spawn_local(serve.map(drop)).unwrap();
        handle
    }

    /// An endpoint of the node that waits for anybody.
    fn serve(&self, service: &str) -> End<Guest> {
        let service = Service::new(service, 0).unwrap();
        let address = Address { place: Place::Anyone, service };
        create(&self.spawner, self.node.resource(QUOTA).unwrap(), &address)
    }

    /// An honest visitor.
    fn visit(&self, service: &str) -> End<Guest> {
        let address = Address { place: Place::Domain(NODE), service: service.parse().unwrap() };
        create(&self.spawner, self.honest.resource(QUOTA).unwrap(), &address)
    }

    /// An honest pair.
    async fn pair(&self) -> Pair {
        let mut pair = Pair { server: self.serve("test"), client: self.visit("test") };
        join(pair.server.connected(), pair.client.connected()).await;
        pair
    }

    /// A hostile end, which wants to meet the service `hostile`.
    fn hostile(&self) -> Hostile<'_> {
        let (node, epoch) = (NodeId([8; 16]), Epoch(1));
        let mine = Publication { node, epoch, phase: Phase::Idle, met: Epoch(0), quota: QUOTA };
        Hostile { stage: self, service: "hostile".into(), mine, can: "map", offer: String::new() }
    }
}

/// Counts the lines that everybody sees.
struct Logger(env_logger::Logger);

thread_local! {
    static LINES: Cell<usize> = const { Cell::new(0) };
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn || self.0.enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() <= log::Level::Warn {
            LINES.set(LINES.get() + 1);
        }
        self.0.log(record);
    }

    fn flush(&self) {}
}

/// Runs a test, and checks that no domain has left anything behind.
fn stage(test: impl AsyncFnOnce(&Stage)) {
    let logger = env_logger::builder().is_test(true).build();
    let level = logger.filter().max(log::LevelFilter::Warn);
    if log::set_boxed_logger(Box::new(Logger(logger))).is_ok() {
        log::set_max_level(level);
    }
    let mut pool = LocalPool::new();
    let spawner = pool.spawner();
    let (world, store) = (World::new(), FakeStore::new());
    let tasks: RefCell<Vec<AbortHandle>> = RefCell::default();
    // A task that lives as long as its domain.
    let spawn = |task: LocalBoxFuture<'static, ()>| {
        let (task, handle) = abortable(task);
        tasks.borrow_mut().push(handle);
        spawner.spawn_local(task.map(drop)).unwrap();
    };
    let client = |id| {
        store.add_domain(id);
        let (client, connection) = store.client(id);
        spawn(connection.boxed_local());
        client
    };
    let node = |id: DomId| {
        let (machine, peer) = (world.machine(id), world.peer(id));
        let (transport, run) = Guest::new(id, client(id), Some(machine), Some(peer), ORDER);
        spawn(run.map(|never| match never {}).boxed_local());
        Node::new(transport, suite::random(id.0.into()))
    };
    let (of_node, of_honest, hostile) = (node(NODE), node(HONEST), client(HOSTILE));
    let (world, store) = (world.clone(), store.clone());
    let spawner = spawner.clone();
    let stage = Stage { world, store, spawner, node: of_node, honest: of_honest, hostile };
    pool.run_until(with_timeout(LIMIT, test(&stage))).expect("the test takes too long");
    // The pages that the hostile domain has given back leave the quarantine.
    let clean = async {
        while stage.world.grants() > 0 || stage.node.transport().pages().pages > 0 {
            Timer::after_millis(5).await;
        }
    };
    pool.run_until(with_timeout(LIMIT, clean)).expect("pages are left behind");
    tasks.take().iter().for_each(AbortHandle::abort);
    assert_eq!(stage.store.transactions(), 0);
    stage.world.assert_clean();
}

/// Two honest ends.
struct Pair {
    server: End<Guest>,
    client: End<Guest>,
}

impl Pair {
    /// Uses the connection. There must be no event but those of its use.
    async fn goes_on(&mut self) {
        for number in 0..5u8 {
            let serve = async {
                assert_eq!(self.server.message().await.body().to_vec(), [number]);
                let asked = self.server.transaction().await;
                let parameters = asked.parameters().clone();
                asked.complete(number.into(), parameters).unwrap();
            };
            let visit = async {
                self.client.endpoint.message(&[number]).await.unwrap();
                let answer = self.client.endpoint.transaction(&[number; 100]).await.unwrap();
                assert_eq!(answer.error(), number.into());
                assert_eq!(answer.status().to_vec(), [number; 100]);
            };
            join(serve, visit).await;
        }
    }

    async fn end(self) {
        drop((self.client.destroy().await, self.server.destroy().await));
    }
}

/// An end of the hostile domain.
struct Hostile<'a> {
    stage: &'a Stage,
    service: String,
    mine: Publication,
    can: &'static str,
    /// The words after `can`.
    offer: String,
}

/// A link, as the hostile domain has mapped it.
struct Mapped {
    pages: MappedPages,
    port: BoundPort,
    producer: Producer,
}

/// A link that the hostile domain offers.
struct Granted {
    pool: PagePool<FakeMachine>,
    pages: Option<GrantedPages>,
    port: Port,
}

impl Hostile<'_> {
    fn folder(&self) -> String {
        format!("/local/domain/{HOSTILE}/data/idc/{}", self.service)
    }

    /// Shows a text to the node.
    async fn show(&self, text: &str) {
        let (store, path) = (&self.stage.hostile, format!("{}/{NODE}", self.folder()));
        store.write(&path, text).await.unwrap();
        let access = [(Access::None, HOSTILE), (Access::Read, NODE)];
        let access = access.map(|(access, domain)| Permission { access, domain });
        store.set_permissions(&path, &access).await.unwrap();
    }

    fn text(&self) -> String {
        format!("{} {}{}", self.mine, self.can, self.offer)
    }

    async fn publish(&mut self, phase: Phase) {
        self.mine.phase = phase;
        self.show(&self.text()).await;
    }

    async fn vanish(&self) {
        self.stage.hostile.rm(&self.folder()).await.unwrap();
    }

    /// Makes a node in the door.
    async fn knock(&self) {
        let path = format!("/local/domain/{NODE}/data/idc/-door/{}@{HOSTILE}", self.service);
        // The node sees what goes.
        let folder = format!("/local/domain/{HOSTILE}/data/idc");
        let readable = [Permission { access: Access::Read, domain: HOSTILE }];
        self.stage.hostile.mkdir(&folder).await.unwrap();
        self.stage.hostile.set_permissions(&folder, &readable).await.unwrap();
        while self.stage.hostile.write(&path, "").await.is_err() {
            Timer::after_millis(1).await;
        }
    }

    /// What the node shows to this end, and its last three words.
    fn seen(&self) -> Option<(Publication, Vec<u32>)> {
        let path = format!("/local/domain/{NODE}/data/idc/{}@/{HOSTILE}", self.service);
        let text = self.stage.store.read(&path)?;
        let (publication, words) = Publication::from_text(&text).unwrap();
        let words = words.unwrap().split(' ').skip(1).map(|word| word.parse().unwrap());
        Some((publication, words.collect()))
    }

    /// Waits until the node shows such a phase.
    async fn sees(&self, wanted: impl Fn(Phase) -> bool) -> (Publication, Vec<u32>) {
        loop {
            if let Some((publication, words)) = self.seen()
                && wanted(publication.phase)
            {
                return (publication, words);
            }
            Timer::after_millis(1).await;
        }
    }

    /// Meets the node.
    async fn meet(&mut self) -> Publication {
        self.publish(Phase::Idle).await;
        self.knock().await;
        self.sees(|_| true).await.0
    }

    /// Meets the node, and maps the link that it offers.
    async fn map(&mut self) -> Mapped {
        self.meet().await;
        let mine = self.mine.epoch;
        let (_, words) = self.sees(|phase| phase == Phase::Offered(mine)).await;
        Mapped::new(self.stage, &words)
    }

    /// Maps the link that the node offers, and connects.
    async fn connect(&mut self) -> Mapped {
        let mapped = self.map().await;
        let (other, _) = self.seen().unwrap();
        self.publish(Phase::Ready(other.epoch)).await;
        let mine = self.mine.epoch;
        self.sees(|phase| phase == Phase::Up(mine)).await;
        mapped
    }

    /// Leaves a connection, and is ready for the next one.
    async fn leave(&mut self) {
        self.mine.epoch.0 += 1;
        self.publish(Phase::Idle).await;
    }
}

/// The direction from the end that maps.
fn output() -> Direction {
    let (events, size) = (Some(EventIndexes { prod: 12, cons: 16 }), PAGE_SIZE << (ORDER - 1));
    Direction { cons: 0, prod: 4, error: 8, events, start: 0, size: size as u32 }
}

impl Mapped {
    fn new(stage: &Stage, words: &[u32]) -> Mapped {
        let peer = stage.world.peer(HOSTILE);
        let first = GrantRef(words[0]);
        let list = peer.map(NODE, &[first]).unwrap();
        let grant = |at: usize| GrantRef(list.shared().load_u32(GRANTS + 4 * at, Relaxed));
        let pages = peer.map(NODE, &[first, grant(0), grant(1)]).unwrap();
        let port = peer.bind_port(NODE, Port(words[1]), Arc::new(Signal::new())).unwrap();
        Mapped { pages, port, producer: Producer::new(output()) }
    }

    fn region(pages: &MappedPages) -> Region<'_> {
        let pages = pages.shared();
        Region {
            indexes: pages.slice(0, PAGE_SIZE),
            data: pages.slice(PAGE_SIZE, PAGE_SIZE << ORDER),
        }
    }

    /// Sends a frame. Returns whether there was room for it.
    fn send(&mut self, header: Header, body: &[u8]) -> bool {
        let region = Self::region(&self.pages);
        let room = self.producer.room(region).unwrap();
        let bytes = [&header.to_bytes()[..], body].concat();
        let fits = len(&room) >= bytes.len();
        if fits {
            copy_in(&room, &bytes);
            let _ = self.producer.advance(region, bytes.len());
        }
        self.port.notify();
        fits
    }

    /// Writes a word of the first page, and sends an event.
    fn poke(&self, at: usize, word: u32) {
        self.pages.shared().store_u32(at, word, Relaxed);
        self.port.notify();
    }
}

fn message(slot: u16, len: u32) -> Header {
    Header { kind: Kind::Message, slot, len, code: 0 }
}

impl Granted {
    /// Makes a link for the node, with a list of grants that is right.
    fn new(stage: &Stage) -> Granted {
        let pool = PagePool::new(stage.world.machine(HOSTILE));
        let pages = pool.share(NODE, 3).unwrap();
        let port = pool.machine().open_port(NODE, Arc::new(Signal::new())).unwrap();
        let granted = Granted { pool, pages: Some(pages), port };
        granted.list(0, granted.grant(1));
        granted.list(1, granted.grant(2));
        for presence in [24, 88] {
            granted.pages().shared().store_u32(presence, 1, Relaxed);
        }
        granted
    }

    fn pages(&self) -> &GrantedPages {
        self.pages.as_ref().unwrap()
    }

    fn grant(&self, at: usize) -> u32 {
        self.pages().grants()[at].0
    }

    /// Writes an entry of the list of grants.
    fn list(&self, at: usize, grant: u32) {
        self.pages().shared().store_u32(GRANTS + 4 * at, grant, Relaxed);
    }

    /// The words of the offer.
    fn words(&self) -> String {
        format!(" {} {} {ORDER}", self.grant(0), self.port.0)
    }
}

impl Drop for Granted {
    /// The node must have unmapped all.
    fn drop(&mut self) {
        self.pool.machine().close_port(self.port);
        self.pages.take().into_iter().for_each(|pages| self.pool.withdraw(pages));
        assert_eq!(self.pool.usage().quarantined_pages, 0);
    }
}

/// Waits until a connection of the node is over.
async fn ends(server: &mut End<Guest>) {
    drop(server.disconnect().await);
}

#[test]
fn impossible_indexes_end_no_other_connection() {
    stage(async |stage| {
        let mut pair = stage.pair().await;
        let mut server = stage.serve("hostile");
        // The words at 0 and 68 are the node's own, which it does not read.
        for (round, words) in [[0, 4], [68, 64], [4, 64], [64, 68]].into_iter().enumerate() {
            let mut hostile = stage.hostile();
            hostile.mine.epoch.0 += round as u64;
            let mapped = hostile.connect().await;
            server.connected().await;
            for at in words {
                for add in [1 << 31, u32::MAX / 3, 0x1001] {
                    mapped.poke(at, mapped.pages.shared().load_u32(at, Acquire).wrapping_add(add));
                }
            }
            // The node notices when it uses the direction.
            drop(server.endpoint.try_message(LocalBuffer::new(1)));
            ends(&mut server).await;
            hostile.vanish().await;
            server.expect("Disappear").await;
            pair.goes_on().await;
        }
        drop(server.destroy().await);
        pair.end().await;
    });
}

#[test]
fn a_list_of_grants_that_is_wrong_is_not_mapped_and_one_that_changes_later_is_not_read_again() {
    stage(async |stage| {
        let mut pair = stage.pair().await;
        let mut server = stage.serve("hostile");
        let link = Granted::new(stage);
        let mut hostile = stage.hostile();
        hostile.can = "grant";
        hostile.meet().await;
        // No grants at all, those of the node and of the honest domain, and one twice.
        let own = link.grant(2);
        for wrong in (0..own).step_by(8).chain([u32::MAX, 1, link.grant(1), own + 8]) {
            link.list(1, wrong);
            let (other, _) = hostile.sees(|phase| phase == Phase::Idle).await;
            hostile.offer = link.words();
            hostile.publish(Phase::Offered(other.epoch)).await;
            // Another attempt: it could not attach.
            while hostile.seen().is_some_and(|(now, _)| now.epoch == other.epoch) {
                Timer::after_millis(1).await;
            }
            hostile.leave().await;
            pair.goes_on().await;
        }
        link.list(1, own);
        let (other, _) = hostile.sees(|phase| phase == Phase::Idle).await;
        hostile.publish(Phase::Offered(other.epoch)).await;
        let mine = hostile.mine.epoch;
        hostile.sees(|phase| phase == Phase::Ready(mine)).await;
        server.connected().await;
        link.list(1, 0);
        link.list(0, u32::MAX);
        drop(server.endpoint.try_message(LocalBuffer::new(1)).unwrap());
        pair.goes_on().await;
        drop(server.destroy().await);
        pair.end().await;
    });
}

#[test]
fn a_domain_that_never_unmaps_takes_few_pages_and_hinders_only_itself() {
    stage(async |stage| {
        let mut pair = stage.pair().await;
        let mut server = stage.serve("hostile");
        let mut hostile = stage.hostile();
        let mut kept = Vec::new();
        while let Some(mapped) = within(2000, hostile.connect()).await {
            if kept.is_empty() {
                server.expect("Appear").await;
            }
            server.expect("Connect").await;
            kept.push(mapped);
            assert!(kept.len() < 20, "there is always another link");
            hostile.leave().await;
            drop(server.disconnect().await);
            pair.goes_on().await;
        }
        assert!(kept.len() >= 2, "{} links", kept.len());
        // It goes without a link, and makes room for another domain.
        hostile.vanish().await;
        server.expect("Disappear").await;
        let mut client = stage.visit("hostile");
        join(server.connected(), client.connected()).await;
        let mut other = Pair { server, client };
        other.goes_on().await;
        pair.goes_on().await;
        // And the domain gets links again when it has given the pages back.
        kept.clear();
        let server = stage.serve("hostile");
        hostile.leave().await;
        drop(hostile.connect().await);
        drop(server.destroy().await);
        other.end().await;
        pair.end().await;
    });
}

#[test]
fn a_domain_that_never_reads_stops_its_own_link_alone() {
    stage(async |stage| {
        let mut pair = stage.pair().await;
        let mut server = stage.serve("hostile");
        let mut hostile = stage.hostile();
        // It says that it can receive much.
        hostile.mine.quota = Quota { messages: 1000, message: 500, ..QUOTA };
        let mapped = hostile.connect().await;
        server.connected().await;
        let sent: Vec<_> = (0..1000)
            .map(|_| server.endpoint.try_message(LocalBuffer::new(500)).unwrap())
            .collect();
        pair.goes_on().await;
        drop(server.destroy().await);
        for sent in sent {
            assert!(sent.await.is_err());
        }
        pair.goes_on().await;
        drop(mapped);
        pair.end().await;
    });
}

#[test]
fn cleared_alive_words_end_one_connection() {
    stage(async |stage| {
        let mut pair = stage.pair().await;
        let mut server = stage.serve("hostile");
        let mut hostile = stage.hostile();
        // The node's word is not read by the node.
        let mut mapped = hostile.connect().await;
        server.connected().await;
        mapped.poke(24, 0);
        assert!(mapped.send(message(0, 2), b"hi"));
        assert_eq!(server.message().await.body().to_vec(), b"hi");
        // Its own word: what was sent before arrives, and then the connection ends.
        assert!(mapped.send(message(1, 3), b"bye"));
        mapped.poke(88, 0);
        assert_eq!(server.message().await.body().to_vec(), b"bye");
        ends(&mut server).await;
        mapped.poke(88, 1);
        pair.goes_on().await;
        drop(server.destroy().await);
        drop(mapped);
        pair.end().await;
    });
}

#[test]
fn a_met_connection_of_the_future_is_none() {
    stage(async |stage| {
        let mut pair = stage.pair().await;
        let mut server = stage.serve("hostile");
        let mut hostile = stage.hostile();
        let first = hostile.meet().await.epoch;
        server.expect("Appear").await;
        // Nor is one of the past, before the node's first.
        for met in [first.0 + 1000, u64::MAX, first.0 - 1, 1] {
            hostile.mine.met = Epoch(met);
            hostile.leave().await;
            Timer::after_millis(20).await;
            let event = server.events.next().now_or_never();
            assert!(event.is_none(), "{event:?} after {met} at {first}");
        }
        pair.goes_on().await;
        hostile.vanish().await;
        server.expect("Disappear").await;
        drop(server.destroy().await);
        pair.end().await;
    });
}

#[test]
fn a_domain_that_writes_without_a_pause_causes_few_requests() {
    stage(async |stage| {
        let mut pair = stage.pair().await;
        let server = stage.serve("hostile");
        let mut hostile = stage.hostile();
        hostile.meet().await;
        let path = format!("{}/{NODE}", hostile.folder());
        let knock = format!("/local/domain/{NODE}/data/idc/-door/other@{HOSTILE}");
        let (before, start) = (stage.store.requests(), Instant::now());
        let mut writes = 0u64;
        while writes < 5000 || start.elapsed() < Duration::from_millis(500) {
            // dom0 writes for it: that is not counted.
            hostile.mine.epoch.0 += 1;
            stage.store.write(&path, hostile.text());
            stage.store.write(&knock, "");
            writes += 1;
            // A timer takes long on a busy machine.
            if writes.is_multiple_of(100) {
                Timer::after_ticks(0).await;
            } else {
                yield_now().await;
            }
        }
        let requests = stage.store.requests() - before;
        let most = 300 + 2 * start.elapsed().as_millis();
        assert!(requests < most, "{requests} requests after {writes} writes");
        pair.goes_on().await;
        drop(server.destroy().await);
        pair.end().await;
    });
}

#[test]
fn visits_of_one_domain_do_not_keep_others_from_the_buffers() {
    stage(async |stage| {
        let handle = stage.serve_buffers(4);
        let owned = suite::pattern(100);
        let registration = stage.node.register(&owned, Rights::READ).unwrap();
        // More than are served at a time. Each has met the node, and the first ones are connected.
        let mut links = Vec::new();
        for number in 1..=6 {
            let mut hostile = stage.hostile();
            hostile.service = format!("-buffers@{number}");
            if number < 4 {
                links.push(hostile.connect().await);
            } else {
                hostile.publish(Phase::Idle).await;
                hostile.knock().await;
            }
        }
        let Couriers { mut courier, driver } = suite::courier(&stage.spawner, &stage.honest);
        let copy = LocalBuffer::new(100);
        let reference = registration.reference();
        // The others would have to go after ten seconds.
        let received = within(5000, courier.receive(&reference, 0, &copy)).await;
        received.expect("it waits for others").unwrap();
        assert_eq!(copy.to_vec(), owned.to_vec());
        drop((courier, links));
        drop(driver.await);
        handle.abort();
    });
}

#[test]
fn many_nodes_of_one_domain_in_the_door_cost_few_looks() {
    stage(async |stage| {
        let mut pair = stage.pair().await;
        let door = format!("/local/domain/{NODE}/data/idc/-door");
        for number in 1..=300 {
            stage.hostile.write(&format!("{door}/hostile@{number}@{HOSTILE}"), "").await.unwrap();
        }
        let before = stage.store.requests();
        let (mut server, mut client) = (stage.serve("hostile"), stage.visit("hostile"));
        join(server.connected(), client.connected()).await;
        let requests = stage.store.requests() - before;
        assert!(requests < 150, "{requests} requests");
        pair.goes_on().await;
        Pair { server, client }.end().await;
        pair.end().await;
    });
}

#[test]
fn a_visitor_of_the_buffers_that_comes_again_and_again_is_logged_once() {
    stage(async |stage| {
        let handle = stage.serve_buffers(2);
        let start = Instant::now();
        // Neither end could map the other's pages, or it offers none.
        for (number, can) in [(1, "none"), (2, "none"), (3, "grant"), (4, "grant")] {
            let mut hostile = stage.hostile();
            (hostile.service, hostile.can) = (format!("-buffers@{number}"), can);
            let other = hostile.meet().await;
            hostile.publish(Phase::Offered(other.epoch)).await;
            Timer::after_millis(300).await;
            hostile.vanish().await;
        }
        handle.abort();
        // One for each of the two reasons, and again after ten seconds each.
        let most = 2 + 2 * (start.elapsed().as_secs() / 10) as usize;
        assert!((1..=most).contains(&LINES.get()), "{} lines", LINES.get());
    });
}

/// What a hostile domain shows.
#[derive(Clone, Debug)]
enum Shown {
    /// A phase by number, which of some epochs are its pair and `met`, whether a new epoch or node
    /// begins, what the domain can do, and the words of an offer.
    Publication(u8, usize, usize, bool, bool, usize, Vec<u32>),
    Text(String),
    Nothing,
    Knock,
}

fn shown() -> impl Strategy<Value = Shown> {
    let words = prop_oneof![
        Just(vec![]),
        (0..200u32, 0..20u32, 0..11u32).prop_map(|(page, port, order)| vec![page, port, order]),
        prop::collection::vec(any::<u32>(), 0..4),
    ];
    let publication = (0..5u8, 0..6usize, 0..6usize, any::<bool>(), 0..8u8, 0..4usize, words);
    let publication = publication.prop_map(|(phase, pair, met, epoch, node, can, words)| {
        Shown::Publication(phase, pair, met, epoch, node == 0, can, words)
    });
    prop_oneof![
        8 => publication,
        1 => "[ -~]{0,300}".prop_map(Shown::Text),
        1 => Just(Shown::Nothing),
        1 => Just(Shown::Knock),
    ]
}

/// Checks that events are in the order that is promised.
async fn watch(mut server: End<Guest>) {
    let mut former = "Disappear";
    while let Some(event) = server.events.next().await {
        let (now, after): (_, &[&str]) = match &event {
            Event::Appear => ("Appear", &["Disappear"]),
            Event::Connect => ("Connect", &["Appear", "Disconnect"]),
            Event::Disconnect(_) => ("Disconnect", &["Connect"]),
            Event::Disappear => ("Disappear", &["Appear", "Disconnect"]),
            Event::Message(_) | Event::Transaction(_) => panic!("{event:?} from nowhere"),
        };
        assert!(after.contains(&former), "{now} after {former}");
        former = now;
    }
    assert_eq!(former, "Disappear");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_a_domain_shows_others_go_on(steps in prop::collection::vec(shown(), 1..40)) {
        stage(async |stage| {
            let mut pair = stage.pair().await;
            let server = stage.serve("hostile");
            let endpoint = server.endpoint.clone();
            let watched = stage.spawner.spawn_local_with_handle(watch(server)).unwrap();
            let mut hostile = stage.hostile();
            hostile.knock().await;
            for step in &steps {
                match step {
                    Shown::Publication(phase, pair, met, epoch, node, can, words) => {
                        hostile.mine.epoch.0 += u64::from(*epoch);
                        hostile.mine.node.0[0] ^= u8::from(*node);
                        let theirs = hostile.seen().map_or(7, |(other, _)| other.epoch.0);
                        let mine = hostile.mine.epoch.0;
                        let epochs = [theirs, theirs, mine, theirs + 1, theirs - 1, u64::MAX];
                        let pair = Epoch(epochs[*pair]);
                        hostile.mine.met = Epoch(epochs[*met]);
                        hostile.can = ["map", "grant", "both", "none"][*can];
                        let words = words.iter().map(|word| format!(" {word}"));
                        hostile.offer = words.collect();
                        hostile.publish(match phase {
                            0 => Phase::Idle,
                            1 => Phase::Offered(pair),
                            2 => Phase::Ready(pair),
                            3 => Phase::Up(pair),
                            _ => Phase::Leaving,
                        })
                        .await;
                    }
                    Shown::Text(text) => hostile.show(text).await,
                    Shown::Nothing => drop(stage.hostile.rm(&hostile.folder()).await),
                    Shown::Knock => hostile.knock().await,
                }
                if !matches!(step, Shown::Knock) {
                    Timer::after_millis(2).await;
                }
            }
            pair.goes_on().await;
            endpoint.destroy();
            watched.await;
            pair.end().await;
        });
    }
}
