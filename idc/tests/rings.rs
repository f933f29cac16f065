//! Endpoints over shared rings, between fakes of domains.

mod problems;
mod suite;

use futures_executor::LocalSpawner;
use futures_util::FutureExt;
use futures_util::task::LocalSpawnExt;
use idc::xen::XenTransport;
use idc::{Node, Place};
use problems::Net;
use std::future::Future;
use suite::Rig;
use xen::DomId;
use xen::testing::{FakeMachine, FakeStore, Peer, World};

type Transport = XenTransport<FakeMachine, Peer>;

/// What a domain can do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Can {
    Grant,
    Map,
    Both,
}

/// A domain of a host.
fn domain(
    world: &World,
    store: &FakeStore,
    spawner: &LocalSpawner,
    id: DomId,
    can: Can,
) -> Node<Transport> {
    store.add_domain(id);
    let (client, connection) = store.client(id);
    spawner.spawn_local(connection).unwrap();
    let machine = (can != Can::Map).then(|| world.machine(id));
    let neighbour = (can != Can::Grant).then(|| world.peer(id));
    let (transport, run) = XenTransport::new(id, client, machine, neighbour, 1);
    spawner.spawn_local(run.map(|never| match never {})).unwrap();
    Node::new(transport, suite::random(id.0.into()))
}

/// Runs a test with a server and a client, for all that the two can be able to do.
fn over_rings<F: Future<Output = ()>>(test: impl Fn(Rig<Transport, Transport>) -> F) {
    for can in [(Can::Both, Can::Both), (Can::Grant, Can::Map), (Can::Map, Can::Grant)] {
        println!("the server and the client can {can:?}");
        let test = &test;
        suite::run(|spawner| async move {
            let (world, store) = (World::new(), FakeStore::new());
            let domain = |id, can| domain(&world, &store, &spawner, DomId(id), can);
            let (server, client) = (domain(7, can.0), domain(9, can.1));
            let at = ("any/test".parse().unwrap(), "xen:7/test".parse().unwrap());
            test(Rig { server, client, at, spawner: spawner.clone() }).await;
        });
    }
}

suite!(over_rings);

/// Runs a test with three domains.
fn three_over_rings<F: Future<Output = ()>>(test: impl Fn(Net<Transport>) -> F) {
    let test = &test;
    suite::run(|spawner| async move {
        let (world, store) = (World::new(), FakeStore::new());
        let node = |id| {
            let id = DomId(id);
            (domain(&world, &store, &spawner, id, Can::Both), Place::Domain(id))
        };
        let nodes = vec![node(7), node(8), node(9)];
        test(Net { nodes, spawner: spawner.clone() }).await;
    });
}

problems!(three_over_rings);

#[test]
fn what_a_killed_process_has_left_for_a_dead_domain_is_removed() {
    suite::run(|spawner| async move {
        let (world, store) = (World::new(), FakeStore::new());
        store.add_domain(DomId(0));
        store.add_domain(DomId(7));
        for node in ["disk/7", "disk/8", "other@/8"] {
            store.write(&format!("/local/domain/0/data/idc/{node}"), "left");
        }
        let process = domain(&world, &store, &spawner, DomId(0), Can::Map);
        embassy_time::Timer::after_millis(50).await;
        let left = |node| store.read(&format!("/local/domain/0/data/idc/{node}"));
        assert_eq!(left("disk/7").as_deref(), Some("left"));
        assert_eq!((left("disk/8"), left("other@/8"), left("other@")), (None, None, None));
        drop(process);
    });
}
