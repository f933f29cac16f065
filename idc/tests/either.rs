//! Endpoints of nodes that reach each other both as domains of a host and over a network.

#[allow(dead_code, reason = "each test crate uses its own part")]
mod net;
mod problems;
#[allow(dead_code, reason = "each test crate uses its own part")]
mod suite;

use futures_util::FutureExt;
use futures_util::task::LocalSpawnExt;
use idc::either::Either;
use idc::testing::FakeNet;
use idc::xen::XenTransport;
use idc::{Node, Place};
use problems::Net;
use std::future::Future;
use xen::DomId;
use xen::testing::{FakeMachine, FakeStore, Peer, World};

type Transport = Either<XenTransport<FakeMachine, Peer>, net::Transport>;

/// Runs a test with three domains that are also hosts of a network.
fn three_in_both_ways<F: Future<Output = ()>>(test: impl Fn(Net<Transport>) -> F) {
    let test = &test;
    suite::run(|spawner| async move {
        let (world, store, net) = (World::new(), FakeStore::new(), FakeNet::new(net::CAPACITY));
        let mut nodes = Vec::new();
        for id in [7, 8, 9] {
            let (domain, ip) = (DomId(id), [10, 0, 0, id as u8]);
            store.add_domain(domain);
            let (client, connection) = store.client(domain);
            spawner.spawn_local(connection).unwrap();
            let (machine, peer) = (world.machine(domain), world.peer(domain));
            let (domains, run) = XenTransport::new(domain, client, Some(machine), Some(peer), 1);
            spawner.spawn_local(run.map(|never| match never {})).unwrap();
            let hosts = net::node(&net, &spawner, ip).await.transport().clone();
            let node = Node::new(Either { domains, hosts }, suite::random(id.into()));
            nodes.push((node, [Place::Domain(domain), Place::Host(net::address(ip))]));
        }
        test(Net { nodes, spawner: spawner.clone() }).await;
    });
}

problems!(three_in_both_ways);
