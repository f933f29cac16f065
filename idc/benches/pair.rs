//! Endpoints of two domains in one process and one thread, beside the bare rings.
//!
//! Each figure is the CPU time of the thread for the same work: bytes through a link alone, and as
//! many bytes by transfers of a remote buffer; round trips of 64 bytes through a link alone, and by
//! transactions. Medians of rounds, in which all measurements take turns. Times of different runs
//! cannot be compared; ratios can, roughly.

#[path = "../tests/suite/mod.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod suite;

use futures_executor::LocalSpawner;
use futures_util::FutureExt;
use futures_util::future::join;
use futures_util::task::LocalSpawnExt;
use idc::life::{Epoch, NodeId, Phase, Publication};
use idc::transport::{Link as _, LinkReader, LinkWriter, Meeting, Transport as _};
use idc::xen::XenTransport;
use idc::{Address, Event, LocalBuffer, Node, Quota, Rights};
use rustix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::future::Future;
use std::time::Duration;
use suite::{Couriers, Rig, courier, serve_buffers};
use xen::DomId;
use xen::testing::{FakeMachine, FakeStore, Peer, World};

type Transport = XenTransport<FakeMachine, Peer>;

const MEBI: usize = 1 << 20;

/// Rounds of measurements.
const ROUNDS: usize = 7;

/// Domain 7 serves, and domain 9 visits it.
struct Host {
    world: World,
    rig: Rig<Transport, Transport>,
}

/// The CPU time of the thread.
fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What a measurement took: the time, and the events of both ends, each of which is a hypercall.
#[derive(Clone, Copy, Default)]
struct Cost {
    time: Duration,
    events: u64,
}

/// Runs a measurement with two domains whose links have 2 to the power of `order` pages.
fn on_host<F: Future<Output = Cost>>(order: u32, measure: impl FnOnce(Host) -> F) -> Cost {
    let cost = Cell::default();
    let done = &cost;
    suite::run(|spawner| async move {
        let (world, store) = (World::new(), FakeStore::new());
        let domain = |id| {
            store.add_domain(id);
            let (client, connection) = store.client(id);
            spawner.spawn_local(connection).unwrap();
            let (machine, neighbour) = (world.machine(id), world.peer(id));
            let (transport, run) =
                XenTransport::new(id, client, Some(machine), Some(neighbour), order);
            spawner.spawn_local(run.map(|never| match never {})).unwrap();
            Node::new(transport, suite::random(id.0.into()))
        };
        let (server, client) = (domain(DomId(7)), domain(DomId(9)));
        let at = ("any/test".parse().unwrap(), "xen:7/test".parse().unwrap());
        let rig = Rig { server, client, at, spawner: spawner.clone() };
        done.set(measure(Host { world, rig }).await);
    });
    cost.get()
}

type Ring = <<Transport as idc::transport::Transport>::Meeting as Meeting>::Link;

impl Host {
    /// A link between the two, without endpoints.
    async fn link(&self) -> (Ring, Ring) {
        let meeting = |node: &Node<Transport>, at: &str| {
            let address: Address = at.parse().unwrap();
            let transport = node.transport();
            transport.meet(&address, transport.reserve().unwrap())
        };
        let mut follower = meeting(&self.rig.server, "any/bare");
        let mut leader = meeting(&self.rig.client, "xen:7/bare");
        let publication = |phase| Publication {
            node: NodeId([0; 16]),
            epoch: Epoch(1),
            phase,
            met: Epoch(0),
            quota: Quota::default(),
        };
        let idle = publication(Phase::Idle);
        follower.publish(&idle).await.unwrap();
        leader.publish(&idle).await.unwrap();
        join(follower.changed(), leader.changed()).await;
        assert!(leader.leads());
        let offered = leader.link().await.unwrap();
        leader.publish(&publication(Phase::Offered(Epoch(1)))).await.unwrap();
        follower.changed().await;
        (follower.link().await.unwrap(), offered)
    }

    async fn measured(&self, work: impl Future<Output = ()>) -> Cost {
        let (events, start) = (self.world.events(), now());
        work.await;
        Cost { time: now() - start, events: self.world.events() - events }
    }
}

fn bytes_through_a_link(order: u32, total: usize) -> Cost {
    on_host(order, |host| async move {
        let (mut from, mut to) = host.link().await;
        let (data, copy) = (suite::pattern(MEBI), LocalBuffer::new(MEBI));
        let ((_, mut writer), (mut reader, _)) = (from.split(), to.split());
        let send = async {
            for _ in 0..total / MEBI {
                writer.write_all(data.shared()).await.unwrap();
            }
            writer.flush().await.unwrap();
        };
        let receive = async {
            for _ in 0..total / MEBI {
                reader.read_exact(copy.shared()).await.unwrap();
            }
        };
        host.measured(join(send, receive).map(drop)).await
    })
}

fn bytes_of_a_remote_buffer(order: u32, total: usize) -> Cost {
    on_host(order, |host| async move {
        let Rig { server, client, spawner, .. } = &host.rig;
        serve_buffers(spawner, server);
        let registration = server.register(&suite::pattern(MEBI), Rights::READ).unwrap();
        let (reference, copy) = (registration.reference(), LocalBuffer::new(MEBI));
        let Couriers { mut courier, driver: _driver } = courier(spawner, client);
        courier.receive(&reference, 0, &copy).await.unwrap();
        let work = async {
            for _ in 0..total / MEBI {
                courier.receive(&reference, 0, &copy).await.unwrap();
            }
        };
        host.measured(work).await
    })
}

fn round_trips_through_a_link(count: usize) -> Cost {
    on_host(5, |host| async move {
        let (mut server, mut client) = host.link().await;
        let ((mut asked, mut answer), (mut answered, mut ask)) = (server.split(), client.split());
        let (one, other) = (LocalBuffer::new(64), LocalBuffer::new(64));
        let serve = async {
            for _ in 0..count {
                asked.read_exact(one.shared()).await.unwrap();
                answer.write_all(one.shared()).await.unwrap();
                answer.flush().await.unwrap();
            }
        };
        let visit = async {
            for _ in 0..count {
                ask.write_all(other.shared()).await.unwrap();
                ask.flush().await.unwrap();
                answered.read_exact(other.shared()).await.unwrap();
            }
        };
        host.measured(join(serve, visit).map(drop)).await
    })
}

/// Answers what comes, until the end.
fn serve(spawner: &LocalSpawner, mut end: suite::End<Transport>) {
    let serve = async move {
        let end = &mut end;
        while let Some(event) = end.events.next().await {
            if let Event::Transaction(asked) = event {
                let parameters = asked.parameters().clone();
                asked.complete(0, parameters).unwrap();
            }
        }
    };
    spawner.spawn_local(serve).unwrap();
}

fn transactions(count: usize) -> Cost {
    on_host(5, |host| async move {
        let (server, client) = host.rig.connect().await;
        serve(&host.rig.spawner, server);
        let question = LocalBuffer::new(64);
        let work = async {
            for _ in 0..count {
                client.endpoint.transaction(question.clone()).await.unwrap();
            }
        };
        host.measured(work).await
    })
}

fn messages(count: usize) -> Cost {
    on_host(5, |host| async move {
        let (server, client) = host.rig.connect().await;
        serve(&host.rig.spawner, server);
        let body = LocalBuffer::new(64);
        let send = async || {
            for _ in 0..count / 4 {
                client.endpoint.message(body.clone()).await.unwrap();
            }
        };
        let work = futures_util::future::join4(send(), send(), send(), send());
        host.measured(work.map(drop)).await
    })
}

fn connections(count: usize) -> Cost {
    on_host(5, |host| async move {
        let mut cost = Cost::default();
        for _ in 0..count {
            let ends = Cell::new(None);
            let work = async { ends.set(Some(host.rig.connect().await)) };
            let Cost { time, events } = host.measured(work).await;
            cost = Cost { time: cost.time + time, events: cost.events + events };
            let (server, client) = ends.take().unwrap();
            join(server.destroy(), client.destroy()).await;
        }
        cost
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints how much faster `other` is than `own`, and what each costs.
fn compare(name: &str, unit: &str, count: usize, own: &dyn Fn() -> Cost, other: &dyn Fn() -> Cost) {
    let (mut ratios, mut own_time, mut own_events, mut other_time) =
        (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let (own, other) = (own(), other());
        let each = |cost: &Cost| cost.time.as_secs_f64() * 1e6 / count as f64;
        ratios.push(each(&other) / each(&own));
        own_time.push(each(&own));
        other_time.push(each(&other));
        own_events.push(own.events as f64 / count as f64);
    }
    println!(
        "{name}: {:.2} us a {unit}, {:.2} events; the link alone {:.2} us; ratio of speeds {:.2}",
        median(own_time),
        median(own_events),
        median(other_time),
        median(ratios),
    );
}

fn main() {
    let full = std::env::args().any(|argument| argument == "--bench");
    // `cargo test --benches` only checks that it runs.
    let (mebis, trips) = if full { (256, 50_000) } else { (2, 100) };
    for order in if full { 3..=9 } else { 5..=5 } {
        compare(
            &format!("bulk, order {order}"),
            "MiB",
            mebis,
            &|| bytes_of_a_remote_buffer(order, mebis * MEBI),
            &|| bytes_through_a_link(order, mebis * MEBI),
        );
    }
    let link = || round_trips_through_a_link(trips);
    compare("transaction of 64 bytes", "round trip", trips, &|| transactions(trips), &link);
    compare("message of 64 bytes, four at a time", "message", trips, &|| messages(trips), &link);
    let connection = connections(if full { 20 } else { 2 });
    println!("create to connect, both ends: {:.0} us", connection.time.as_secs_f64() * 1e6 / 20.0);
}
