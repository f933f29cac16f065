//! The daemon's costs of a batch of datagrams: system calls and memory.

#[allow(dead_code, reason = "other tests use the rest")]
mod machine;
#[allow(dead_code, reason = "other tests use the rest")]
mod rig;
mod traced;

use edge_nal::{UdpReceive, UdpSend};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use traced::{calls, mark};
use xen::testing::{CountingAllocator, FakeMachine};
use xen::{DomId, Errno, yield_now};
use xensock::front::Datagrams;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The most datagrams of one system call.
const BATCH: usize = 32;

/// The batches that are counted, after others by which the daemon learns how long datagrams are.
const ROUNDS: usize = 5;
const WARM_UP: usize = 3;

const GUEST: DomId = DomId(7);

/// Any port of the loopback interface.
fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// The system calls of each batch that `work` moves between a guest's socket and real ones. `work`
/// calls its last argument where a count begins and where it ends; in between, nothing may be
/// allocated.
fn batches(
    test: &str,
    work: impl AsyncFn(&mut Datagrams<FakeMachine>, &[UdpSocket; BATCH], &dyn Fn()),
) -> Option<Vec<Vec<i64>>> {
    calls(test, || {
        machine::run(|rig| async move {
            rig.create(GUEST);
            let (frontend, driver) = rig.boot(GUEST);
            let mut socket = frontend.bind_udp(any()).await.unwrap();
            let peers = [(); BATCH].map(|()| UdpSocket::bind(any()).unwrap());
            for peer in &peers {
                peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            }
            let start = Cell::new(None);
            for round in 0..WARM_UP + ROUNDS {
                let count = || {
                    let now = CountingAllocator::allocations();
                    match start.take() {
                        None => start.set(Some(now)),
                        Some(start) => assert!(round < WARM_UP || now == start, "round {round}"),
                    }
                    if round >= WARM_UP {
                        mark();
                    }
                };
                // All wait for something.
                rig.sleep(Duration::from_millis(5)).await;
                work(&mut socket, &peers, &count).await;
            }
            drop(socket);
            frontend.shutdown().await;
            assert_eq!(driver.finished().await, Some(Errno::ENODEV));
        });
    })
}

#[test]
fn a_batch_for_the_guest_takes_one_call_and_another_that_finds_no_more() {
    let name = "a_batch_for_the_guest_takes_one_call_and_another_that_finds_no_more";
    let counted = batches(name, async |socket, [peer, ..], count| {
        let mut data = [7; 1000];
        let at = socket.local_addr().unwrap();
        for _ in 0..BATCH {
            peer.send_to(&data, at).unwrap();
        }
        count();
        for _ in 0..BATCH {
            socket.receive(&mut data).await.unwrap();
        }
        count();
    });
    for calls in counted.into_iter().flatten() {
        // The first wait reports the socket, and the last one finds nothing more to do. A call
        // that fills its batch cannot know that no datagram is left.
        let [wait, receive] = [libc::SYS_epoll_pwait, libc::SYS_recvmmsg];
        assert_eq!(calls, [wait, receive, receive, wait]);
    }
}

/// What the daemon does for a batch that is in the ring: it sends. The loop looks for events
/// whenever a task has let others run, as this one does.
fn assert_one_call(calls: &[i64]) {
    let (send, turns) = calls.split_first().unwrap();
    assert_eq!(*send, libc::SYS_sendmmsg, "{calls:?}");
    assert!(turns.iter().all(|call| *call == libc::SYS_epoll_pwait), "{calls:?}");
}

async fn let_others_run() {
    for _ in 0..5 {
        yield_now().await;
    }
}

#[test]
fn a_batch_of_the_guest_takes_one_call() {
    let counted =
        batches("a_batch_of_the_guest_takes_one_call", async |socket, [peer, ..], count| {
            let mut data = [7; 1000];
            let to = peer.local_addr().unwrap();
            for _ in 0..BATCH {
                socket.send(to, &data).await.unwrap();
            }
            count();
            let_others_run().await;
            count();
            for _ in 0..BATCH {
                peer.recv(&mut data).unwrap();
            }
        });
    counted.into_iter().flatten().for_each(|calls| assert_one_call(&calls));
}

#[test]
fn answers_to_many_clients_take_one_call() {
    let counted =
        batches("answers_to_many_clients_take_one_call", async |socket, clients, count| {
            let at = socket.local_addr().unwrap();
            for client in clients {
                client.send_to(b"question", at).unwrap();
            }
            let mut from = [at; BATCH];
            for from in &mut from {
                *from = socket.receive(&mut []).await.unwrap().1;
            }
            for to in from {
                socket.send(to, b"answer").await.unwrap();
            }
            count();
            let_others_run().await;
            count();
        });
    counted.into_iter().flatten().for_each(|calls| assert_one_call(&calls));
}
