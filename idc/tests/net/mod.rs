//! Nodes of a network in memory.

use super::suite::random;
use edge_nal::TcpBind;
use futures_executor::LocalSpawner;
use futures_util::task::LocalSpawnExt;
use idc::Node;
use idc::tcp::Tcp;
use idc::testing::{FakeAcceptor, FakeHost, FakeNet};
use std::net::SocketAddr;

pub type Transport = Tcp<'static, FakeHost, FakeAcceptor>;

/// The bytes that each direction of a connection buffers.
pub const CAPACITY: usize = 4096;

/// The server's address.
pub const SERVER: [u8; 4] = [10, 0, 0, 1];

/// Where the node of a host lets visitors in.
pub fn address(ip: [u8; 4]) -> SocketAddr {
    (ip, 900).into()
}

pub fn host(net: &FakeNet, ip: [u8; 4]) -> &'static FakeHost {
    Box::leak(Box::new(net.host(ip)))
}

/// A node that lets visitors in.
pub async fn node(net: &FakeNet, spawner: &LocalSpawner, ip: [u8; 4]) -> Node<Transport> {
    let (stack, here) = (host(net, ip), address(ip));
    let acceptor: &'static FakeAcceptor = Box::leak(Box::new(stack.bind(here).await.unwrap()));
    let transport = Tcp::new(stack, Some(here));
    let door = transport.clone();
    let serve = async move { panic!("nobody can be accepted: {:?}", door.serve(acceptor).await) };
    spawner.spawn_local(serve).unwrap();
    Node::new(transport, random(ip[3].into()))
}
