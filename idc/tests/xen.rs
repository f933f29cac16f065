//! Domains of one host meet in xenstore and link through shared rings.

mod patience;

use embassy_time::{Duration, Timer, with_timeout};
use futures_executor::{LocalPool, LocalSpawner};
use futures_util::future::{AbortHandle, Either, abortable, join, poll_immediate, select};
use futures_util::stream::FuturesUnordered;
use futures_util::task::LocalSpawnExt;
use futures_util::{FutureExt, StreamExt};
use idc::life::{Epoch, NodeId, Phase, Publication};
use idc::transport::{Link as _, LinkReader, LinkWriter, Meeting as _, Transport};
use idc::xen::{Link, Meeting, XenTransport};
use idc::{Address, LocalBuffer, Place, Quota, Service};
use patience::within;
use proptest::prelude::*;
use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use xen::testing::MappedPages;
use xen::testing::{FakeMachine, FakeStore, Peer, World};
use xen::xenstore::Store;
use xen::{DomId, Errno, GrantRef, Mapping, Neighbour, PAGE_SIZE, Port};

type Guest = XenTransport<FakeMachine, Peer>;
type Ring = Link<FakeMachine, Peer>;

/// The longest time for a test, even on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// After so many milliseconds in which nothing has happened, nothing will.
const QUIET: usize = 100;

/// A host with xenstore, and the tasks of its domains.
struct Host {
    world: World,
    store: FakeStore,
    spawner: LocalSpawner,
    /// The tasks of the domains.
    tasks: RefCell<Vec<(DomId, AbortHandle)>>,
}

/// What a domain can do.
#[derive(Clone, Copy, PartialEq)]
enum Can {
    Grant,
    Map,
    Both,
}

impl Host {
    /// Makes a domain, whose transport runs until the end of the test.
    fn domain(&self, id: u16, can: Can) -> Guest {
        let id = DomId(id);
        self.store.add_domain(id);
        let machine = (can != Can::Map).then(|| self.world.machine(id));
        let neighbour = (can != Can::Grant).then(|| self.world.peer(id));
        let (transport, run) = XenTransport::new(id, self.client(id), machine, neighbour, 1);
        self.spawn(id, run.map(|never| match never {}));
        transport
    }

    fn spawn(&self, id: DomId, task: impl Future<Output = ()> + 'static) {
        let (task, handle) = abortable(task);
        self.tasks.borrow_mut().push((id, handle));
        self.spawner.spawn_local(task.map(drop)).unwrap();
    }

    /// Destroys a domain.
    fn destroy(&self, id: u16) {
        let id = DomId(id);
        let mut tasks = self.tasks.borrow_mut();
        tasks.extract_if(.., |(of, _)| *of == id).for_each(|(_, task)| task.abort());
        self.store.remove_domain(id);
    }

    /// Another connection of a domain to xenstore.
    fn client(&self, id: DomId) -> Store {
        let (store, connection) = self.store.client(id);
        self.spawn(id, connection);
        store
    }

    /// Lets all tasks run until they wait. In each millisecond all of them have their turns, also
    /// if the machine is slow or the whole program was stopped.
    async fn settle(&self) {
        let counts = || (self.store.requests(), self.world.events());
        let (mut before, mut quiet) = (counts(), 0);
        while quiet < QUIET {
            Timer::after_millis(1).await;
            let now = counts();
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
        }
    }

    /// Lets an end do all that it can, and checks that it sees no change.
    async fn sees_nothing(&self, end: &mut End) {
        let settle = pin!(self.settle());
        if let Either::Left((seen, _)) = select(pin!(end.meeting.changed()), settle).await {
            panic!("it sees {seen:?}");
        }
    }

    /// Waits until a condition holds.
    async fn until(&self, mut done: impl FnMut() -> bool) {
        while !done() {
            Timer::after_millis(1).await;
        }
    }

    /// What is in a domain's door.
    async fn visitors(&self, id: u16) -> Vec<String> {
        let path = format!("/local/domain/{id}/data/idc/-door");
        self.client(DomId(0)).directory(&path).await.unwrap()
    }

    /// The first page and the port of the link that the second guest of a [`pair`] offers.
    fn offer(&self) -> (GrantRef, Port) {
        let text = self.store.read("/local/domain/9/data/idc/disk@/7").unwrap();
        let mut words = text.split(' ').skip(12).map(|word| word.parse().unwrap());
        (GrantRef(words.next().unwrap()), Port(words.next().unwrap()))
    }

    /// That page, mapped once more.
    fn first_page(&self) -> MappedPages {
        self.world.peer(DomId(7)).map(DomId(9), &[self.offer().0]).unwrap()
    }
}

/// Runs a test, and checks that no domain has left anything behind.
fn host(test: impl AsyncFnOnce(&Host)) {
    let mut pool = LocalPool::new();
    let (world, store) = (World::new(), FakeStore::new());
    let host = Host { world, store, spawner: pool.spawner(), tasks: RefCell::default() };
    pool.run_until(with_timeout(LIMIT, test(&host))).expect("the test takes too long");
    pool.run_until(with_timeout(LIMIT, host.settle())).expect("there is no rest");
    // Pages that are given back leave the quarantine a little later.
    let is_clean = || {
        let Host { world, store, .. } = &host;
        let left = [world.mappings(), world.bound_ports(), world.grants(), world.ports()];
        left == [0; 4] && world.pages() == 0 && store.transactions() == 0
    };
    let in_time = pool.run_until(with_timeout(LIMIT, host.until(is_clean)));
    assert_eq!(host.store.transactions(), 0);
    host.world.assert_clean();
    in_time.expect("it was left behind");
}

/// One end of a pair, as its driver would lead it.
struct End {
    meeting: Meeting<FakeMachine, Peer>,
    mine: Publication,
}

impl End {
    fn new(domain: &Guest, address: &str, node: u8) -> End {
        End::at(domain, &address.parse().unwrap(), node)
    }

    fn at(domain: &Guest, address: &Address, node: u8) -> End {
        let node = NodeId([node; 16]);
        let (phase, met, quota) = (Phase::Idle, Epoch(0), Quota::default());
        let mine = Publication { node, epoch: Epoch(0), phase, met, quota };
        End { meeting: domain.meet(address, domain.reserve().unwrap()), mine }
    }

    /// Begins the next attempt.
    async fn idle(&mut self) {
        self.mine.epoch.0 += 1;
        self.publish(Phase::Idle).await;
    }

    async fn publish(&mut self, phase: Phase) {
        self.mine.phase = phase;
        self.meeting.publish(&self.mine).await.unwrap();
    }

    /// Waits until the other end is in this phase.
    async fn sees(&mut self, phase: Phase) -> Publication {
        loop {
            if let Some(other) = self.meeting.changed().await
                && other.phase == phase
            {
                return other;
            }
        }
    }

    async fn part(self) {
        drop(self.meeting.part().await);
    }
}

/// Lets two ends see each other.
async fn meet(one: &mut End, other: &mut End) {
    let begin = async |end: &mut End| {
        end.idle().await;
        end.sees(Phase::Idle).await
    };
    let (of_other, of_one) = apart(begin(one), begin(other)).await;
    assert_eq!((of_one, of_other), (one.mine, other.mine));
}

/// Links two ends that see each other.
async fn link(leader: &mut End, follower: &mut End) -> (Ring, Ring) {
    assert!(leader.meeting.leads() && !follower.meeting.leads());
    let made = leader.meeting.link().await.unwrap();
    leader.publish(Phase::Offered(follower.mine.epoch)).await;
    follower.sees(leader.mine.phase).await;
    let attached = follower.meeting.link().await.unwrap();
    follower.publish(Phase::Ready(leader.mine.epoch)).await;
    leader.sees(follower.mine.phase).await;
    (made, attached)
}

/// Two guests that see each other. The first one visits the second one, which leads.
async fn pair(host: &Host) -> (End, End) {
    let (a, b) = (host.domain(7, Can::Both), host.domain(9, Can::Both));
    let (mut a, mut b) = (End::new(&a, "xen:9/disk", 1), End::new(&b, "any/disk", 2));
    meet(&mut a, &mut b).await;
    (a, b)
}

/// Runs two futures as two tasks: neither is polled because the other one was woken.
async fn apart<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
    let (mut of_one, mut of_other) = (None, None);
    let tasks: [Pin<Box<dyn Future<Output = ()>>>; 2] = [
        Box::pin(async { of_one = Some(one.await) }),
        Box::pin(async { of_other = Some(other.await) }),
    ];
    tasks.into_iter().collect::<FuturesUnordered<_>>().collect::<()>().await;
    (of_one.unwrap(), of_other.unwrap())
}

/// Bytes that differ wherever they are out of order or lost.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

async fn write(link: &mut Ring, bytes: &[u8]) {
    let (_, mut writer) = link.split();
    writer.write_all(LocalBuffer::from(bytes).shared()).await.unwrap();
    writer.flush().await.unwrap();
}

async fn read(link: &mut Ring, len: usize) -> Result<Vec<u8>, Errno> {
    let buffer = LocalBuffer::new(len);
    link.split().0.read_exact(buffer.shared()).await?;
    Ok(buffer.to_vec())
}

#[test]
fn two_domains_meet_link_leave_and_link_again() {
    for (one, other) in [(Can::Both, Can::Both), (Can::Grant, Can::Map), (Can::Map, Can::Grant)] {
        host(async |host| {
            let (a, b) = (host.domain(7, one), host.domain(9, other));
            let (mut a, mut b) = (End::new(&a, "xen:9/disk", 1), End::new(&b, "any/disk", 2));
            for _ in 0..3 {
                meet(&mut a, &mut b).await;
                host.settle().await;
                assert!(host.visitors(7).await.is_empty() && host.visitors(9).await.is_empty());
                // If both can, the domain with the higher number leads.
                let (mut of_a, mut of_b) = if one == Can::Grant {
                    link(&mut a, &mut b).await
                } else {
                    let (of_b, of_a) = link(&mut b, &mut a).await;
                    (of_a, of_b)
                };
                write(&mut of_a, b"ping").await;
                write(&mut of_b, b"pong!").await;
                assert_eq!(read(&mut of_b, 4).await.unwrap(), b"ping");
                drop(of_b);
                assert_eq!(read(&mut of_a, 5).await.unwrap(), b"pong!");
                assert_eq!(read(&mut of_a, 1).await, Err(Errno::EPIPE));
                // Nothing is offered any more.
                b.publish(Phase::Leaving).await;
                let text = host.store.read("/local/domain/9/data/idc/disk@/7").unwrap();
                assert_eq!(text.split(' ').count(), 12, "{text}");
            }
            a.part().await;
            assert_eq!(b.meeting.changed().await, None);
            b.part().await;
            assert_eq!(host.store.read("/local/domain/7/data/idc/disk"), None);
            assert_eq!(host.store.read("/local/domain/9/data/idc/disk@"), None);
            // Those of the doors.
            host.until(|| host.store.watches() == 2).await;
        });
    }
}

#[test]
fn ends_see_each_other_whichever_is_first_and_however_late_its_domain() {
    host(async |host| {
        let first = host.domain(7, Can::Both);
        let mut a = End::new(&first, "xen:9/disk", 1);
        a.idle().await;
        host.sees_nothing(&mut a).await;
        let second = host.domain(9, Can::Both);
        host.sees_nothing(&mut a).await;
        let mut b = End::new(&second, "any/disk", 2);
        b.idle().await;
        assert_eq!(b.sees(Phase::Idle).await, a.mine);
        assert_eq!(a.sees(Phase::Idle).await, b.mine);
        a.part().await;
        b.part().await;
    });
}

#[test]
fn only_the_two_domains_of_a_meeting_can_read_its_nodes() {
    host(async |host| {
        let (a, b) = pair(host).await;
        let third = host.domain(8, Can::Both);
        let store = host.client(DomId(8));
        for path in ["7/data/idc/disk", "7/data/idc/disk/9", "9/data/idc/disk@/7"] {
            assert_eq!(store.read(&format!("/local/domain/{path}")).await, Err(Errno::EACCES));
        }
        // Nor can it write them, or any that it could be taken for.
        for path in ["7/data/idc/disk/9", "7/data/idc/disk/8", "9/data/idc/disk@/8"] {
            assert_eq!(store.write(&format!("/local/domain/{path}"), "").await, Err(Errno::EACCES));
        }
        drop(third);
        a.part().await;
        b.part().await;
    });
}

#[test]
fn many_meetings_with_one_domain_share_a_watch_and_are_told_apart() {
    host(async |host| {
        let (a, b) = (host.domain(7, Can::Both), host.domain(9, Can::Both));
        // Those of the doors.
        host.until(|| host.store.watches() == 2).await;
        let mut ends = Vec::new();
        for n in 1..=20 {
            let theirs = format!("xen:7/disk@{n}");
            let (mut a, mut b) = (End::new(&a, "any/disk", n), End::new(&b, &theirs, 100 + n));
            meet(&mut a, &mut b).await;
            ends.push((a, b));
        }
        host.settle().await;
        assert_eq!(host.store.watches(), 2 + 2, "and one for each other domain");
        for (a, _) in &mut ends {
            host.sees_nothing(a).await;
        }
        let requests = host.store.requests();
        let (_, b) = &mut ends[3];
        b.publish(Phase::Leaving).await;
        let left = b.mine;
        for (n, (a, _)) in ends.iter_mut().enumerate() {
            match n {
                3 => assert_eq!(a.meeting.changed().await, Some(left)),
                _ => host.sees_nothing(a).await,
            }
        }
        assert_eq!(host.store.requests() - requests, 2, "one wrote, and one read");
        for (a, b) in ends {
            a.part().await;
            b.part().await;
        }
        host.until(|| host.store.watches() == 2).await;
    });
}

#[test]
fn ends_of_which_neither_can_map_never_lead() {
    for can in [Can::Grant, Can::Map] {
        host(async |host| {
            let (a, b) = (host.domain(7, can), host.domain(9, can));
            let (mut a, mut b) = (End::new(&a, "xen:9/disk", 1), End::new(&b, "any/disk", 2));
            meet(&mut a, &mut b).await;
            for end in [&mut a, &mut b] {
                assert!(!end.meeting.leads());
                assert_eq!(end.meeting.link().await.err(), Some(Errno::EPROTO));
            }
            a.part().await;
            b.part().await;
        });
    }
}

#[test]
fn a_domain_that_dies_disappears_and_another_one_can_have_its_number() {
    for dies in [7, 9] {
        host(async |host| {
            let (mut a, mut b) = pair(host).await;
            let (of_b, of_a) = link(&mut b, &mut a).await;
            let (mut stays, dead, number) =
                if dies == 7 { (b, a, "xen:9/disk") } else { (a, b, "any/disk") };
            host.destroy(dies);
            assert_eq!(stays.meeting.changed().await, None);
            // Xen unmaps what the dead domain had mapped, and keeps what others have mapped of it.
            drop((of_a, of_b, dead));
            stays.idle().await;
            let mut next = End::new(&host.domain(dies, Can::Both), number, 3);
            next.idle().await;
            let seen = join(stays.sees(Phase::Idle), next.sees(Phase::Idle)).await;
            assert_eq!(seen, (next.mine, stays.mine));
            stays.part().await;
            next.part().await;
        });
    }
}

#[test]
fn waiting_for_a_change_can_be_given_up_at_any_point() {
    for polls in 0..16 {
        for (first, second) in [("xen:9/disk", "any/disk"), ("any/disk", "xen:7/disk")] {
            host(async |host| {
                let (a, b) = (host.domain(7, Can::Both), host.domain(9, Can::Both));
                let (mut a, mut b) = (End::new(&a, first, 1), End::new(&b, second, 2));
                a.idle().await;
                b.idle().await;
                let early = (give_up(&mut a, polls).await, give_up(&mut b, polls).await);
                let see = async |end: &mut End, early| match early {
                    Some(seen) => seen,
                    None => end.meeting.changed().await,
                };
                let seen = join(see(&mut a, early.0), see(&mut b, early.1)).await;
                assert_eq!(seen, (Some(b.mine), Some(a.mine)), "given up after {polls} polls");
                a.part().await;
                b.part().await;
            });
        }
    }
}

/// Waits for a change, and gives up after so many polls.
async fn give_up(end: &mut End, polls: usize) -> Option<Option<Publication>> {
    let mut change = pin!(end.meeting.changed());
    for _ in 0..polls {
        if let Some(change) = poll_immediate(&mut change).await {
            return Some(change);
        }
        Timer::after_micros(10).await;
    }
    None
}

#[test]
fn no_event_is_sent_while_the_other_end_is_awake() {
    host(async |host| {
        let (mut a, mut b) = pair(host).await;
        let (mut of_b, mut of_a) = link(&mut b, &mut a).await;
        host.settle().await;
        let events = || host.world.events();
        let start = events();
        // The reader has not slept yet, and then finds bytes whenever it looks.
        for _ in 0..10 {
            write(&mut of_b, b"ping").await;
        }
        for _ in 0..10 {
            assert_eq!(read(&mut of_a, 4).await.unwrap(), b"ping");
        }
        assert_eq!(events(), start);
        // It sleeps: one event, however much there is.
        for count in 1..10 {
            let (_, all) = apart(
                async {
                    for _ in 0..count {
                        write(&mut of_b, b"ping").await;
                    }
                },
                read(&mut of_a, 4 * count),
            )
            .await;
            assert_eq!(all.unwrap(), b"ping".repeat(count));
        }
        let woken = events() - start;
        assert!(woken <= 9, "{woken} events");
        // Each end sleeps about twice for each ring of bytes.
        let (start, rings) = (events(), 100);
        let all = pattern(rings * PAGE_SIZE);
        let ((), read) = apart(write(&mut of_b, &all), read(&mut of_a, all.len())).await;
        assert!(read.unwrap() == all);
        let woken = events() - start;
        assert!(woken <= 4 * rings as u64, "{woken} events for {rings} rings");
        drop((of_a, of_b));
        a.part().await;
        b.part().await;
    });
}

#[test]
fn an_end_that_sleeps_is_woken_when_the_other_end_leaves() {
    host(async |host| {
        let (mut a, mut b) = pair(host).await;
        for is_leader in [true, false] {
            let (of_b, of_a) = link(&mut b, &mut a).await;
            let (mut stays, leaves) = if is_leader { (of_a, of_b) } else { (of_b, of_a) };
            let (mut reader, mut writer) = stays.split();
            let (byte, block) = (LocalBuffer::new(1), LocalBuffer::new(3 * PAGE_SIZE));
            let leave = async {
                host.settle().await;
                drop(leaves);
            };
            let waits = apart(reader.read(byte.shared()), writer.write_all(block.shared()));
            let (ended, ()) = apart(waits, leave).await;
            assert_eq!(ended, (Err(Errno::EPIPE), Err(Errno::EPIPE)));
            drop(stays);
            a.idle().await;
            b.idle().await;
            join(a.sees(Phase::Idle), b.sees(Phase::Idle)).await;
        }
        a.part().await;
        b.part().await;
    });
}

#[test]
fn impossible_indexes_end_a_stream_with_an_error() {
    host(async |host| {
        let (mut a, mut b) = pair(host).await;
        let (mut of_b, mut of_a) = link(&mut b, &mut a).await;
        let page = host.first_page();
        let buffer = LocalBuffer::new(8);
        // Both directions' indexes: of the consumer and of the producer.
        for at in [0, 4, 64, 68] {
            page.shared().store_u32(at, 1 << 31, Relaxed);
        }
        for link in [&mut of_a, &mut of_b] {
            let (mut reader, mut writer) = link.split();
            assert_eq!(reader.read(buffer.shared()).await, Err(Errno::EPROTO));
            assert_eq!(writer.write(buffer.shared()).await, Err(Errno::EPROTO));
        }
        drop((of_a, of_b, page));
        a.part().await;
        b.part().await;
    });
}

#[test]
fn a_link_that_is_offered_wrongly_is_not_attached_to() {
    host(async |host| {
        let (mut a, mut b) = pair(host).await;
        let made = b.meeting.link().await.unwrap();
        b.publish(Phase::Offered(a.mine.epoch)).await;
        a.sees(b.mine.phase).await;
        let path = "/local/domain/9/data/idc/disk@/7";
        let good = host.store.read(path).unwrap();
        let [publication @ .., page, port, order] = &good.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{good}")
        };
        let publication = publication.join(" ");
        for offer in [
            format!("1 {port} {order}"),
            format!("{page} 4000000000 {order}"),
            format!("{page} {port} 2"),
            format!("{page} {port} 9"),
        ] {
            host.store.write(path, format!("{publication} {offer}"));
            host.sees_nothing(&mut a).await;
            assert!(a.meeting.link().await.is_err(), "{offer}");
        }
        for nonsense in [
            format!("{publication} {page} {port} 0"),
            format!("{publication} {page} {port} 10"),
            format!("{publication} {page} {port} {order} 1"),
            format!("{publication} {page} {port}"),
            format!("{publication} -1 {port} {order}"),
            publication.replace("both", "all"),
            String::new(),
        ] {
            host.store.write(path, nonsense);
            assert_eq!(a.meeting.changed().await, None);
            assert_eq!(a.meeting.link().await.err(), Some(Errno::ENOTCONN));
            host.store.write(path, &good);
            assert_eq!(a.meeting.changed().await, Some(b.mine));
        }
        // The list of grants in the first page.
        let list = host.first_page();
        for grant in [0, u32::MAX, list.shared().load_u32(132, Relaxed) + 1] {
            list.shared().store_u32(136, grant, Relaxed);
            assert!(a.meeting.link().await.is_err());
        }
        drop((list, made));
        a.part().await;
        b.part().await;
    });
}

#[test]
fn an_end_without_memory_grants_or_ports_links_when_there_are_some_again() {
    host(async |host| {
        let (mut a, mut b) = pair(host).await;
        // Its pages were there from the start.
        let pages = host.world.pages();
        host.world.limit_pages(0);
        for grants in [0, 1, 2] {
            host.world.limit_grants(grants);
            assert_eq!(b.meeting.link().await.err(), Some(Errno::ENOSPC));
            assert_eq!(host.world.pages(), pages, "it keeps its pages");
        }
        host.world.limit_grants(3);
        host.world.limit_ports(0);
        assert_eq!(b.meeting.link().await.err(), Some(Errno::ENOSPC));
        assert_eq!(host.world.pages(), pages, "it keeps its pages");
        host.world.limit_ports(1);
        let (of_b, of_a) = link(&mut b, &mut a).await;
        drop(of_b);
        // The other end still maps the pages.
        assert_eq!(b.meeting.link().await.err(), Some(Errno::ENOMEM));
        drop(of_a);
        host.until(|| host.world.grants() == 0).await;
        drop(b.meeting.link().await.unwrap());
        a.part().await;
        b.part().await;
    });
}

#[test]
fn pages_that_a_peer_keeps_are_exchanged_for_others_but_not_without_end() {
    host(async |host| {
        let [first, second] = [7, 9].map(|id| host.domain(id, Can::Both));
        let mut a = End::new(&first, "any/disk", 1);
        let mut b = End::new(&second, "xen:7/disk", 2);
        let mut kept = Vec::new();
        for round in 0..4 {
            meet(&mut a, &mut b).await;
            let (of_b, mut of_a) = link(&mut b, &mut a).await;
            drop(of_b);
            assert_eq!(read(&mut of_a, 1).await, Err(Errno::EPIPE));
            kept.push(of_a);
            assert_eq!(second.pages().quarantined_pages, 3 * round);
        }
        assert_eq!(b.meeting.link().await.err(), Some(Errno::EBUSY));
        let reserve = b.meeting.part().await;
        assert_eq!((second.pages().quarantined_pages, second.pages().pages), (12, 12));
        // The resource serves another domain.
        let third = host.domain(8, Can::Both);
        let mut of_c = End::new(&third, "any/disk", 3);
        let meeting = second.meet(&"xen:8/disk".parse().unwrap(), reserve);
        let mut c = End { meeting, mine: b.mine };
        meet(&mut c, &mut of_c).await;
        drop(link(&mut c, &mut of_c).await);
        c.part().await;
        assert_eq!(second.pages().pages, 12);
        kept.clear();
        host.until(|| second.pages().pages == 0).await;
        a.part().await;
        of_c.part().await;
    });
}

#[test]
fn a_process_that_is_killed_leaves_its_link() {
    host(async |host| {
        let (mut a, mut b) = pair(host).await;
        let (mut of_b, of_a) = link(&mut b, &mut a).await;
        let events = host.world.events();
        drop(of_a);
        assert_eq!(host.world.events() - events, 2, "its own, and that of its mapping's end");
        assert_eq!(read(&mut of_b, 1).await, Err(Errno::EPIPE));
        // What Linux does for a process that does nothing any more.
        let mut of_b = b.meeting.link().await.unwrap();
        b.publish(Phase::Offered(a.mine.epoch)).await;
        let (process, signal) = (host.world.peer(DomId(7)), Arc::default());
        let port = process.bind_port(DomId(9), host.offer().1, signal).unwrap();
        let mapped = host.first_page();
        process.set_unmap_notify(&mapped, 88, &port).unwrap();
        let kill = async {
            host.settle().await;
            drop((mapped, port));
        };
        assert_eq!(apart(read(&mut of_b, 1), kill).await.0, Err(Errno::EPIPE));
        drop(of_b);
        a.part().await;
        b.part().await;
    });
}

#[test]
fn an_end_for_anyone_takes_one_visitor_after_another() {
    host(async |host| {
        let server = host.domain(9, Can::Both);
        let mut at_server = End::new(&server, "any/disk", 1);
        at_server.idle().await;
        host.sees_nothing(&mut at_server).await;
        let clients = [6, 7, 8].map(|id| host.domain(id, Can::Both));
        let [mut a, mut b, mut c] = clients.each_ref().map(|it| End::new(it, "xen:9/disk@3", 2));
        meet(&mut a, &mut at_server).await;
        drop(link(&mut at_server, &mut a).await);
        b.idle().await;
        c.idle().await;
        host.sees_nothing(&mut b).await;
        host.sees_nothing(&mut c).await;
        assert_eq!(host.visitors(9).await, ["disk@3@7", "disk@3@8"]);
        // A place is free again, and then there is another one.
        a.part().await;
        assert_eq!(at_server.meeting.changed().await, None);
        meet(&mut at_server, &mut b).await;
        drop(link(&mut at_server, &mut b).await);
        let mut other = End::new(&server, "any/disk", 1);
        meet(&mut other, &mut c).await;
        drop(link(&mut other, &mut c).await);
        host.settle().await;
        assert!(host.visitors(9).await.is_empty());
        for end in [at_server, other, b, c] {
            end.part().await;
        }
        assert_eq!(host.store.read("/local/domain/9/data/idc/disk@3"), None);
    });
}

#[test]
fn a_visitor_knocks_again_when_it_was_left() {
    host(async |host| {
        let (server, client) = (host.domain(9, Can::Both), host.domain(7, Can::Both));
        let mut a = End::new(&client, "xen:9/disk", 2);
        // Its driver may look before it publishes.
        host.sees_nothing(&mut a).await;
        for _ in 0..2 {
            let mut at_server = End::new(&server, "any/disk", 1);
            meet(&mut at_server, &mut a).await;
            at_server.part().await;
            assert_eq!(a.meeting.changed().await, None);
        }
        // It takes back what nobody answers.
        for _ in 0..2 {
            host.sees_nothing(&mut a).await;
            assert_eq!(host.visitors(9).await, ["disk@7"]);
            host.store.rm("/local/domain/9/data/idc/-door/disk@7");
        }
        host.sees_nothing(&mut a).await;
        let requests = host.store.requests();
        host.sees_nothing(&mut a).await;
        assert_eq!(host.store.requests(), requests, "it waits for an event");
        a.part().await;
        assert!(host.visitors(9).await.is_empty());
    });
}

#[test]
fn dom0_visits_a_guest() {
    host(async |host| {
        let (server, dom0) = (host.domain(9, Can::Grant), host.domain(0, Can::Map));
        for service in [Service::new("disk", 2).unwrap(), Service::buffers(0)] {
            let place = |place| Address { place, service: service.clone() };
            let mut at_server = End::at(&server, &place(Place::Anyone), 1);
            let mut a = End::at(&dom0, &place(Place::Domain(DomId(9))), 2);
            meet(&mut at_server, &mut a).await;
            drop(link(&mut at_server, &mut a).await);
            a.part().await;
            at_server.part().await;
        }
    });
}

#[test]
fn a_visitor_of_dom0_is_none_before_its_node_says_so() {
    host(async |host| {
        let server = host.domain(9, Can::Both);
        let mut at_server = End::new(&server, "any/disk", 1);
        at_server.idle().await;
        host.settle().await;
        // What dom0 makes belongs to the owner of the folder at first.
        host.store.write("/local/domain/9/data/idc/-door/disk@0", "");
        host.sees_nothing(&mut at_server).await;
        assert_eq!(host.visitors(9).await, ["disk@0"]);
        at_server.part().await;
    });
}

#[test]
fn a_visitor_is_given_to_one_end_even_if_that_is_slow() {
    host(async |host| {
        let (server, client) = (host.domain(9, Can::Both), host.domain(7, Can::Both));
        let mut slow = End::new(&server, "any/disk", 1);
        let mut a = End::new(&client, "xen:9/disk", 2);
        a.idle().await;
        // Only an end that is shown can knock.
        host.sees_nothing(&mut a).await;
        assert_eq!(slow.meeting.changed().await, Some(a.mine));
        let mut other = End::new(&server, "any/disk", 3);
        other.idle().await;
        host.sees_nothing(&mut other).await;
        slow.idle().await;
        assert_eq!(a.sees(Phase::Idle).await, slow.mine);
        for end in [a, slow, other] {
            end.part().await;
        }
    });
}

#[test]
fn a_node_in_the_door_counts_only_with_the_name_of_its_owner() {
    host(async |host| {
        let server = host.domain(9, Can::Both);
        let mut at_server = End::new(&server, "any/disk", 1);
        at_server.idle().await;
        let hostile = host.client(DomId(8));
        host.store.add_domain(DomId(8));
        host.settle().await;
        let door = "/local/domain/9/data/idc/-door";
        for name in ["disk@7", "disk@2@7", "disk", "di@sk@7", "7", "@7", "-x@8", "other@8"] {
            hostile.write(&format!("{door}/{name}"), "xen:7").await.unwrap();
        }
        host.sees_nothing(&mut at_server).await;
        // Nobody waits for the other service.
        assert_eq!(host.visitors(9).await, ["other@8"]);
        assert_eq!(host.store.read("/local/domain/9/data/idc/disk"), None);
        let client = host.domain(7, Can::Both);
        let mut a = End::new(&client, "xen:9/disk", 2);
        meet(&mut at_server, &mut a).await;
        a.part().await;
        at_server.part().await;
    });
}

#[test]
fn a_domain_that_visits_many_times_does_not_wait() {
    host(async |host| {
        let (server, client) = (host.domain(9, Can::Both), host.domain(7, Can::Both));
        let mut ends = Vec::new();
        let visit = async {
            for n in 1..=10 {
                let mut at_server = End::new(&server, "any/disk", n);
                let mut a = End::new(&client, &format!("xen:9/disk@{n}"), 100 + n);
                meet(&mut at_server, &mut a).await;
                ends.extend([at_server, a]);
            }
        };
        // If each had to wait, it would be for a second.
        within(5000, visit).await.expect("they wait");
        for end in ends {
            end.part().await;
        }
    });
}

#[test]
fn a_door_that_was_removed_is_made_again() {
    host(async |host| {
        let (server, client) = (host.domain(9, Can::Both), host.domain(7, Can::Both));
        let mut at_server = End::new(&server, "any/disk", 1);
        host.settle().await;
        host.store.add_domain(DomId(8));
        host.client(DomId(8)).rm("/local/domain/9/data/idc/-door").await.unwrap();
        let mut a = End::new(&client, "xen:9/disk", 2);
        meet(&mut at_server, &mut a).await;
        a.part().await;
        at_server.part().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_come_out_as_they_went_in(
        writes in prop::collection::vec(1usize..20000, 1..20),
        reads in prop::collection::vec(1usize..20000, 1..20),
        flushes in prop::collection::vec(any::<bool>(), 1..20),
    ) {
        host(async |host| {
            let (mut a, mut b) = pair(host).await;
            let (mut of_b, mut of_a) = link(&mut b, &mut a).await;
            let total: usize = writes.iter().sum();
            let all = pattern(total);
            let others: Vec<u8> = all.iter().map(|byte| !byte).collect();
            let (mut a_reader, mut a_writer) = of_a.split();
            let (mut b_reader, mut b_writer) = of_b.split();
            let to_b = apart(
                send_all(&mut a_writer, &all, &writes, &flushes),
                receive_all(&mut b_reader, total, &reads),
            );
            let to_a = apart(
                send_all(&mut b_writer, &others, &writes, &flushes),
                receive_all(&mut a_reader, total, &reads),
            );
            let ((_, at_b), (_, at_a)) = apart(to_b, to_a).await;
            assert!(at_a == others && at_b == all);
            drop((of_a, of_b));
            a.part().await;
            b.part().await;
        });
    }
}

/// Writes the bytes in pieces of these sizes.
async fn send_all(writer: &mut impl LinkWriter, all: &[u8], sizes: &[usize], flushes: &[bool]) {
    let mut rest = all;
    for (size, flush) in sizes.iter().zip(flushes.iter().cycle()) {
        let (piece, others) = rest.split_at(*size);
        writer.write_all(LocalBuffer::from(piece).shared()).await.unwrap();
        if *flush {
            writer.flush().await.unwrap();
        }
        rest = others;
    }
    writer.flush().await.unwrap();
}

/// Reads into buffers of these sizes.
async fn receive_all(reader: &mut impl LinkReader, total: usize, sizes: &[usize]) -> Vec<u8> {
    let mut all = Vec::new();
    for size in sizes.iter().cycle() {
        let buffer = LocalBuffer::new(*size);
        let count = reader.read(buffer.shared()).await.unwrap();
        all.extend_from_slice(&buffer.to_vec()[..count]);
        if all.len() == total {
            break;
        }
    }
    all
}
