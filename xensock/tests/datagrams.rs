//! Datagram sockets of an application, over the real backend engine.

mod rig;

use edge_nal::{MulticastV4, Readable, UdpReceive, UdpSend, UdpSplit};
use embassy_time::{Duration, Timer, with_timeout};
use futures_util::future::{join, join_all, poll_immediate};
use proptest::bool::ANY as EITHER;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, proptest};
use rig::{Rig, address, config, extended, limits, pattern, with_backend_of, with_frontend};
use std::collections::VecDeque;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use xen::Errno;
use xen::testing::FakeMachine;
use xensock::front::{Config, Datagrams};
use xensock::wire::{Dialect, Options, Protocol, SocketOption};

const SOON: Duration = Duration::from_millis(20);

/// A free port of all addresses.
fn any() -> SocketAddr {
    ([0, 0, 0, 0], 0).into()
}

/// Runs a test with each dialect with all extensions.
fn with_backend<F: Future<Output = ()>>(test: impl Fn(Rc<Rig>) -> F) {
    for protocol in extended() {
        with_backend_of(protocol, config(), limits(), &test);
    }
}

/// The next datagram.
async fn next(socket: &mut Datagrams<FakeMachine>) -> (Vec<u8>, SocketAddr) {
    let mut data = vec![0; 65_536];
    let (length, from) = socket.receive(&mut data).await.unwrap();
    data.truncate(length);
    (data, from)
}

#[test]
fn datagrams_of_all_lengths_pass_whole_and_in_order() {
    with_backend(|rig| async move {
        let mut socket = rig.frontend.bind_udp(address(53)).await.unwrap();
        let peer = rig.net.datagrams_at(address(0)).unwrap();
        let longest = socket.longest();
        assert_eq!(longest, 65_507);
        // In draft 1, `in` is half as large as `out`.
        let room = socket.option(SocketOption::ReceiveBuffer).await.unwrap() as usize - 40;
        let received = longest.min(room);
        // Several times the ring, so that records go around its end.
        let lengths = [0, 1, 7, 8, 9, 1400, 4056, 4096, 30_000, received, longest];
        for length in lengths.into_iter().cycle().take(5 * lengths.len()) {
            let data = pattern(length);
            socket.send(peer.address(), &data).await.unwrap();
            let (from, sent) = peer.receive().await;
            assert_eq!(from, address(53));
            assert!(sent == data, "{length}");
            if length <= received {
                peer.send(address(53), &data).unwrap();
                let (data, from) = next(&mut socket).await;
                assert_eq!(from, peer.address());
                assert!(data == sent, "{length}");
            }
        }
        let sent = socket.send(peer.address(), &pattern(longest + 1)).await;
        assert_eq!(sent, Err(Errno::EMSGSIZE));
        assert!(peer.try_receive().is_none());
        assert_eq!(socket.dropped(), 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn what_is_sent_is_received_once_in_order(
        steps in vec((0u8..5, 0usize..4000), 1..120),
        connected in EITHER,
    ) {
        let protocol = extended().next().unwrap();
        // A small ring, around whose end many records go.
        let options = Options::new().with(SocketOption::SendBuffer, 4096);
        with_backend_of(protocol, config(), limits(), |rig| async move {
            let peer = rig.net.datagrams_at(address(7)).unwrap();
            let opening = async {
                match connected {
                    true => rig.frontend.connect_udp_with(any(), address(7), options).await,
                    false => rig.frontend.bind_udp_with(any(), options).await,
                }
            };
            let mut socket = opening.await.unwrap();
            let here = address(socket.local_addr().unwrap().port());
            let (mut out, mut back) = (VecDeque::new(), VecDeque::new());
            for (number, (step, length)) in steps.into_iter().enumerate() {
                let mut data = pattern(length);
                data.iter_mut().for_each(|byte| *byte = byte.wrapping_add(number as u8));
                match step {
                    // The network drops what is too much for it.
                    0 if out.len() < 64 => {
                        if let Some(sent) = poll_immediate(socket.send(address(7), &data)).await {
                            sent.unwrap();
                            out.push_back(data);
                        }
                    }
                    1 if back.len() < 64 => {
                        peer.send(here, &data).unwrap();
                        back.push_back(data);
                    }
                    2 => rig.net.hold_datagrams(length % 2 == 0),
                    3 => {
                        if let Some((from, data)) = peer.try_receive() {
                            assert_eq!((from.port(), Some(data)), (here.port(), out.pop_front()));
                        }
                    }
                    _ if !back.is_empty() => {
                        let sent = back.pop_front().unwrap();
                        assert_eq!(next(&mut socket).await, (sent, address(7)));
                    }
                    _ => xen::yield_now().await,
                }
            }
            rig.net.hold_datagrams(false);
            for data in back {
                assert_eq!(next(&mut socket).await, (data, address(7)));
            }
            drop(socket);
            for data in out {
                assert_eq!(peer.receive().await.1, data);
            }
            assert!(peer.try_receive().is_none());
        });
    }
}

#[test]
fn sockets_on_port_0_have_ports_of_their_own() {
    with_backend(|rig| async move {
        let opening = (0..40).map(|_| rig.frontend.bind_udp(any()));
        let mut sockets: Vec<_> =
            join_all(opening).await.into_iter().collect::<Result<_, _>>().unwrap();
        let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let mut ports: Vec<_> = addresses.iter().map(|address| address.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() == 40 && ports[0] > 0, "{ports:?}");
        let to = |number: usize| address(addresses[number].port());
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket.send(to(39 - number), &[number as u8]).await.unwrap();
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            assert_eq!(next(socket).await, (vec![39 - number as u8], to(39 - number)));
        }
        assert_eq!(rig.frontend.statistics().datagram_sockets_open, 40);
    });
}

#[test]
fn a_connected_socket_has_one_peer() {
    with_backend(|rig| async move {
        let [peer, stranger] = [0, 0].map(|port| rig.net.datagrams_at(address(port)).unwrap());
        let mut socket = rig.frontend.connect_udp(any(), peer.address()).await.unwrap();
        assert_eq!(socket.peer_addr(), Some(peer.address()));
        // The address is ignored.
        socket.send(stranger.address(), b"hello").await.unwrap();
        let (from, data) = peer.receive().await;
        assert_eq!((from.port(), &data[..]), (socket.local_addr().unwrap().port(), &b"hello"[..]));
        stranger.send(from, b"not for you").unwrap();
        peer.send(from, b"for you").unwrap();
        assert_eq!(next(&mut socket).await, (b"for you".to_vec(), peer.address()));
        let other = rig.frontend.connect_udp(any(), "[::1]:1".parse().unwrap()).await;
        assert_eq!(other.map(drop), Err(Errno::EAFNOSUPPORT));
    });
}

#[test]
fn a_refusal_is_an_error_once_and_the_socket_goes_on() {
    with_backend(|rig| async move {
        let mut socket = rig.frontend.connect_udp(any(), address(7)).await.unwrap();
        socket.send(address(7), b"nobody").await.unwrap();
        socket.readable().await.unwrap();
        assert_eq!(socket.receive(&mut [0]).await, Err(Errno::ECONNREFUSED));
        let peer = rig.net.datagrams_at(address(7)).unwrap();
        socket.send(address(7), b"somebody").await.unwrap();
        assert_eq!(peer.receive().await.1, b"somebody");
    });
}

#[test]
fn options_are_set_when_a_socket_is_opened_and_later() {
    with_backend(|rig| async move {
        let options = Options::new().with(SocketOption::Ttl, 9);
        let mut socket = rig.frontend.bind_udp_with(any(), options).await.unwrap();
        assert_eq!(socket.option(SocketOption::Ttl).await, Ok(9));
        let everybody = ([255, 255, 255, 255], 9).into();
        socket.send(everybody, b"x").await.unwrap();
        assert_eq!(socket.receive(&mut []).await, Err(Errno::EACCES));
        socket.set_option(SocketOption::Broadcast, 1).await.unwrap();
        let peer = rig.net.datagrams_at(address(9)).unwrap();
        socket.send(everybody, b"y").await.unwrap();
        assert_eq!(peer.receive().await.1, b"y");
        let refused = rig.frontend.bind_udp_with(any(), options.with(SocketOption::BusyPoll, 1));
        assert_eq!(refused.await.map(drop), Err(Errno::EPERM));
        let resized = socket.set_option(SocketOption::SendBuffer, 1).await;
        assert_eq!(resized, Err(Errno::EOPNOTSUPP));
    });
}

#[test]
fn buffer_sizes_choose_the_ring() {
    with_backend(|rig| async move {
        let options = Options::new().with(SocketOption::SendBuffer, 2000);
        let mut socket = rig.frontend.bind_udp_with(any(), options).await.unwrap();
        let size = socket.option(SocketOption::SendBuffer).await.unwrap();
        assert!((2000..=8192).contains(&size), "{size}");
        assert_eq!(socket.longest(), size as usize - 40);
        let sent = socket.send(address(7), &vec![0; size as usize]).await;
        assert_eq!(sent, Err(Errno::EMSGSIZE));
    });
}

#[test]
fn a_socket_gets_a_smaller_ring_while_little_of_the_budget_is_left() {
    let protocol = Protocol { dialect: Dialect::PvCalls, ..extended().next().unwrap() };
    let config = Config { ring_budget: 160, ..config() };
    with_backend_of(protocol, config, limits(), |rig| async move {
        let opening = (0..3).map(|_| rig.frontend.bind_udp(any()));
        let sockets = join_all(opening).await;
        let longest: Vec<_> =
            sockets.iter().map(|socket| socket.as_ref().unwrap().longest()).collect();
        // 65 pages of 160, then 33 of 95 and 17 of 62: no ring takes more than half.
        assert_eq!(longest, [65_507, 65_536 - 40, 32_768 - 40]);
        let pages = rig.frontend.statistics().ring_pages;
        assert_eq!(pages, 65 + 33 + 17);
    });
}

#[test]
fn members_of_a_group_receive_what_is_sent_to_it() {
    with_backend(|rig| async move {
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let (to, here) = ((group, 53).into(), Ipv4Addr::UNSPECIFIED);
        let mut socket = rig.frontend.bind_udp(address(53)).await.unwrap();
        let peer = rig.net.datagrams_at(address(0)).unwrap();
        peer.send(to, b"before").unwrap();
        socket.join_v4(group, here).await.unwrap();
        assert_eq!(socket.join_v4(group, here).await, Err(Errno::EADDRINUSE));
        peer.send(to, b"member").unwrap();
        assert_eq!(next(&mut socket).await.0, b"member");
        socket.leave_v4(group, here).await.unwrap();
        assert_eq!(socket.leave_v4(group, here).await, Err(Errno::EADDRNOTAVAIL));
        peer.send(to, b"after").unwrap();
        assert!(with_timeout(SOON, socket.readable()).await.is_err());
        assert_eq!(socket.join_v4(here, here).await, Err(Errno::EINVAL));
    });
}

#[test]
fn a_sender_waits_for_room_and_closing_waits_until_all_is_sent() {
    with_backend(|rig| async move {
        let peer = rig.net.datagrams_at(address(7)).unwrap();
        let mut socket = rig.frontend.bind_udp(any()).await.unwrap();
        let data = pattern(20_000);
        rig.net.hold_datagrams(true);
        let mut sent = 0;
        while let Ok(result) = with_timeout(SOON, socket.send(address(7), &data)).await {
            result.unwrap();
            sent += 1;
        }
        // The last one had no room, so it was not sent.
        assert!((3..20).contains(&sent), "{sent}");
        let (closed, ()) = join(socket.close(), async {
            Timer::after(SOON).await;
            rig.net.hold_datagrams(false);
        })
        .await;
        closed.unwrap();
        assert_eq!(peer.waiting(), sent);
        assert_eq!(rig.frontend.statistics().datagram_sockets_open, 0);
        assert_eq!(socket.send(address(7), b"x").await, Err(Errno::ENOTCONN));
        assert_eq!(socket.receive(&mut []).await, Err(Errno::ENOTCONN));
    });
}

#[test]
fn datagrams_are_sent_although_the_socket_was_dropped() {
    with_backend(|rig| async move {
        let peer = rig.net.datagrams_at(address(7)).unwrap();
        let mut socket = rig.frontend.bind_udp(any()).await.unwrap();
        for length in 0..50 {
            socket.send(address(7), &pattern(length)).await.unwrap();
        }
        drop(socket);
        for length in 0..50 {
            assert_eq!(peer.receive().await.1, pattern(length));
        }
        rig.until(|| rig.net.datagram_sockets() == 1).await;
    });
}

#[test]
fn cancelled_calls_lose_and_send_nothing() {
    with_backend(|rig| async move {
        let mut socket = rig.frontend.bind_udp(address(53)).await.unwrap();
        let peer = rig.net.datagrams_at(address(0)).unwrap();
        let mut byte = [0];
        for number in 0..20 {
            assert!(poll_immediate(socket.receive(&mut byte)).await.is_none());
            assert!(poll_immediate(socket.readable()).await.is_none());
            peer.send(address(53), &[number]).unwrap();
            // Others run, and the datagram arrives, but nobody receives it.
            Timer::after_millis(1).await;
            assert_eq!(next(&mut socket).await.0, [number]);
        }
    });
}

#[test]
fn opening_can_be_cancelled_at_every_step() {
    with_backend(|rig| async move {
        rig.frontend.connected().await.unwrap();
        for step in 0..200 {
            let opened = async {
                let mut open = pin!(rig.frontend.bind_udp(address(53)));
                for _ in 0..step {
                    if poll_immediate(open.as_mut()).await.is_some() {
                        return true;
                    }
                    xen::yield_now().await;
                }
                false
            };
            let opened = opened.await;
            rig.until(|| rig.net.datagram_sockets() == 0 && rig.holds_nothing_in_use()).await;
            if opened {
                return;
            }
        }
        panic!("it is never opened");
    });
}

#[test]
fn the_rings_of_closed_sockets_serve_the_next_ones_of_either_type() {
    let protocol = Protocol { dialect: Dialect::PvCalls, ..extended().next().unwrap() };
    with_backend_of(protocol, config(), limits(), |rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let socket = rig.frontend.bind_udp(any()).await.unwrap();
        socket.close().await.unwrap();
        let pages = rig.frontend.statistics().pages;
        for _ in 0..20 {
            let socket = rig.frontend.connect_udp(any(), address(53)).await.unwrap();
            assert_eq!(rig.frontend.statistics().parked_rings, 0);
            socket.close().await.unwrap();
            let stream = rig.frontend.connect(address(80)).await.unwrap();
            assert_eq!(rig.frontend.statistics().parked_rings, 0);
            drop((server.accept().await, stream));
            rig.until(|| rig.frontend.statistics().parked_rings == 1).await;
        }
        assert_eq!(rig.frontend.statistics().pages, pages);
    });
}

#[test]
fn a_datagram_without_room_in_the_ring_is_counted() {
    with_backend(|rig| async move {
        let options = Options::new().with(SocketOption::ReceiveBuffer, 4096);
        let mut socket = rig.frontend.bind_udp_with(address(53), options).await.unwrap();
        let longest = socket.option(SocketOption::ReceiveBuffer).await.unwrap() as usize - 40;
        let peer = rig.net.datagrams_at(address(0)).unwrap();
        peer.send(address(53), &pattern(longest + 1)).unwrap();
        peer.send(address(53), &pattern(longest)).unwrap();
        assert!(next(&mut socket).await.0 == pattern(longest));
        assert_eq!(socket.dropped(), 1);
    });
}

#[test]
fn the_halves_of_a_socket_work_at_the_same_time() {
    with_backend(|rig| async move {
        let peer = rig.net.datagrams_at(address(7)).unwrap();
        rig.spawn(async move {
            loop {
                let (from, data) = peer.receive().await;
                peer.send(from, &data).unwrap();
            }
        });
        let mut socket = rig.frontend.bind_udp(any()).await.unwrap();
        let (mut receiver, mut sender) = socket.split();
        let data = pattern(10_000);
        let sending = async {
            for _ in 0..100 {
                sender.send(address(7), &data).await.unwrap();
                Timer::after_micros(10).await;
            }
        };
        let receiving = async {
            let mut received = vec![0; 10_000];
            for _ in 0..100 {
                assert_eq!(receiver.receive(&mut received).await, Ok((10_000, address(7))));
                assert!(received == data);
            }
        };
        join(sending, receiving).await;
    });
}

#[test]
fn a_bound_socket_survives_its_backend_and_a_connected_one_does_not() {
    for protocol in extended() {
        let config = Config { dialect: protocol.dialect, ..config() };
        with_frontend(config, |rig| async move {
            let backend = rig.start_backend(protocol, limits());
            let group = Ipv4Addr::new(239, 1, 2, 3);
            let options = Options::new().with(SocketOption::Ttl, 9);
            let mut bound = rig.frontend.bind_udp_with(any(), options).await.unwrap();
            let mut connected = rig.frontend.connect_udp(any(), address(7)).await.unwrap();
            bound.join_v4(group, Ipv4Addr::UNSPECIFIED).await.unwrap();
            bound.set_option(SocketOption::MulticastTtl, 3).await.unwrap();
            let at = bound.local_addr().unwrap();
            let received = async {
                let received = next(&mut bound).await;
                (received, connected.receive(&mut []).await)
            };
            let restarted = async {
                Timer::after(SOON).await;
                backend.kill();
                rig.until(|| rig.net.datagram_sockets() == 0).await;
                rig.start_backend(protocol, limits());
                rig.until(|| rig.net.datagram_sockets() == 1).await;
                let peer = rig.net.datagrams_at(address(0)).unwrap();
                // It joins the group soon.
                while with_timeout(SOON, peer.receive()).await.is_err() {
                    peer.send((group, at.port()).into(), b"again").unwrap();
                    if rig.frontend.statistics().datagrams_received > 0 {
                        break;
                    }
                }
                peer
            };
            let (((data, from), ended), peer) = join(received, restarted).await;
            assert_eq!((&data[..], from), (&b"again"[..], peer.address()));
            assert_eq!(ended, Err(Errno::ENETDOWN));
            assert_eq!(bound.local_addr(), Ok(at));
            assert_eq!(bound.option(SocketOption::Ttl).await, Ok(9));
            assert_eq!(bound.option(SocketOption::MulticastTtl).await, Ok(3));
            bound.send(peer.address(), b"here").await.unwrap();
            assert_eq!(peer.receive().await.1, b"here");
        });
    }
}

#[test]
fn a_socket_that_waits_for_its_backend_ends_with_the_device() {
    for protocol in extended() {
        let config = Config { dialect: protocol.dialect, ..config() };
        with_frontend(config, |rig| async move {
            let backend = rig.start_backend(protocol, limits());
            let mut waiting = rig.frontend.bind_udp(any()).await.unwrap();
            let dropped = rig.frontend.bind_udp(any()).await.unwrap();
            let (received, ()) = join(waiting.receive(&mut []), async {
                backend.kill();
                rig.until(|| rig.net.datagram_sockets() == 0).await;
                let backend = rig.start_backend(protocol, limits());
                drop(dropped);
                rig.until(|| rig.net.datagram_sockets() == 1).await;
                backend.kill();
                Timer::after(SOON).await;
                rig.start_backend(protocol, limits());
                rig.frontend.shutdown().await;
            })
            .await;
            assert_eq!(received, Err(Errno::ENODEV));
            let sent = waiting.send(address(7), b"x").await;
            assert_eq!(sent, Err(Errno::ENODEV));
        });
    }
}
