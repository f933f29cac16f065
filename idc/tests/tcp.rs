//! Endpoints over real TCP connections of this machine's loopback.

mod suite;

use edge_nal::TcpBind;
use edge_nal_std::{Stack, TcpAcceptor};
use futures_util::task::LocalSpawnExt;
use idc::tcp::Tcp;
use idc::{Node, Quota};
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

/// Runs a test with a server and a client of this machine.
fn over_tcp<F: Future<Output = ()>>(test: impl FnOnce(Rig<Transport, Transport>) -> F) {
    suite::run(|spawner| async move {
        let stack: &'static Stack = Box::leak(Box::new(Stack::new()));
        let (acceptor, port) = listen(stack).await;
        let here = ([127, 0, 0, 1], port).into();
        let (server, client) = (Tcp::new(stack, Some(here)), Tcp::new(stack, None));
        let door = server.clone();
        spawner
            .spawn_local(async move {
                panic!("nobody can be accepted: {:?}", door.serve(acceptor).await)
            })
            .unwrap();
        let at =
            ("any/test".parse().unwrap(), format!("tcp:127.0.0.1:{port}/test").parse().unwrap());
        test(Rig {
            server: Node::new(server, suite::random(1)),
            client: Node::new(client, suite::random(2)),
            at,
            spawner,
        })
        .await;
    });
}

suite!(over_tcp);

#[test]
fn a_quota_that_no_other_end_would_believe_is_refused() {
    let stack: &'static Stack = Box::leak(Box::new(Stack::new()));
    let node = Node::new(Transport::new(stack, None), suite::random(1));
    let quota = Quota { messages: 2, message: 128 << 20, ..Quota::default() };
    assert_eq!(quota.memory(), Quota::MAX_MEMORY);
    let more = Quota { transactions: 1, status: 1, ..quota };
    assert_eq!(node.resource(more).err(), Some(xen::Errno::E2BIG));
}
