//! Connections: their data, and how they end.

use crate::guest::{LINGER, address, limits, patient, pattern, run, run_with};
use embassy_time::{Duration, Instant, Timer};
use futures_util::future::join;
use xen::Errno;
use xensock::back::{Limits, RingUsage};
use xensock::wire::{Call, Family};

#[test]
fn bytes_move_both_ways_at_once_with_rings_of_any_size() {
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
                    assert!(all == back, "the received bytes are the sent ones");
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
                    assert!(all == there, "the received bytes are the sent ones");
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
fn bytes_of_a_server_that_sends_first_arrive() {
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
fn a_reset_connection_is_an_error_in_both_directions() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 1).await;
        peer.reset();
        ring.until(|| ring.in_error()).await;
        assert_eq!(ring.in_error(), Some(Errno::ECONNRESET));
        assert!(ring.out_error().is_some());
        assert_eq!(guest.net.open_sockets(), 1, "only the test's own socket is open");
        assert_eq!(guest.release(1).await, Ok(0));
    });
}

#[test]
fn bytes_written_before_the_release_are_sent_first() {
    run_with(patient(), |guest| async move {
        let (ring, peer) = guest.connect(1, 4).await;
        // More than the network buffers: the rest stays in the ring.
        let all = pattern(64 * 1024 + 30_000);
        ring.write(&all).await;
        let release = guest.ask(1, Call::Release { reuse: false });
        guest.settle().await;
        assert_eq!(guest.answered(release), None, "bytes are still to be sent");
        let received = peer.read_to_end().await.unwrap();
        assert!(received == all, "{} of {} bytes came", received.len(), all.len());
        assert_eq!(guest.answer(release).await, Ok(0));
    });
}

#[test]
fn bytes_written_after_the_release_do_not_delay_it() {
    run_with(patient(), |guest| async move {
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
        assert!(received >= 24_000, "bytes written before the release are sent");
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
        assert!(start.elapsed() >= linger, "the engine gave up too early");
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
fn a_slow_connect_delays_no_other_request_and_can_be_released() {
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
        // Both are answered, so the ring is unmapped: dropping it checks that.
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
        assert_eq!(guest.release(1).await, Err(Errno::EINVAL), "the id is free again");
    });
}

#[test]
fn a_guest_gets_an_event_for_room_only_if_it_found_none() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 1).await;
        // Fills the network's buffer and the ring.
        ring.write(&pattern(64 * 1024)).await;
        ring.write(&pattern(4096)).await;
        guest.settle().await;
        assert_eq!(ring.put(b"x"), 0, "the ring is full");
        let waiting = ring.until(|| Some(ring.put(b"x")).filter(|put| *put > 0));
        let (_, _) = join(waiting, async { peer.read(&mut [0; 1000]).await.unwrap() }).await;
        guest.settle().await;
        // From here on the ring is neither full nor empty when bytes leave it.
        let _ = peer.read(&mut [0; 1000]).await.unwrap();
        guest.settle().await;
        assert!((1..4000).contains(&ring.unsent()), "{} bytes are unsent", ring.unsent());
        let before = guest.world.events();
        let _ = peer.read(&mut [0; 100]).await.unwrap();
        guest.settle().await;
        assert_eq!(guest.world.events(), before, "no event is due");
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
        // Dropped after the engine, which must have unmapped them.
        (ring, waiting, connecting, draining, peer, slow)
    });
}

#[test]
fn the_host_can_look_at_the_rings_of_its_streams() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 2).await;
        let view = guest.net.last_ring().expect("the engine reports it");
        let size = ring.layout.input.size;
        let usage = || view.upgrade().map(|ring| ring.usage());
        let empty = RingUsage { in_size: size, in_used: 0, out_size: size, out_used: 0 };
        assert_eq!(usage(), Some(empty));
        peer.write_all(&[7; 100]).await.unwrap();
        ring.until(|| (ring.unread() == 100).then_some(())).await;
        assert_eq!(usage(), Some(RingUsage { in_used: 100, ..empty }));
        assert_eq!(ring.read().await.len(), 100);
        assert_eq!(usage(), Some(empty));
        guest.release(1).await.unwrap();
        assert_eq!(usage(), None, "a view keeps no page mapped");
    });
}
