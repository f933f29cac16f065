//! Two stacks joined by a cable.

mod testing;

use edge_nal::{Close, TcpShutdown, TcpSplit};
use embassy_time::{Duration, Timer, with_timeout};
use embedded_io_async::{Read, Write};
use futures_util::future::{join, join_all};
use netfront::stack::{Stack, Stream};
use std::collections::VecDeque;
use std::net::SocketAddr;
use testing::cable::{self, Faults, with_stacks};
use xen::Errno;

fn server(port: u16) -> SocketAddr {
    (cable::RIGHT, port).into()
}

/// Connects, and returns both ends.
async fn pair(left: &Stack, right: &Stack, port: u16) -> (Stream, Stream) {
    let listener = right.bind(server(port)).await.unwrap();
    let (client, server) = join(left.connect(server(port)), listener.accept()).await;
    (client.unwrap(), server.unwrap())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Sends all bytes and the end of the stream, and returns what arrives at the other end.
async fn transfer(mut from: Stream, mut to: Stream, bytes: &[u8]) -> Vec<u8> {
    let sending = async {
        from.write_all(bytes).await.unwrap();
        from.close(Close::Write).await.unwrap();
        from
    };
    let receiving = async {
        let (mut all, mut some) = (Vec::new(), [0; 3000]);
        loop {
            match to.read(&mut some).await.unwrap() {
                0 => return all,
                count => all.extend(&some[..count]),
            }
        }
    };
    join(sending, receiving).await.1
}

#[test]
fn bytes_and_ends_of_streams_arrive_in_both_directions() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let (client, server) = pair(&left, &right, 80).await;
        assert_eq!(client.peer_addr(), Some((cable::RIGHT, 80).into()));
        assert_eq!(server.peer_addr(), client.local_addr());
        let bytes = pattern(1_000_000);
        assert!(transfer(client, server, &bytes).await == bytes);
        let (client, server) = pair(&left, &right, 81).await;
        assert!(transfer(server, client, &bytes).await == bytes);
    });
}

#[test]
fn a_stream_survives_lost_doubled_delayed_and_corrupted_frames() {
    let faults = Faults { lose: 40, double: 50, repeat: 70, swap: 30, spoil: 60 };
    with_stacks(faults, |left, right, cable| async move {
        let (client, server) = pair(&left, &right, 80).await;
        let bytes = pattern(300_000);
        assert!(transfer(client, server, &bytes).await == bytes);
        assert!(cable.faults() > 10, "there were few faults");
    });
}

#[test]
fn a_repeated_syn_opens_no_second_connection() {
    // Each frame is repeated after the next one, when the connection is established.
    with_stacks(Faults { repeat: 1, ..Faults::default() }, |left, right, _| async move {
        let listener = right.bind(server(80)).await.unwrap();
        let mut open = VecDeque::new();
        for _ in 0..12 {
            let (client, server) = join(left.connect(server(80)), listener.accept()).await;
            open.push_back((client.unwrap(), server.unwrap()));
            for (client, server) in &mut open {
                let mut got = [0; 5];
                client.write_all(b"hello").await.unwrap();
                server.read_exact(&mut got).await.unwrap();
                assert_eq!(&got, b"hello");
            }
            // The freed slot of the oldest connection gets the next listening socket, which smoltcp
            // then tries before the others.
            if open.len() > 3 {
                open.pop_front();
                Timer::after_millis(20).await;
            }
        }
        assert_eq!(right.statistics().streams_opened, 12);
    });
}

#[test]
fn refused_and_unreachable_connections_fail_with_their_errors() {
    with_stacks(Faults::default(), |left, _right, _| async move {
        assert_eq!(left.connect(server(1)).await.err(), Some(Errno::ECONNREFUSED));
        let nobody = ([10, 0, 0, 99], 80).into();
        assert_eq!(left.connect(nobody).await.err(), Some(Errno::ETIMEDOUT));
        assert_eq!(left.connect(server(0)).await.err(), Some(Errno::EADDRNOTAVAIL));
        assert_eq!(left.statistics().streams_open, 0);
    });
}

#[test]
fn two_hundred_connections_at_once_are_all_accepted() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let listener = right.bind(server(80)).await.unwrap();
        let clients = join_all((0..200).map(|_| left.connect(server(80))));
        let servers = async {
            let mut servers = Vec::new();
            for _ in 0..200 {
                servers.push(listener.accept().await.unwrap());
            }
            servers
        };
        let (clients, servers) = join(clients, servers).await;
        assert!(clients.iter().all(Result::is_ok));
        assert_eq!(right.statistics().streams_open, 200);
        drop((clients, servers));
        let closed = || left.statistics().streams_open + right.statistics().streams_open == 0;
        while !closed() {
            Timer::after_millis(5).await;
        }
    });
}

#[test]
fn a_port_belongs_to_one_listener_until_it_is_dropped() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let listener = right.bind(server(80)).await.unwrap();
        let any = ([0, 0, 0, 0], 80).into();
        assert_eq!(right.bind(any).await.err(), Some(Errno::EADDRINUSE));
        assert_eq!(left.bind(server(80)).await.err(), Some(Errno::EADDRNOTAVAIL));
        drop(listener);
        let listener = right.bind(any).await.unwrap();
        assert_ne!(right.bind(server(0)).await.unwrap().local_addr().port(), 80);
        let (client, accepted) = join(left.connect(server(80)), listener.accept()).await;
        assert!(client.is_ok() && accepted.is_ok());
    });
}

#[test]
fn a_cancelled_accept_loses_no_connection() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let listener = right.bind(server(80)).await.unwrap();
        for _ in 0..50 {
            // Cancelled at some point of the handshake.
            let giving_up = with_timeout(Duration::from_micros(50), listener.accept());
            let (client, accepted) = join(left.connect(server(80)), giving_up).await;
            let mut client = client.unwrap();
            let mut accepted = match accepted {
                Ok(accepted) => accepted.unwrap(),
                Err(_) => listener.accept().await.unwrap(),
            };
            client.write_all(b"hello").await.unwrap();
            let mut bytes = [0; 5];
            accepted.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"hello");
        }
    });
}

#[test]
fn a_dropped_stream_sends_what_was_written() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let (mut client, mut server) = pair(&left, &right, 80).await;
        client.write_all(&pattern(30_000)).await.unwrap();
        drop(client);
        let mut all = vec![0; 30_000];
        server.read_exact(&mut all).await.unwrap();
        assert!(all == pattern(30_000));
        assert_eq!(server.read(&mut all).await, Ok(0));
    });
}

#[test]
fn an_aborted_connection_is_reset() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let (mut client, mut server) = pair(&left, &right, 80).await;
        client.abort().await.unwrap();
        assert_eq!(server.read(&mut [0; 8]).await, Err(Errno::ECONNRESET));
        assert_eq!(server.write(b"x").await, Err(Errno::ECONNRESET));
        assert_eq!(client.read(&mut [0; 8]).await, Err(Errno::ECONNABORTED));
    });
}

#[test]
fn each_direction_can_be_closed_alone() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let (mut client, mut server) = pair(&left, &right, 80).await;
        client.close(Close::Write).await.unwrap();
        assert_eq!(client.write(b"x").await, Err(Errno::EPIPE));
        assert_eq!(server.read(&mut [0; 8]).await, Ok(0));
        server.write_all(b"still here").await.unwrap();
        let mut bytes = [0; 10];
        client.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"still here");
        let (mut reader, mut writer) = server.split();
        assert_eq!(reader.read(&mut [0; 8]).await, Ok(0));
        writer.write_all(b"and now").await.unwrap();
    });
}

#[test]
fn a_connection_survives_a_link_that_is_down_for_a_while() {
    with_stacks(Faults::default(), |left, right, cable| async move {
        let (mut client, mut server) = pair(&left, &right, 80).await;
        cable.unplug();
        client.write_all(b"over there").await.unwrap();
        Timer::after_millis(300).await;
        cable.plug();
        let mut bytes = [0; 10];
        server.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"over there");
    });
}

#[test]
fn connections_work_over_ipv6() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let at: SocketAddr = (cable::RIGHT_V6, 80).into();
        let listener = right.bind(at).await.unwrap();
        let (client, server) = join(left.connect(at), listener.accept()).await;
        let bytes = pattern(100_000);
        assert!(transfer(client.unwrap(), server.unwrap(), &bytes).await == bytes);
    });
}

#[test]
fn an_idle_stack_sleeps() {
    with_stacks(Faults::default(), |left, right, cable| async move {
        let (_client, _server) = pair(&left, &right, 80).await;
        Timer::after_millis(500).await;
        let before = cable.looks();
        Timer::after_millis(1000).await;
        assert!(cable.looks() - before < 10, "{} looks in a second", cable.looks() - before);
    });
}
