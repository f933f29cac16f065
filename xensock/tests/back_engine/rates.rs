//! Limits by the second.

use crate::guest::{address, limits, pattern, run_with};
use embassy_time::Instant;
use futures_util::future::join_all;
use std::cell::Cell;
use xen::Errno;
use xensock::back::Limits;
use xensock::wire::{Call, Family};

/// How many may have passed since the start, at this rate and with this many saved up.
fn most(start: Instant, rate: usize, saved: usize) -> usize {
    saved + rate * (start.elapsed().as_micros() as usize + 1) / 1_000_000 + 1
}

#[test]
fn bytes_of_all_connections_pass_at_the_rate_of_their_direction() {
    const RATE: usize = 200_000;
    const EACH: usize = 30_000;
    let rate = Some(RATE as u64);
    let limited = Limits { bytes_in_per_second: rate, bytes_out_per_second: rate, ..limits() };
    run_with(limited, |guest| async move {
        // What is saved up begins to grow with the first connection.
        let start = Instant::now();
        let ends = [guest.connect(1, 2).await, guest.connect(2, 3).await];
        let bytes = pattern(EACH);
        let (sent, received) = (Cell::new(0), Cell::new(0));
        let check = |all: &Cell<usize>, count: usize| {
            all.set(all.get() + count);
            assert!(all.get() <= most(start, RATE, RATE / 8), "{} are too many", all.get());
        };
        let connections = ends.iter().map(|(ring, peer)| {
            let guest_side = async {
                ring.write(&bytes).await;
                let mut all = Vec::new();
                while all.len() < EACH {
                    let some = ring.read().await;
                    check(&received, some.len());
                    all.extend(some);
                }
                assert!(all == bytes);
            };
            let peer_side = async {
                peer.write_all(&bytes).await.unwrap();
                let (mut all, mut some) = (Vec::<u8>::new(), [0; 5000]);
                while all.len() < EACH {
                    let count = peer.read(&mut some).await.unwrap();
                    check(&sent, count);
                    all.extend(&some[..count]);
                }
                assert!(all == bytes);
            };
            futures_util::future::join(guest_side, peer_side)
        });
        join_all(connections).await;
        for socket in [1, 2] {
            guest.release(socket).await.unwrap();
        }
    });
}

#[test]
fn connects_beyond_the_rate_fail_and_accepts_wait() {
    const RATE: usize = 4;
    let limited = Limits { connections_per_second: Some(RATE as u32), ..limits() };
    run_with(limited, |guest| async move {
        let server = guest.net.listen(address(0)).unwrap();
        let start = Instant::now();
        let (mut done, mut rings) = (0, Vec::new());
        for socket in 1..=12 {
            let ring = guest.ring(1);
            guest.call(socket, Call::Socket { family: Family::V4 }).await.unwrap();
            match guest.call(socket, ring.connect(server.address())).await {
                Ok(_) => done += 1,
                Err(error) => assert_eq!(error, Errno::ENOBUFS),
            }
            guest.release(socket).await.unwrap();
            rings.push(ring);
        }
        assert!((RATE..=most(start, RATE, RATE)).contains(&done), "{done} of 12");

        guest.listen(20, 80).await;
        let clients = join_all((0..4).map(|_| guest.net.connect(address(80)))).await;
        assert!(clients.iter().all(Result::is_ok));
        for (socket, ring) in (21..).zip(&rings[..4]) {
            assert_eq!(guest.call(20, ring.accept(socket)).await, Ok(0));
            done += 1;
            assert!(done <= most(start, RATE, RATE), "{done} are too many");
        }
        for socket in [21, 22, 23, 24, 20] {
            guest.release(socket).await.unwrap();
        }
        rings
    });
}
