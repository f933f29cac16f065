//! The costs of an open socket: it allocates nothing for what it moves, and a batch of datagrams
//! is one event.

mod rig;

use edge_nal::{UdpReceive, UdpSend};
use embedded_io_async::{Read, Write};
use rig::{Rig, address, config, extended, limits, pattern, with_backend, with_backend_of};
use std::future::Future;
use std::rc::Rc;
use xen::testing::CountingAllocator;
use xen::yield_now;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The rounds that are counted, after one that is not. Together they go around the ring.
const ROUNDS: usize = 20;

/// The datagrams of a round.
const BATCH: usize = 32;

#[derive(Debug, PartialEq, Eq)]
struct Cost {
    allocations: u64,
    frontend_events: u64,
    backend_events: u64,
}

/// What both ends spend on `work`.
async fn cost(rig: &Rig, work: impl Future<Output = ()>) -> Cost {
    let now = || {
        let sent = rig.frontend.statistics().notifications_sent;
        (CountingAllocator::allocations(), sent, rig.world.events() - sent)
    };
    let before = now();
    work.await;
    let after = now();
    Cost {
        allocations: after.0 - before.0,
        frontend_events: after.1 - before.1,
        backend_events: after.2 - before.2,
    }
}

/// Lets both ends do what is left to do, and fall asleep.
async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

fn with_datagrams<F: Future<Output = ()>>(test: impl Fn(Rc<Rig>) -> F) {
    for protocol in extended() {
        println!("with {protocol:?}");
        with_backend_of(protocol, config(), limits(), &test);
    }
}

#[test]
fn a_batch_of_datagrams_from_the_guest_allocates_nothing_and_is_one_event() {
    with_datagrams(|rig| async move {
        let mut socket = rig.frontend.bind_udp(address(53)).await.unwrap();
        let data = pattern(500);
        for round in 0..=ROUNDS {
            let calls = rig.net.datagram_calls();
            let cost = cost(&rig, async {
                for _ in 0..BATCH {
                    // Nobody receives there.
                    socket.send(address(7), &data).await.unwrap();
                }
                settle().await;
            });
            let cost = cost.await;
            assert_eq!(rig.net.datagram_calls(), calls + 1);
            let cheap = Cost { allocations: 0, frontend_events: 1, backend_events: 0 };
            assert!(round == 0 || cost == cheap, "round {round}: {cost:?}");
        }
    });
}

#[test]
fn a_batch_of_datagrams_to_the_guest_allocates_nothing_and_is_one_event() {
    with_datagrams(|rig| async move {
        let mut socket = rig.frontend.bind_udp(address(53)).await.unwrap();
        let peer = rig.net.datagrams_at(address(7)).unwrap();
        let mut data = pattern(500);
        for round in 0..=ROUNDS {
            let calls = rig.net.datagram_calls();
            (0..BATCH).for_each(|_| peer.send(address(53), &data).unwrap());
            let cost = cost(&rig, async {
                for _ in 0..BATCH {
                    socket.receive(&mut data).await.unwrap();
                }
                settle().await;
            });
            let cost = cost.await;
            assert_eq!(rig.net.datagram_calls(), calls + 1);
            // None if the guest has just let other tasks run, before it waits.
            let is_cheap =
                matches!(cost, Cost { allocations: 0, frontend_events: 0, backend_events: 0..=1 });
            assert!(round == 0 || is_cheap, "round {round}: {cost:?}");
        }
    });
}

#[test]
fn a_stream_allocates_nothing_for_its_bytes() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let peer = server.accept().await;
        // So few that no ring grows.
        let mut data = pattern(2_000);
        for round in 0..=ROUNDS {
            let cost = cost(&rig, async {
                stream.write_all(&data).await.unwrap();
                let mut left = data.len();
                while left > 0 {
                    left -= peer.read(&mut data[..left]).await.unwrap();
                }
                peer.write_all(&data).await.unwrap();
                stream.read_exact(&mut data).await.unwrap();
            });
            let cost = cost.await;
            assert!(round == 0 || cost.allocations == 0, "round {round}: {cost:?}");
        }
    });
}
