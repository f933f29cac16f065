//! Connections: what goes through them, and how they end.

use crate::guest::{LINGER, address, limits, pattern, run, run_with};
use embassy_time::{Duration, Instant, Timer};
use futures_util::future::join;
use xen::Errno;
use xensock::back::Limits;
use xensock::wire::{Call, Family};

#[test]
fn bytes_go_both_ways_at_once_whatever_the_ring_holds() {
    for order in 1..=4 {
        run(|guest| async move {
            let (ring, peer) = guest.connect(1, order).await;
            let (there, back) = (pattern(300_000), pattern(200_001));
            let guest_side = async {
                join(ring.write(&there), async {
                    let mut all = Vec::new();
                    while all.len() < back.len() {
                        all.extend(ring.read().await);
                    }
                    assert!(all == back, "what came is what was sent");
                })
                .await
            };
            let peer_side = async {
                join(async { peer.write_all(&back).await.unwrap() }, async {
                    let (mut all, mut some) = (Vec::new(), [0; 5000]);
                    while all.len() < there.len() {
                        let count = peer.read(&mut some).await.unwrap();
                        all.extend_from_slice(&some[..count]);
                    }
                    assert!(all == there, "what came is what was sent");
                })
                .await
            };
            join(guest_side, peer_side).await;
            assert_eq!(guest.release(1).await, Ok(0));
            drop(ring);
            assert_eq!(peer.read(&mut [0]).await, Ok(0));
        });
    }
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    run(|guest| async move {
        let server = guest.net.listen(address(80)).unwrap();
        let ring = guest.ring(1);
        guest.call(1, Call::Socket { family: Family::V4 }).await.unwrap();
        let answer = guest.ask(1, ring.connect(address(80)));
        let peer = server.accept().await;
        peer.write_all(b"220 hello").await.unwrap();
        assert_eq!(guest.answer(answer).await, Ok(0));
        assert_eq!(ring.read().await, b"220 hello");
        guest.release(1).await.unwrap();
    });
}

#[test]
fn the_end_of_a_stream_comes_after_its_last_byte_and_leaves_the_other_direction_open() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 1).await;
        let question = pattern(50_000);
        let asking = async {
            peer.write_all(&question).await.unwrap();
            peer.finish();
        };
        let (_, (heard, error)) = join(asking, ring.read_to_end()).await;
        assert!(heard == question);
        assert_eq!(error, Some(Errno::ENOTCONN));
        assert_eq!(ring.out_error(), None);
        let reply = pattern(70_000);
        let mut got = vec![0; reply.len()];
        let reading = async {
            let mut at = 0;
            while at < got.len() {
                at += peer.read(&mut got[at..]).await.unwrap();
            }
        };
        join(ring.write(&reply), reading).await;
        assert!(got == reply);
        assert_eq!(guest.release(1).await, Ok(0));
    });
}

#[test]
fn a_connection_that_is_reset_says_so_in_both_directions() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 1).await;
        peer.reset();
        ring.until(|| ring.in_error()).await;
        assert_eq!(ring.in_error(), Some(Errno::ECONNRESET));
        assert!(ring.out_error().is_some());
        assert_eq!(guest.net.open_sockets(), 1, "only the test's own");
        assert_eq!(guest.release(1).await, Ok(0));
    });
}

#[test]
fn what_was_written_before_the_release_is_sent_first() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 4).await;
        // More than the network buffers: the rest waits in the ring.
        let all = pattern(64 * 1024 + 30_000);
        ring.write(&all).await;
        let release = guest.ask(1, Call::Release { reuse: false });
        guest.settle().await;
        assert_eq!(guest.answered(release), None, "there is something to be sent");
        let received = peer.read_to_end().await.unwrap();
        assert!(received == all, "{} of {} bytes came", received.len(), all.len());
        assert_eq!(guest.answer(release).await, Ok(0));
    });
}

#[test]
fn what_is_written_after_the_release_does_not_put_it_off() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 4).await;
        ring.write(&pattern(90_000)).await;
        let release = guest.ask(1, Call::Release { reuse: false });
        guest.settle().await;
        let mut received = 0;
        let mut some = [0; 4096];
        while guest.answered(release).is_none() {
            ring.put(&pattern(30_000));
            received += peer.read(&mut some).await.unwrap();
            assert!(received < 300_000, "the release never ends");
            guest.settle().await;
        }
        assert!(received >= 24_000, "what was there before has gone out");
    });
}

#[test]
fn a_release_does_not_wait_for_ever_for_a_peer_that_does_not_read() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 4).await;
        ring.write(&pattern(64 * 1024 + 1000)).await;
        let start = Instant::now();
        assert_eq!(guest.release(1).await, Ok(0));
        let linger = Duration::from_micros(LINGER.as_micros() as u64);
        assert!(start.elapsed() >= linger, "it gave up too early");
        drop((ring, peer));
    });
}

#[test]
fn a_peer_that_reads_a_little_at_a_time_cannot_hold_a_release_for_ever() {
    let linger = core::time::Duration::from_millis(50);
    run_with(Limits { linger, ..limits() }, |guest| async move {
        let (ring, peer) = guest.connect(1, 4).await;
        ring.write(&pattern(64 * 1024 + 32 * 1024)).await;
        let release = guest.ask(1, Call::Release { reuse: false });
        let start = Instant::now();
        let mut some = [0; 16];
        while guest.answered(release).is_none() {
            let _ = peer.read(&mut some).await.unwrap();
            Timer::after_millis(5).await;
            assert!(start.elapsed() < Duration::from_secs(20), "the release never ends");
        }
    });
}

#[test]
fn a_connect_that_takes_long_keeps_nobody_waiting_and_can_be_released() {
    run(|guest| async move {
        guest.net.silence(address(9));
        let ring = guest.ring(1);
        guest.call(1, Call::Socket { family: Family::V4 }).await.unwrap();
        let connect = guest.ask(1, ring.connect(address(9)));
        let (other, _peer) = guest.connect(2, 1).await;
        guest.release(2).await.unwrap();
        drop(other);
        assert_eq!(guest.answered(connect), None);
        assert_eq!(guest.call(1, ring.connect(address(9))).await, Err(Errno::EISCONN));
        assert_eq!(guest.release(1).await, Ok(0));
        assert_eq!(guest.answered(connect), Some(Err(Errno::ECONNABORTED)));
        // Both are answered, so the ring is the guest's again: dropping it checks that.
    });
}

#[test]
fn a_connect_that_fails_leaves_a_socket_that_can_connect_elsewhere() {
    run(|guest| async move {
        let ring = guest.ring(1);
        guest.call(1, Call::Socket { family: Family::V4 }).await.unwrap();
        assert_eq!(guest.call(1, ring.connect(address(9))).await, Err(Errno::ECONNREFUSED));
        let server = guest.net.listen(address(10)).unwrap();
        assert_eq!(guest.call(1, ring.connect(address(10))).await, Ok(0));
        drop(server);
        assert_eq!(guest.release(1).await, Ok(0));
        assert_eq!(guest.release(1).await, Err(Errno::EINVAL), "the name is free again");
    });
}

#[test]
fn a_guest_that_finds_no_room_is_told_when_there_is_some_and_no_other_is() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 1).await;
        // The network's buffer and the ring are filled to the brim.
        ring.write(&pattern(64 * 1024)).await;
        ring.write(&pattern(4096)).await;
        guest.settle().await;
        assert_eq!(ring.put(b"x"), 0, "all is full");
        let waiting = ring.until(|| Some(ring.put(b"x")).filter(|put| *put > 0));
        let (_, _) = join(waiting, async { peer.read(&mut [0; 1000]).await.unwrap() }).await;
        guest.settle().await;
        // From here on the ring is neither full nor empty when some bytes leave it.
        let _ = peer.read(&mut [0; 1000]).await.unwrap();
        guest.settle().await;
        assert!((1..4000).contains(&ring.unsent()), "{} bytes are unsent", ring.unsent());
        let before = guest.world.events();
        let _ = peer.read(&mut [0; 100]).await.unwrap();
        guest.settle().await;
        assert_eq!(guest.world.events(), before, "nobody waits for anything");
        guest.call(7, Call::Poll).await.unwrap_err();
        drop(peer);
        guest.release(1).await.unwrap();
    });
}

#[test]
fn an_engine_with_nothing_to_do_sleeps() {
    run(|guest| async move {
        let (_ring, _peer) = guest.connect(1, 1).await;
        guest.listen(2, 80).await;
        let poll = guest.ask(2, Call::Poll);
        guest.settle().await;
        let polls = guest.polls.get();
        Timer::after_millis(100).await;
        assert_eq!(guest.polls.get(), polls);
        assert_eq!(guest.answered(poll), None);
        guest.release(1).await.unwrap();
    });
}

#[test]
fn an_engine_that_is_dropped_closes_unmaps_and_unbinds_everything() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 2).await;
        ring.write(b"some").await;
        guest.listen(2, 80).await;
        let waiting = guest.ring(1);
        guest.ask(2, waiting.accept(3));
        guest.net.silence(address(9));
        guest.call(4, Call::Socket { family: Family::V4 }).await.unwrap();
        let connecting = guest.ring(1);
        guest.ask(4, connecting.connect(address(9)));
        let (draining, slow) = guest.connect(5, 4).await;
        draining.write(&pattern(64 * 1024 + 10)).await;
        guest.ask(5, Call::Release { reuse: false });
        guest.settle().await;
        // These are given back after the engine is gone, which must have let go of them.
        (ring, waiting, connecting, draining, peer, slow)
    });
}
