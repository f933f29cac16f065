//! How much of the backend's time a guest takes at once.

use crate::datagrams::{self, run_datagrams};
use crate::guest::{Raw, Ring, run};
use futures_util::future::{Either, join, join_all, select};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use xen::yield_now;
use xensock::testing::FakeStream;
use xensock::wire::{Call, Family};

fn count(all: &Cell<usize>, some: usize) {
    all.set(all.get() + some);
}

/// The bulk of several connections in both directions, without an end. Counts the bytes of each.
async fn flood(ends: &[(Ring, FakeStream)], counts: &[Cell<usize>]) {
    let piece = vec![7; 32 << 10];
    let both = ends.iter().zip(counts).map(|((ring, peer), all)| {
        let guest_writes = async {
            loop {
                ring.write(&piece).await;
            }
        };
        let guest_reads = async {
            loop {
                count(all, ring.read().await.len());
            }
        };
        let peer_writes = async {
            loop {
                peer.write_all(&piece).await.unwrap();
            }
        };
        let peer_reads = async {
            let mut some = vec![0; 32 << 10];
            loop {
                count(all, peer.read(&mut some).await.unwrap());
            }
        };
        async {
            join(join(guest_writes, guest_reads), join(peer_writes, peer_reads)).await;
        }
    });
    join_all(both).await;
}

/// Runs a test while several connections carry bulk. Returns the bytes that each has moved.
async fn beside_bulk(guest: &Raw, test: impl Future<Output = ()>) -> [usize; 6] {
    let (mut ends, counts) = (Vec::new(), <[Cell<usize>; 6]>::default());
    for socket in 1..=6 {
        ends.push(guest.connect(socket, 4).await);
    }
    guest.most_work.set(0);
    match select(pin!(test), pin!(flood(&ends, &counts))).await {
        Either::Left(((), _)) => {}
        Either::Right(_) => unreachable!("the flood has no end"),
    }
    for socket in 1..=6 {
        guest.release(socket).await.unwrap();
    }
    counts.map(Cell::into_inner)
}

/// Waits until the guest's bulk was charged with this much.
async fn until_work(guest: &Raw, work: u64) {
    let before = guest.account.turn().work();
    while guest.account.turn().work() - before < work {
        yield_now().await;
    }
}

#[test]
fn a_turn_is_short_while_other_guests_work() {
    let work = |crowded: bool| {
        let most = Cell::new(0);
        run(async |guest: Rc<Raw>| {
            guest.account.turn().set_crowded(crowded);
            beside_bulk(&guest, until_work(&guest, 50 << 20)).await;
            most.set(guest.most_work.get());
        });
        most.get()
    };
    let (alone, crowded) = (work(false), work(true));
    // An operation may exceed what is left.
    assert!(crowded <= 256 << 10, "{crowded}");
    assert!(alone > 2 * crowded, "{alone} and {crowded}");
}

#[test]
fn connections_of_a_guest_get_the_same_in_short_turns() {
    run(async |guest: Rc<Raw>| {
        guest.account.turn().set_crowded(true);
        let counts = beside_bulk(&guest, until_work(&guest, 50 << 20)).await;
        let mean = counts.iter().sum::<usize>() / counts.len();
        assert!(counts.iter().all(|count| (mean / 2..mean * 2).contains(count)), "{counts:?}");
    });
}

#[test]
fn streams_keep_half_of_their_rate_beside_a_flood_of_datagrams() {
    let moved = |with_flood: bool| {
        let all = Cell::new(0);
        run_datagrams(async |guest: Rc<Raw>| {
            guest.account.turn().set_crowded(true);
            let (ring, peer) = datagrams::connect(&guest, 99, 4).await;
            ring.send(None, b"").await;
            let (at, _) = peer.receive().await;
            let flood = async {
                loop {
                    while with_flood && peer.waiting() < 60 && ring.put_datagram(b"small") {
                        peer.send(at, b"small").unwrap();
                    }
                    while ring.try_receive().is_some() {}
                    while peer.try_receive().is_some() {}
                    yield_now().await;
                }
            };
            let work = async {
                match select(pin!(until_work(&guest, 50 << 20)), pin!(flood)).await {
                    Either::Left(((), _)) => {}
                    Either::Right(_) => unreachable!("the flood has no end"),
                }
            };
            all.set(beside_bulk(&guest, work).await.iter().sum());
            guest.release(99).await.unwrap();
        });
        all.get()
    };
    let (alone, beside): (usize, usize) = (moved(false), moved(true));
    assert!(beside >= alone / 2, "{beside} of {alone} bytes");
}

#[test]
fn requests_are_served_while_bulk_uses_up_each_turn() {
    run(async |guest: Rc<Raw>| {
        guest.account.turn().set_crowded(true);
        let requests = async {
            for _ in 0..100 {
                guest.call(99, Call::Socket { family: Family::V4 }).await.unwrap();
                guest.release(99).await.unwrap();
            }
        };
        beside_bulk(&guest, requests).await;
    });
}

#[test]
fn connections_are_opened_while_bulk_uses_up_each_turn() {
    run(async |guest: Rc<Raw>| {
        guest.account.turn().set_crowded(true);
        let connections = async {
            for _ in 0..20 {
                let (ring, peer) = guest.connect(99, 1).await;
                peer.write_all(b"hello").await.unwrap();
                assert_eq!(ring.read().await, b"hello");
                guest.release(99).await.unwrap();
            }
        };
        beside_bulk(&guest, connections).await;
    });
}

#[test]
fn a_flood_of_requests_does_not_hold_up_the_bytes_of_its_own_guest() {
    run(async |guest: Rc<Raw>| {
        guest.account.turn().set_crowded(true);
        let (ring, peer) = guest.connect(1, 1).await;
        let flood = async {
            for socket in (100..u64::MAX).step_by(8) {
                let all: Vec<_> = (socket..socket + 8)
                    .flat_map(|socket| {
                        [Call::Socket { family: Family::V4 }, Call::Release { reuse: false }]
                            .map(|call| guest.push(socket, call))
                    })
                    .collect();
                guest.publish();
                for id in all {
                    guest.answer(id).await.unwrap();
                }
            }
        };
        let echo = async {
            for _ in 0..200 {
                ring.write(b"there").await;
                let mut some = [0; 5];
                assert_eq!(peer.read(&mut some).await, Ok(5));
                peer.write_all(&some).await.unwrap();
                assert_eq!(ring.read().await, b"there");
            }
        };
        match select(pin!(echo), pin!(flood)).await {
            Either::Left(((), _)) => {}
            Either::Right(((), _)) => unreachable!("the flood has no end"),
        }
        guest.settle().await;
        guest.release(1).await.unwrap();
    });
}
