//! A guest that breaks the protocol harms only itself.

use crate::guest::{address, limits, offer, pattern, run, run_protocol, set_order, set_ref};
use std::sync::atomic::Ordering::Relaxed;
use xen::Errno;
use xensock::back::Limits;
use xensock::wire::{Call, Dialect, Extensions, Family, Protocol};

/// The bytes of a request, except for its id.
fn bytes(command: u32, socket: u64) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[4..8].copy_from_slice(&command.to_ne_bytes());
    bytes[8..16].copy_from_slice(&socket.to_ne_bytes());
    bytes
}

#[test]
fn an_unknown_command_is_not_supported() {
    run(|guest| async move {
        for command in [7, 8, 255, u32::MAX] {
            let id = guest.push_bytes(bytes(command, 1));
            guest.publish();
            assert_eq!(guest.answer(id).await, Err(Errno::ENOTSUP));
        }
        assert_eq!(guest.call(1, Call::Socket { family: Family::V4 }).await, Ok(0));
    });
}

#[test]
fn other_socket_types_and_address_families_are_refused() {
    run(|guest| async move {
        let socket = |domain: u32, kind: u32, protocol: u32| {
            let mut bytes = bytes(0, 1);
            for (at, word) in [(16, domain), (20, kind), (24, protocol)] {
                bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
            }
            bytes
        };
        for wrong in [socket(10, 1, 0), socket(2, 2, 0), socket(2, 1, 17), socket(0, 0, 0)] {
            let id = guest.push_bytes(wrong);
            guest.publish();
            assert_eq!(guest.answer(id).await, Err(Errno::EAFNOSUPPORT));
        }
        guest.call(1, Call::Socket { family: Family::V4 }).await.unwrap();
        // CONNECT and BIND: another family, and impossible lengths.
        for command in [1, 3] {
            for (family, len, error) in [
                (10u16, 28u32, Errno::EAFNOSUPPORT),
                (2, 0, Errno::EINVAL),
                (2, 15, Errno::EINVAL),
                (2, 29, Errno::EINVAL),
                (2, u32::MAX, Errno::EINVAL),
            ] {
                let mut bytes = bytes(command, 1);
                bytes[16..18].copy_from_slice(&family.to_ne_bytes());
                bytes[44..48].copy_from_slice(&len.to_ne_bytes());
                let id = guest.push_bytes(bytes);
                guest.publish();
                assert_eq!(guest.answer(id).await, Err(error), "{command} {family} {len}");
            }
        }
    });
}

#[test]
fn rings_that_cannot_be_mapped_are_refused_and_the_socket_stays_usable() {
    run(|guest| async move {
        let server = guest.net.listen(address(80)).unwrap();
        guest.call(1, Call::Socket { family: Family::V4 }).await.unwrap();
        let connect = |ring| Call::Connect { addr: address(80), flags: 0, ring };
        let good = guest.ring(2);
        let port = good.offer.port.0;
        for (grant, port) in [(0, port), (1, port), (u32::MAX, port)] {
            assert!(guest.call(1, connect(offer(grant, port))).await.is_err(), "{grant}");
        }
        for port in [0, 12345, u32::MAX, guest.port.0] {
            let mut ring = good.offer.clone();
            ring.port = xen::Port(port);
            assert!(guest.call(1, connect(ring)).await.is_err(), "port {port}");
        }
        for order in [0, 5, 9, 10, 31, 32, u32::MAX] {
            set_order(&good, order);
            assert_eq!(
                guest.call(1, connect(good.offer.clone())).await,
                Err(Errno::EINVAL),
                "order {order}"
            );
        }
        set_order(&good, 2);
        let reference = good.region().indexes.load_u32(132 + 8, Relaxed);
        set_ref(&good, 2, 3);
        assert!(guest.call(1, connect(good.offer.clone())).await.is_err());
        assert_eq!(guest.net.open_sockets(), 0, "no connection was made for a bad ring");
        set_ref(&good, 2, reference);
        assert_eq!(guest.call(1, connect(good.offer.clone())).await, Ok(0));
        // The same ring and port for a second socket: the port is taken.
        guest.call(2, Call::Socket { family: Family::V4 }).await.unwrap();
        assert!(guest.call(2, connect(good.offer.clone())).await.is_err());
        guest.release(1).await.unwrap();
        drop(server);
    });
}

#[test]
fn a_ring_larger_than_the_limit_is_refused_in_both_dialects() {
    let limits = Limits { max_ring_order: 3, ..limits() };
    let resizable = |dialect| Protocol { dialect, extensions: Extensions::RESIZE };
    for protocol in
        [Dialect::PvCalls.into(), resizable(Dialect::PvCalls), resizable(Dialect::Draft1)]
    {
        run_protocol(protocol, limits, |guest| async move {
            let server = guest.net.listen(address(80)).unwrap();
            if protocol.dialect.has_socket_command() {
                guest.call(1, Call::Socket { family: Family::V4 }).await.unwrap();
            }
            let (large, small) = (guest.ring(4), guest.ring(3));
            assert_eq!(guest.call(1, large.connect(address(80))).await, Err(Errno::EINVAL));
            assert_eq!(guest.call(1, small.connect(address(80))).await, Ok(0));
            guest.release(1).await.unwrap();
            drop(server);
        });
    }
    // Plain draft 1 has rings of one order only, which no limit excludes.
    run_protocol(Dialect::Draft1.into(), limits, |guest| async move {
        let server = guest.net.listen(address(80)).unwrap();
        let ring = guest.ring(6);
        assert_eq!(guest.call(1, ring.connect(address(80))).await, Ok(0));
        guest.release(1).await.unwrap();
        drop(server);
    });
}

#[test]
fn an_accept_with_a_bad_ring_is_refused_at_once_and_accepts_nothing() {
    run(|guest| async move {
        guest.listen(1, 80).await;
        let accept = |ring| Call::Accept { new: 2, ring };
        assert!(guest.call(1, accept(offer(77777, 1))).await.is_err());
        let peer = guest.net.connect(address(80)).await.unwrap();
        assert!(guest.call(1, accept(offer(77777, 1))).await.is_err());
        let good = guest.ring(1);
        assert_eq!(guest.call(1, accept(good.offer.clone())).await, Ok(0));
        peer.write_all(b"here").await.unwrap();
        assert_eq!(good.read().await, b"here");
        guest.release(2).await.unwrap();
    });
}

#[test]
fn a_release_right_after_a_failing_connect_is_answered_too() {
    run(|guest| async move {
        guest.call(1, Call::Socket { family: Family::V4 }).await.unwrap();
        let ring = offer(77777, 1);
        let connect = guest.push(1, Call::Connect { addr: address(80), flags: 0, ring });
        let release = guest.push(1, Call::Release { reuse: false });
        let again = guest.push(1, Call::Release { reuse: true });
        guest.publish();
        assert!(guest.answer(connect).await.is_err());
        assert_eq!(guest.answer(release).await, Ok(0));
        assert_eq!(guest.answer(again).await, Err(Errno::EINVAL));
        assert_eq!(
            guest.call(1, Call::Socket { family: Family::V4 }).await,
            Ok(0),
            "the id is free"
        );
    });
}

#[test]
fn impossible_indexes_of_a_data_ring_end_that_connection_and_no_other() {
    run(|guest| async move {
        let (good, good_peer) = guest.connect(1, 1).await;
        let layout = good.layout;
        let lies = [
            (layout.output.prod, layout.output.size + 1),
            (layout.output.prod, u32::MAX),
            (layout.output.prod, 1 << 31),
            (layout.input.cons, 1),
            (layout.input.cons, 0u32.wrapping_sub(layout.input.size + 1)),
        ];
        for (number, (index, lie)) in lies.into_iter().enumerate() {
            let socket = 2 + number as u64;
            let (ring, peer) = guest.connect(socket, 1).await;
            ring.region().indexes.store_u32(index, lie, Relaxed);
            ring.notify();
            ring.until(|| ring.out_error()).await;
            assert_eq!(ring.in_error(), Some(Errno::EPROTO));
            assert_eq!(ring.out_error(), Some(Errno::EPROTO));
            assert_eq!(peer.read(&mut [0]).await, Ok(0), "its socket is closed");
            assert_eq!(guest.release(socket).await, Ok(0));
        }
        good.write(b"still here").await;
        let mut got = [0; 10];
        assert_eq!(good_peer.read(&mut got).await, Ok(10));
        assert_eq!(guest.ended.get(), None);
        guest.release(1).await.unwrap();
    });
}

#[test]
fn an_index_that_goes_back_during_a_release_does_not_delay_it() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 4).await;
        ring.write(&pattern(64 * 1024 + 20_000)).await;
        let release = guest.ask(1, Call::Release { reuse: false });
        guest.settle().await;
        let out_prod = ring.layout.output.prod;
        ring.region().indexes.store_u32(out_prod, 5, Relaxed);
        let _ = peer.read_to_end().await;
        assert_eq!(guest.answer(release).await, Ok(0));
    });
}

#[test]
fn impossible_indexes_of_the_command_ring_end_the_engine_and_close_everything() {
    for lie in [33, 1000, 1 << 31, u32::MAX] {
        run(|guest| async move {
            let (ring, peer) = guest.connect(1, 1).await;
            let now = guest.commands_page().load_u32(0, Relaxed);
            guest.commands_page().store_u32(0, now.wrapping_add(lie), Relaxed);
            guest.knock();
            assert_eq!(peer.read(&mut [0]).await, Ok(0), "its socket is closed");
            assert!(guest.ended.get().is_some());
            drop(ring);
        });
    }
}

#[test]
fn a_flood_of_events_does_no_harm() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 1).await;
        for round in 0..200 {
            for _ in 0..50 {
                guest.knock();
                ring.notify();
            }
            ring.write(&[round]).await;
            let mut got = [0; 2];
            assert_eq!(peer.read(&mut got).await, Ok(1));
            assert_eq!(got[0], round);
        }
        guest.release(1).await.unwrap();
    });
}

#[test]
fn a_connection_that_is_always_busy_does_not_keep_the_engine_from_answering() {
    run(|guest| async move {
        let (ring, peer) = guest.connect(1, 4).await;
        let flood = async {
            let junk = pattern(10_000);
            loop {
                ring.write(&junk).await;
            }
        };
        let sink = async {
            let mut some = [0; 10_000];
            loop {
                let _ = peer.read(&mut some).await.unwrap();
            }
        };
        let ask = async {
            for number in 0..200 {
                guest.call(100 + number, Call::Poll).await.unwrap_err();
            }
        };
        let storm = futures_util::future::join(flood, sink);
        futures_util::future::select(std::pin::pin!(ask), std::pin::pin!(storm)).await;
        drop(peer);
        guest.release(1).await.unwrap();
    });
}

#[test]
fn random_requests_are_each_answered_and_nothing_is_left_behind() {
    for seed in 1..=8u64 {
        run(|guest| async move {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let server = guest.net.listen(address(80)).unwrap();
            let rings: Vec<_> = (0..6).map(|_| guest.ring(1 + (random() % 4) as u32)).collect();
            let mut waiting = Vec::new();
            for _ in 0..400 {
                // Slots become free when requests are answered, so ACCEPTs get a connection in the
                // end.
                while waiting.len() >= 24 {
                    let peer = guest.net.connect(address(81)).await;
                    guest.settle().await;
                    drop(peer);
                    waiting.retain(|id| guest.answered(*id).is_none());
                    for socket in 0..5 {
                        waiting.push(guest.ask(socket, Call::Release { reuse: false }));
                    }
                    guest.settle().await;
                    waiting.retain(|id| guest.answered(*id).is_none());
                }
                let mut bytes: [u8; 64] = std::array::from_fn(|_| random() as u8);
                let small = |value: u64, below: u64| (value % below).to_ne_bytes();
                bytes[4..8].copy_from_slice(&small(random(), 8)[..4]);
                bytes[8..16].copy_from_slice(&small(random(), 5));
                let command = bytes[4];
                let ring = &rings[random() as usize % rings.len()].offer;
                let xensock::wire::RingGrants::Indexes(grant) = ring.grants else { unreachable!() };
                if random() % 8 > 0 {
                    // Valid fields in most requests, so that they get further.
                    match command {
                        0 => {
                            bytes[16..28].fill(0);
                            (bytes[16], bytes[20]) = (2, 1);
                        }
                        1 | 3 => {
                            bytes[16..18].copy_from_slice(&2u16.to_ne_bytes());
                            let port = 80 + (random() % 3) as u16;
                            bytes[18..20].copy_from_slice(&port.to_be_bytes());
                            bytes[44..48].copy_from_slice(&16u32.to_ne_bytes());
                            bytes[52..56].copy_from_slice(&grant.0.to_ne_bytes());
                            bytes[56..60].copy_from_slice(&ring.port.0.to_ne_bytes());
                        }
                        5 => {
                            bytes[16..24].copy_from_slice(&small(random(), 5));
                            bytes[24..28].copy_from_slice(&grant.0.to_ne_bytes());
                            bytes[28..32].copy_from_slice(&ring.port.0.to_ne_bytes());
                        }
                        _ => {}
                    }
                }
                waiting.push(guest.push_bytes(bytes));
                guest.publish();
                if random() % 4 == 0 {
                    // A random index in one of the rings.
                    let ring = &rings[random() as usize % rings.len()];
                    let index = [0, 4, 64, 68][random() as usize % 4];
                    ring.region().indexes.store_u32(index, random() as u32, Relaxed);
                    ring.notify();
                }
                if random() % 4 == 0 {
                    guest.settle().await;
                    waiting.retain(|id| guest.answered(*id).is_none());
                }
            }
            assert_eq!(guest.ended.get(), None, "no request ends the engine");
            drop(server);
            rings
        });
    }
}
