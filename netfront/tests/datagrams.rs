//! Datagrams between two stacks that are joined by a cable.

mod testing;

use edge_nal::{MulticastV4, MulticastV6, Readable, UdpReceive, UdpSend, UdpSplit};
use embassy_time::{Duration, Timer, with_timeout};
use futures_util::future::{Either, join, join_all, select};
use netfront::stack::{Datagrams, Stack};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use testing::cable::{self, Faults, with_stacks};
use xen::Errno;

/// The most bytes of a datagram: the MTU without the headers.
const MOST_V4: usize = 1500 - 28;
const MOST_V6: usize = 1500 - 48;

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn right(port: u16) -> SocketAddr {
    (cable::RIGHT, port).into()
}

async fn bind(stack: &Stack, address: impl Into<IpAddr>, port: u16) -> Datagrams {
    stack.bind_udp((address.into(), port).into()).await.unwrap()
}

/// Receives a datagram and its sender.
async fn receive(socket: &mut Datagrams) -> (Vec<u8>, SocketAddr) {
    let mut data = vec![0; 2000];
    let (length, from) = socket.receive(&mut data).await.unwrap();
    data.truncate(length);
    (data, from)
}

/// Checks that nothing arrives for a while.
async fn is_silent(socket: &mut Datagrams) {
    let early = with_timeout(Duration::from_millis(50), receive(socket)).await;
    assert!(early.is_err(), "{early:?}");
}

#[test]
fn datagrams_keep_their_bounds_and_name_their_sender() {
    with_stacks(Faults::default(), |left, right, _| async move {
        for (here, there, most) in [
            (IpAddr::from(cable::LEFT), IpAddr::from(cable::RIGHT), MOST_V4),
            (cable::LEFT_V6.into(), cable::RIGHT_V6.into(), MOST_V6),
        ] {
            let mut near = bind(&left, here, 1000).await;
            let mut far = bind(&right, there, 2000).await;
            for length in [1, 0, 7, most, 0, 500] {
                let data = vec![length as u8; length];
                near.send(far.local_addr(), &data).await.unwrap();
                assert_eq!(receive(&mut far).await, (data.clone(), near.local_addr()));
                far.send(near.local_addr(), &data).await.unwrap();
                assert_eq!(receive(&mut near).await, (data, far.local_addr()));
            }
        }
    });
}

#[test]
fn a_datagram_beyond_the_mtu_is_refused() {
    with_stacks(Faults::default(), |left, _, _| async move {
        let mut socket = bind(&left, ANY_V6, 0).await;
        for (to, most) in [(right(7), MOST_V4), ((cable::RIGHT_V6, 7).into(), MOST_V6)] {
            let data = vec![0; most + 1];
            assert_eq!(socket.send(to, &data).await, Err(Errno::EMSGSIZE));
            assert_eq!(socket.send(to, &data[1..]).await, Ok(()));
        }
    });
}

#[test]
fn addresses_that_cannot_be_sent_to_are_errors() {
    with_stacks(Faults::default(), |left, _, _| async move {
        let mut socket = bind(&left, ANY, 0).await;
        let mut send = async |to: SocketAddr| socket.send(to, b"x").await;
        assert_eq!(send(right(0)).await, Err(Errno::EINVAL));
        assert_eq!(send((ANY, 7).into()).await, Err(Errno::EINVAL));
        assert_eq!(send((cable::RIGHT_V6, 7).into()).await, Err(Errno::EAFNOSUPPORT));
        assert_eq!(send(([192, 0, 2, 1], 7).into()).await, Err(Errno::ENETUNREACH));
        let connected = left.connect_udp((ANY, 0).into(), ([192, 0, 2, 1], 7).into()).await;
        assert_eq!(connected.err(), Some(Errno::ENETUNREACH));
        let mixed = left.connect_udp((ANY, 0).into(), (cable::RIGHT_V6, 7).into()).await;
        assert_eq!(mixed.err(), Some(Errno::EAFNOSUPPORT));
    });
}

#[test]
fn port_0_chooses_a_port_that_no_socket_has() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let sockets = join_all((0..50).map(|_| bind(&left, ANY, 0))).await;
        let mut ports: Vec<u16> = sockets.iter().map(|socket| socket.local_addr().port()).collect();
        assert!(ports.iter().all(|&port| port >= 49152), "{ports:?}");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
        let to = (cable::LEFT, ports[20]).into();
        bind(&right, ANY, 5).await.send(to, b"x").await.unwrap();
        let mut socket =
            sockets.into_iter().find(|socket| socket.local_addr().port() == ports[20]).unwrap();
        assert_eq!(receive(&mut socket).await, (b"x".to_vec(), self::right(5)));
    });
}

#[test]
fn a_port_is_bound_once_until_its_socket_is_dropped() {
    with_stacks(Faults::default(), |left, _, _| async move {
        let socket = bind(&left, ANY, 7).await;
        for address in [ANY, ANY_V6, cable::LEFT.into()] {
            let again = left.bind_udp((address, 7).into()).await;
            assert_eq!(again.err(), Some(Errno::EADDRINUSE));
        }
        let connected = left.connect_udp((ANY, 7).into(), right(7)).await;
        assert_eq!(connected.err(), Some(Errno::EADDRINUSE));
        let foreign = left.bind_udp(right(8)).await;
        assert_eq!(foreign.err(), Some(Errno::EADDRNOTAVAIL));
        drop(socket);
        let four = bind(&left, cable::LEFT, 7).await;
        let six = bind(&left, cable::LEFT_V6, 7).await;
        assert_eq!(left.statistics().datagram_sockets_open, 2);
        drop((four, six));
        assert_eq!(left.statistics().datagram_sockets_open, 0);
    });
}

#[test]
fn a_connected_socket_has_one_peer() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut far = bind(&right, ANY, 7).await;
        let mut stranger = bind(&right, ANY, 8).await;
        let mut near = left.connect_udp((ANY, 0).into(), self::right(7)).await.unwrap();
        let own = near.local_addr();
        assert_eq!((own.ip(), near.peer_addr()), (cable::LEFT.into(), Some(self::right(7))));
        stranger.send(own, b"forged").await.unwrap();
        // The address is ignored.
        near.send(self::right(8), b"question").await.unwrap();
        assert_eq!(receive(&mut far).await, (b"question".to_vec(), own));
        is_silent(&mut stranger).await;
        is_silent(&mut near).await;
        far.send(own, b"answer").await.unwrap();
        assert_eq!(receive(&mut near).await, (b"answer".to_vec(), self::right(7)));
    });
}

#[test]
fn a_connected_socket_learns_that_its_peer_has_no_such_port() {
    with_stacks(Faults::default(), |left, _right, _| async move {
        for (any, to) in [(ANY, right(9)), (ANY_V6, (cable::RIGHT_V6, 9).into())] {
            let mut connected = left.connect_udp((any, 0).into(), to).await.unwrap();
            let mut bound = bind(&left, any, 0).await;
            bound.send(to, b"x").await.unwrap();
            // More than the quotation may have.
            connected.send(to, &[1; 1400]).await.unwrap();
            connected.readable().await.unwrap();
            let received = connected.receive(&mut []).await;
            assert_eq!(received, Err(Errno::ECONNREFUSED));
            is_silent(&mut connected).await;
            is_silent(&mut bound).await;
            connected.send(to, b"x").await.unwrap();
            connected.readable().await.unwrap();
            assert_eq!(connected.send(to, b"x").await, Err(Errno::ECONNREFUSED));
        }
    });
}

#[test]
fn datagrams_that_find_no_room_are_lost_and_the_others_are_not() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut far = bind(&right, ANY, 7).await;
        let mut near = bind(&left, ANY, 0).await;
        for number in 0..500u32 {
            let mut data = [0; 1000];
            data[..4].copy_from_slice(&number.to_be_bytes());
            near.send(self::right(7), &data).await.unwrap();
        }
        Timer::after_millis(100).await;
        let mut expected = 0;
        while let Ok((data, _)) = with_timeout(Duration::from_millis(50), receive(&mut far)).await {
            assert_eq!(data[..4], u32::to_be_bytes(expected));
            expected += 1;
        }
        assert!((50..500).contains(&expected), "{expected} arrived");
        near.send(self::right(7), b"again").await.unwrap();
        assert_eq!(receive(&mut far).await.0, b"again");
    });
}

#[test]
fn what_was_accepted_is_sent_after_the_socket_is_dropped() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut far = bind(&right, ANY, 7).await;
        // The first ones wait until the neighbour has answered.
        for round in 0..3 {
            let mut near = bind(&left, ANY, 1000).await;
            for length in [0, 1, 1000] {
                near.send(self::right(7), &vec![round; length]).await.unwrap();
            }
            drop(near);
        }
        let mut received = Vec::new();
        for _ in 0..9 {
            received.push(receive(&mut far).await.0);
        }
        received.sort();
        let mut sent =
            [0, 1, 1000].map(|length| [0, 1, 2].map(|round| vec![round; length])).concat();
        sent.sort();
        assert_eq!(received, sent);
        let quiet = async {
            while !left.is_quiet() {
                Timer::after_millis(10).await;
            }
        };
        with_timeout(Duration::from_secs(10), quiet).await.expect("sockets are left behind");
    });
}

#[test]
fn a_neighbour_that_does_not_answer_holds_up_no_other() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut far = bind(&right, ANY, 7).await;
        let mut near = bind(&left, ANY, 0).await;
        // smoltcp looks for one neighbour a second, so this one is found first.
        near.send(self::right(7), b"hello").await.unwrap();
        assert_eq!(receive(&mut far).await.0, b"hello");
        for host in 100..103 {
            near.send(([10, 0, 0, host], 7).into(), b"is anybody there?").await.unwrap();
            Timer::after_millis(10).await;
            near.send(self::right(7), &[host]).await.unwrap();
            assert_eq!(receive(&mut far).await.0, [host]);
        }
        let discarded = async {
            while left.statistics().unanswered_neighbours < 3 {
                Timer::after_millis(10).await;
            }
        };
        with_timeout(Duration::from_secs(10), discarded).await.expect("they wait for ever");
        near.send(self::right(7), b"again").await.unwrap();
        assert_eq!(receive(&mut far).await.0, b"again");
    });
}

#[test]
fn the_halves_of_a_socket_work_at_once() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut far = bind(&right, ANY, 7).await;
        let mut near = bind(&left, ANY, 0).await;
        let echoing = async {
            for _ in 0..200 {
                let (data, from) = receive(&mut far).await;
                far.send(from, &data).await.unwrap();
            }
        };
        let (mut receive, mut send) = near.split();
        let sending = async {
            for number in 0..200 {
                send.send(self::right(7), &[number; 100]).await.unwrap();
                Timer::after_millis(0).await;
            }
        };
        let receiving = async {
            for number in 0..200 {
                let mut data = [0; 100];
                receive.readable().await.unwrap();
                assert_eq!(receive.receive(&mut data).await.unwrap().0, 100);
                assert_eq!(data, [number; 100]);
            }
        };
        join(join(sending, receiving), echoing).await;
    });
}

#[test]
fn broadcasts_reach_the_neighbours() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut far = bind(&right, ANY, 7).await;
        let mut near = bind(&left, ANY, 7).await;
        for to in [[255, 255, 255, 255], [10, 0, 0, 255]] {
            near.send((to, 7).into(), &to).await.unwrap();
            assert_eq!(receive(&mut far).await, (to.to_vec(), (cable::LEFT, 7).into()));
        }
        // A socket that has sent receives them too, as does one with an address.
        far.send(([255; 4], 7).into(), b"back").await.unwrap();
        assert_eq!(receive(&mut near).await, (b"back".to_vec(), self::right(7)));
        drop(near);
        let mut near = bind(&left, cable::LEFT, 7).await;
        far.send(([255; 4], 7).into(), b"back").await.unwrap();
        assert_eq!(receive(&mut near).await, (b"back".to_vec(), self::right(7)));
    });
}

#[test]
fn a_group_is_received_while_a_socket_has_joined_it() {
    const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
    const HERE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    with_stacks(Faults::default(), |left, right, cable| async move {
        let mut near = bind(&left, ANY, 0).await;
        let mut far = bind(&right, ANY, 7).await;
        let mut other = bind(&right, ANY, 8).await;
        near.send((GROUP, 7).into(), b"too early").await.unwrap();
        is_silent(&mut far).await;
        far.join_v4(GROUP, HERE).await.unwrap();
        assert_eq!(far.join_v4(GROUP, HERE).await, Err(Errno::EADDRINUSE));
        other.join_v4(GROUP, cable::RIGHT).await.unwrap();
        near.send((GROUP, 7).into(), b"now").await.unwrap();
        assert_eq!(receive(&mut far).await.0, b"now");
        // A new interface has the groups of the old one.
        cable.unplug();
        cable.plug();
        Timer::after_millis(50).await;
        near.send((GROUP, 7).into(), b"again").await.unwrap();
        assert_eq!(receive(&mut far).await.0, b"again");
        // The other socket is still a member, then nobody is.
        far.leave_v4(GROUP, HERE).await.unwrap();
        near.send((GROUP, 7).into(), b"still").await.unwrap();
        assert_eq!(receive(&mut far).await.0, b"still");
        drop(other);
        Timer::after_millis(50).await;
        near.send((GROUP, 7).into(), b"too late").await.unwrap();
        is_silent(&mut far).await;
        assert_eq!(far.leave_v4(GROUP, HERE).await, Err(Errno::EADDRNOTAVAIL));
        assert_eq!(far.join_v4(cable::LEFT, HERE).await, Err(Errno::EINVAL));
        assert_eq!(far.join_v4(GROUP, cable::LEFT).await, Err(Errno::ENODEV));
    });
}

#[test]
fn a_group_of_ipv6_is_joined_and_left() {
    let group: Ipv6Addr = "ff02::1234".parse().unwrap();
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut near = bind(&left, ANY_V6, 0).await;
        let mut far = bind(&right, ANY_V6, 7).await;
        far.join_v6(group, 0).await.unwrap();
        near.send((group, 7).into(), b"now").await.unwrap();
        assert_eq!(receive(&mut far).await.0, b"now");
        far.leave_v6(group, 1).await.unwrap();
        Timer::after_millis(50).await;
        near.send((group, 7).into(), b"too late").await.unwrap();
        is_silent(&mut far).await;
        assert_eq!(far.join_v6(group, 2).await, Err(Errno::ENODEV));
    });
}

#[test]
fn at_most_one_datagram_is_lost_for_a_lost_frame() {
    let faults = Faults { lose: 7, spoil: 11, ..Faults::default() };
    with_stacks(faults, |left, right, cable| async move {
        let mut far = bind(&right, ANY, 7).await;
        let mut near = bind(&left, ANY, 0).await;
        let sending = async {
            for number in 0..100u8 {
                near.send(self::right(7), &[number; 200]).await.unwrap();
                Timer::after_millis(1).await;
            }
        };
        let count = Cell::new(0);
        let receiving = async {
            loop {
                let (data, _) = receive(&mut far).await;
                assert_eq!(data, [data[0]; 200]);
                count.set(count.get() + 1);
            }
        };
        let mut receiving = pin!(receiving);
        let sent = matches!(select(pin!(sending), &mut receiving).await, Either::Left(_));
        assert!(sent, "the receiver never ends");
        // The last ones are still on their way.
        let _ = with_timeout(Duration::from_millis(200), receiving).await;
        let count = count.get();
        assert!(count < 100 && count + cable.faults() >= 100, "{count} arrived");
    });
}

#[test]
fn neighbours_that_do_not_answer_hide_no_others() {
    let dead: [IpAddr; 2] = [[10, 0, 0, 70].into(), "fd00::70".parse().unwrap()];
    for dead in dead {
        with_stacks(Faults::default(), |left, right, _| async move {
            let mut far = bind(&right, ANY, 7).await;
            let server = right.bind((cable::RIGHT_V6, 80).into()).await.unwrap();
            let any = if dead.is_ipv4() { ANY } else { ANY_V6 };
            // As to a server of logs that is gone, by datagrams and by streams.
            let mut log = bind(&left, any, 0).await;
            let sending = async {
                loop {
                    log.send((dead, 514).into(), b"x").await.unwrap();
                    Timer::after_millis(100).await;
                }
            };
            let connecting = async {
                loop {
                    let connected = left.connect((dead, 80).into()).await;
                    assert_eq!(connected.map(drop), Err(Errno::ETIMEDOUT));
                }
            };
            let working = async {
                Timer::after_millis(1500).await;
                let mut near = bind(&left, ANY, 0).await;
                near.send(self::right(7), b"found").await.unwrap();
                assert_eq!(receive(&mut far).await.0, b"found");
                let connected = left.connect((cable::RIGHT_V6, 80).into()).await;
                connected.map(drop).unwrap();
                drop(server);
            };
            let others = pin!(join(sending, connecting));
            let done = matches!(select(pin!(working), others).await, Either::Left(_));
            assert!(done, "the others never end");
        });
    }
}
