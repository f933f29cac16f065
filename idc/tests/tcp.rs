//! Endpoints over real TCP connections of this machine's loopback.

mod problems;
mod suite;

use edge_nal::TcpBind;
use edge_nal_std::{Stack, TcpAcceptor};
use futures_executor::LocalSpawner;
use futures_util::task::LocalSpawnExt;
use idc::tcp::Tcp;
use idc::{Address, Node, Place, Quota, Service};
use problems::Net;
use std::future::Future;
use suite::Rig;

type Transport = Tcp<'static, Stack, TcpAcceptor>;

/// Listens at a free port. The stack cannot say which one port 0 became.
async fn listen(stack: &'static Stack) -> (&'static TcpAcceptor, u16) {
    loop {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        if let Ok(acceptor) = stack.bind(free).await {
            return (Box::leak(Box::new(acceptor)), free.port());
        }
    }
}

/// A node that listens, and its place.
async fn node(spawner: &LocalSpawner, seed: u64) -> (Node<Transport>, Place) {
    let stack: &'static Stack = Box::leak(Box::new(Stack::new()));
    let (acceptor, port) = listen(stack).await;
    let here = ([127, 0, 0, 1], port).into();
    let transport = Tcp::new(stack, Some(here));
    let door = transport.clone();
    let serve = async move { panic!("nobody can be accepted: {:?}", door.serve(acceptor).await) };
    spawner.spawn_local(serve).unwrap();
    (Node::new(transport, suite::random(seed)), Place::Host(here))
}

/// Runs a test with a server and a client of this machine.
fn over_tcp<F: Future<Output = ()>>(test: impl FnOnce(Rig<Transport, Transport>) -> F) {
    suite::run(|spawner| async move {
        let (server, place) = node(&spawner, 1).await;
        let (client, _) = node(&spawner, 2).await;
        let service = Service::new("test", 0).unwrap();
        let at = (
            Address { place: Place::Anyone, service: service.clone() },
            Address { place, service },
        );
        test(Rig { server, client, at, spawner }).await;
    });
}

/// Runs a test with three nodes.
fn three_over_tcp<F: Future<Output = ()>>(test: impl FnOnce(Net<Transport>) -> F) {
    suite::run(|spawner| async move {
        let mut nodes = Vec::new();
        for seed in 1..4 {
            let (node, place) = node(&spawner, seed).await;
            nodes.push((node, [place; 2]));
        }
        test(Net { nodes, spawner }).await;
    });
}

suite!(over_tcp);
problems!(three_over_tcp);

#[test]
fn a_quota_that_no_other_end_would_believe_is_refused() {
    let stack: &'static Stack = Box::leak(Box::new(Stack::new()));
    let node = Node::new(Transport::new(stack, None), suite::random(1));
    let quota = Quota { messages: 2, message: 128 << 20, ..Quota::default() };
    assert_eq!(quota.memory(), Quota::MAX_MEMORY);
    let more = Quota { transactions: 1, status: 1, ..quota };
    assert_eq!(node.resource(more).err(), Some(xen::Errno::E2BIG));
}
