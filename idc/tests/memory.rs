//! Endpoints over a network in memory, whose connections buffer little.

mod net;
mod problems;
mod suite;

use idc::Place;
use idc::testing::FakeNet;
use net::{CAPACITY, SERVER, Transport, address, node};
use problems::Net;
use std::future::Future;
use suite::Rig;

/// Runs a test with a server and a client.
fn over_memory<F: Future<Output = ()>>(test: impl FnOnce(Rig<Transport, Transport>) -> F) {
    suite::run(|spawner| async move {
        let net = FakeNet::new(CAPACITY);
        let server = node(&net, &spawner, SERVER).await;
        let client = node(&net, &spawner, [10, 0, 0, 2]).await;
        let at = ("any/test".parse().unwrap(), "tcp:10.0.0.1:900/test".parse().unwrap());
        test(Rig { server, client, at, spawner }).await;
    });
}

/// Runs a test with three nodes.
fn three_over_memory<F: Future<Output = ()>>(test: impl FnOnce(Net<Transport>) -> F) {
    suite::run(|spawner| async move {
        let net = FakeNet::new(CAPACITY);
        let mut nodes = Vec::new();
        for last in 1..4 {
            let ip = [10, 0, 0, last];
            nodes.push((node(&net, &spawner, ip).await, [Place::Host(address(ip)); 2]));
        }
        test(Net { nodes, spawner }).await;
    });
}

suite!(over_memory);
problems!(three_over_memory);
