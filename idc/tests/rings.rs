//! Endpoints over shared rings, between fakes of domains.

mod problems;
mod suite;

use futures_executor::LocalSpawner;
use futures_util::FutureExt;
use futures_util::task::LocalSpawnExt;
use idc::xen::XenTransport;
use idc::{Event, Node, Place};
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
            (domain(&world, &store, &spawner, id, Can::Both), [Place::Domain(id); 2])
        };
        let nodes = vec![node(7), node(8), node(9)];
        test(Net { nodes, spawner: spawner.clone() }).await;
    });
}

problems!(three_over_rings);

/// Waits for the next connection, also if the other end was seen to go.
async fn connected_again(end: &mut suite::End<Transport>) {
    loop {
        match end.event().await {
            Event::Connect => return,
            Event::Appear | Event::Disappear => {}
            other => panic!("{other:?} without a connection"),
        }
    }
}

#[test]
fn the_ends_of_a_suspended_domain_leave_and_meet_again() {
    for can in [(Can::Both, Can::Both), (Can::Grant, Can::Map), (Can::Map, Can::Grant)] {
        suite::run(|spawner| async move {
            let (world, store) = (World::new(), FakeStore::new());
            let domain = |id, can| domain(&world, &store, &spawner, DomId(id), can);
            let (server, client) = (domain(7, can.0), domain(9, can.1));
            let at = ("any/test".parse().unwrap(), "xen:7/test".parse().unwrap());
            let rig = Rig { server, client, at, spawner: spawner.clone() };
            let (mut server, mut client) = rig.connect().await;
            for round in 0..4 {
                // Either domain is suspended, and either client is slow.
                let transport = [rig.server.transport(), rig.client.transport()][round / 2];
                let (quick, slow) = match round % 2 {
                    0 => (&mut server, &mut client),
                    _ => (&mut client, &mut server),
                };
                drop(quick.endpoint.try_message(b"kept".into()).unwrap());
                let kept = slow.message().await;
                transport.suspend().await;
                drop(quick.disconnect().await);
                embassy_time::Timer::after_millis(20).await;
                assert_eq!((world.mappings(), world.bound_ports()), (0, 0));
                transport.resume().await;
                drop((kept, slow.disconnect().await));
                connected_again(quick).await;
                connected_again(slow).await;
            }
        });
    }
}

#[test]
fn nobody_is_met_while_a_domain_is_suspended() {
    over_rings(async |rig| {
        rig.client.transport().suspend().await;
        let (mut server, mut client) = (rig.serve(), rig.visit());
        embassy_time::Timer::after_millis(50).await;
        for end in [&mut server.events, &mut client.events] {
            assert!(end.next().now_or_never().is_none(), "somebody is met");
        }
        rig.client.transport().resume().await;
        server.connected().await;
        client.connected().await;
        // An end that is destroyed meanwhile ends at once.
        rig.client.transport().suspend().await;
        client.destroy().await;
    });
}

#[test]
fn a_restored_domain_is_met_as_another_one() {
    suite::run(|spawner| async move {
        let (world, store) = (World::new(), FakeStore::new());
        let server = domain(&world, &store, &spawner, DomId(7), Can::Both);
        store.add_domain(DomId(9));
        let (client, connection) = store.client(DomId(9));
        spawner.spawn_local(connection).unwrap();
        // The fakes of pages and ports do not move.
        let (transport, run) = Transport::new(DomId(9), client.clone(), None, None, 1);
        spawner.spawn_local(run.map(|never| match never {})).unwrap();
        let client_node = Node::new(transport.clone(), suite::random(9));
        let at = ("any/test".parse().unwrap(), "xen:7/test".parse().unwrap());
        let (client_at, server_at): (idc::Address, idc::Address) = at;
        let mut serves =
            suite::create(&spawner, server.resource(suite::QUOTA).unwrap(), &client_at);
        let mut visits =
            suite::create(&spawner, client_node.resource(suite::QUOTA).unwrap(), &server_at);
        serves.expect("Appear").await;
        visits.expect("Appear").await;
        transport.suspend().await;
        client.quiesce().await;
        store.remove_domain(DomId(9));
        store.add_domain(DomId(11));
        let (reader, writer) = store.connect(DomId(11));
        let driver = client.reconnect(reader, writer);
        spawner.spawn_local(driver.run().map(drop)).unwrap();
        client.release();
        transport.resume().await;
        for end in [&mut serves, &mut visits] {
            end.expect("Disappear").await;
            end.expect("Appear").await;
        }
        assert!(store.read("/local/domain/11/data/idc/test/7").is_some());
        assert!(store.read("/local/domain/7/data/idc/test@/11").is_some());
    });
}

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
