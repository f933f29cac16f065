//! The extensions of the protocol, over the real backend engine, in every dialect.

mod rig;

use edge_nal::{Close, TcpAccept, TcpShutdown};
use embedded_io_async::{Read, Write};
use futures_util::future::join;
use rig::{Rig, address, config, extended, limits, pattern, with_backend_of};
use std::rc::Rc;
use xen::testing::FakeMachine;
use xensock::Errno;
use xensock::front::{Config, Stream};
use xensock::testing::FakeStream;
use xensock::wire::{Dialect, Extensions, Options, SocketOption};

/// Runs a test in every dialect, with all extensions.
fn with_extensions<F: Future<Output = ()>>(test: impl Fn(Rc<Rig>) -> F) {
    for protocol in extended() {
        println!("with {protocol:?}");
        with_backend_of(protocol, config(), limits(), &test);
    }
}

/// Runs a test in every dialect, with all extensions in the frontend and none in the backend.
fn without_extensions<F: Future<Output = ()>>(test: impl Fn(Rc<Rig>) -> F) {
    for dialect in Dialect::ALL {
        with_backend_of(dialect.into(), config(), limits(), &test);
    }
}

async fn connected(rig: &Rig, options: Options) -> (Stream<FakeMachine>, FakeStream) {
    let server = rig.net.listen(address(80)).unwrap();
    let stream = rig.frontend.connect_with(address(80), options).await.unwrap();
    (stream, server.accept().await)
}

#[test]
fn extensions_that_were_not_announced_are_refused_without_harm() {
    without_extensions(|rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        let unsupported = Err(Errno::EOPNOTSUPP);
        assert_eq!(stream.close(Close::Write).await, unsupported);
        assert_eq!(stream.set_option(SocketOption::NoDelay, 0).await, unsupported);
        assert_eq!(stream.option(SocketOption::NoDelay).await.map(drop), unsupported);
        // Plain draft 1 has rings of one size, whatever is requested.
        if stream.option(SocketOption::SendBuffer).await == Ok(32768) {
            assert_eq!(stream.set_option(SocketOption::SendBuffer, 4096).await, unsupported);
        }
        assert_eq!(stream.local_addr().await.map(drop), unsupported);
        let keep = Options::new().with(SocketOption::KeepAlive, 1);
        let server = rig.net.listen(address(81)).unwrap();
        assert_eq!(rig.frontend.connect_with(address(81), keep).await.map(drop), unsupported);
        drop(server);
        stream.write_all(b"still there").await.unwrap();
        let mut bytes = [0; 11];
        assert_eq!(socket.read(&mut bytes).await, Ok(11));
    });
}

#[test]
fn options_are_set_before_and_after_connecting() {
    with_extensions(|rig| async move {
        let options = Options::new().with(SocketOption::KeepIdle, 30);
        let (mut stream, _socket) = connected(&rig, options).await;
        assert_eq!(stream.option(SocketOption::KeepIdle).await, Ok(30));
        stream.set_option(SocketOption::KeepAlive, 1).await.unwrap();
        assert_eq!(stream.option(SocketOption::KeepAlive).await, Ok(1));
        assert_eq!(stream.set_option(SocketOption::BusyPoll, 50).await, Err(Errno::EPERM));
    });
}

#[test]
fn an_option_that_the_network_refuses_leaves_no_socket_behind() {
    with_extensions(|rig| async move {
        let _server = rig.net.listen(address(80)).unwrap();
        let options = Options::new().with(SocketOption::BusyPoll, 50);
        let refused = rig.frontend.connect_with(address(80), options).await.map(drop);
        assert_eq!(refused, Err(Errno::EPERM));
        rig.until(|| rig.frontend.statistics().streams_open == 0).await;
    });
}

#[test]
fn both_ends_know_their_addresses() {
    with_extensions(|rig| async move {
        let (stream, socket) = connected(&rig, Options::new()).await;
        assert_eq!(stream.peer_addr(), Some(address(80)));
        assert_eq!(stream.local_addr().await, Ok(socket.peer()));

        let listener = rig.frontend.bind(address(81)).await.unwrap();
        let client = rig.net.connect(address(81)).await.unwrap();
        let (peer, stream) = TcpAccept::accept(&listener).await.unwrap();
        assert_eq!((peer, stream.peer_addr()), (client.local(), Some(client.local())));
        assert_eq!(stream.local_addr().await, Ok(address(81)));
    });
}

#[test]
fn ipv6_addresses_are_supported() {
    with_extensions(|rig| async move {
        let six = "[2001:db8::7]:80".parse().unwrap();
        let server = rig.net.listen(six).unwrap();
        let mut stream = rig.frontend.connect(six).await.unwrap();
        let socket = server.accept().await;
        assert_eq!((stream.peer_addr(), socket.local()), (Some(six), six));
        assert_eq!(stream.local_addr().await, Ok(socket.peer()));
        stream.write_all(b"six").await.unwrap();
        assert_eq!(socket.read(&mut [0; 3]).await, Ok(3));

        let listener = rig.frontend.bind("[::1]:81".parse().unwrap()).await.unwrap();
        let client = rig.net.connect("[::1]:81".parse().unwrap()).await.unwrap();
        assert_eq!(listener.accept().await.unwrap().peer_addr(), Some(client.local()));
    });
}

#[test]
fn one_direction_closes_and_the_other_continues() {
    with_extensions(|rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        // More than the network buffers, so the ring is not empty when the direction is closed.
        let data = pattern(64 * 1024 + 5000);
        stream.write_all(&data).await.unwrap();
        stream.close(Close::Write).await.unwrap();
        assert_eq!(stream.write(b"x").await, Err(Errno::EPIPE));
        assert!(socket.read_to_end().await.unwrap() == data);
        socket.write_all(b"the answer").await.unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"the answer");
        drop(socket);
        assert_eq!(stream.read(&mut answer).await, Ok(0));
    });
}

#[test]
fn a_stream_that_closed_reading_sees_the_end_and_can_still_write() {
    with_extensions(|rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        stream.close(Close::Read).await.unwrap();
        assert_eq!(stream.read(&mut [0; 9]).await, Ok(0));
        stream.write_all(b"still writing").await.unwrap();
        assert_eq!(socket.read(&mut [0; 20]).await, Ok(13));
    });
}

#[test]
fn an_aborted_stream_is_reset_for_the_peer() {
    with_extensions(|rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        stream.write_all(&pattern(64 * 1024 + 1000)).await.unwrap();
        stream.abort().await.unwrap();
        rig.until(|| rig.frontend.statistics().streams_open == 0).await;
        assert_eq!(socket.read_to_end().await, Err(Errno::ECONNRESET));
    });
}

#[test]
fn buffer_sizes_choose_the_ring_before_connecting() {
    with_extensions(|rig| async move {
        let options = Options::new().with(SocketOption::SendBuffer, 5000);
        let (stream, _socket) = connected(&rig, options).await;
        assert_eq!(stream.option(SocketOption::SendBuffer).await, Ok(8192));
        let small = rig.frontend.statistics().pages;
        assert!(small < 8, "{small} pages");
        let options = Options::new().with(SocketOption::ReceiveBuffer, u32::MAX);
        let (stream, _socket) = connected(&rig, options).await;
        assert!(stream.option(SocketOption::ReceiveBuffer).await.unwrap() >= 65536);
    });
}

#[test]
fn a_ring_grows_and_shrinks_under_traffic_and_no_byte_is_lost() {
    with_extensions(|rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        let data = pattern(2_000_000);
        let echoed = async {
            let mut some = [0; 3000];
            loop {
                match socket.read(&mut some).await.unwrap() {
                    0 => break,
                    count => socket.write_all(&some[..count]).await.unwrap(),
                }
            }
        };
        let resized = async {
            let (mut written, mut read, mut some) = (0, Vec::new(), [0; 2500]);
            let sizes = [4096, 20_000, 8192, 60_000, 4096, 30_000];
            let mut changes = 0;
            while read.len() < data.len() {
                let put = (written + 10_000).min(data.len());
                stream.write_all(&data[written..put]).await.unwrap();
                written = put;
                if written % 50_000 == 0 {
                    let size = sizes[changes % sizes.len()];
                    changes += 1;
                    match stream.set_option(SocketOption::SendBuffer, size).await {
                        // The old ring is not empty yet.
                        Ok(()) | Err(Errno::EBUSY) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                while read.len() + 30_000 < written
                    || (written == data.len() && read.len() < written)
                {
                    let count = stream.read(&mut some).await.unwrap();
                    read.extend_from_slice(&some[..count]);
                }
            }
            assert!(read == data);
            stream.close(Close::Write).await.unwrap();
        };
        join(echoed, resized).await;
        stream.set_option(SocketOption::SendBuffer, 4096).await.unwrap();
        assert!(stream.option(SocketOption::SendBuffer).await.unwrap() <= 8192);
    });
}

#[test]
fn bytes_in_the_ring_when_its_size_changes_are_read_and_sent_first() {
    with_extensions(|rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        let there = pattern(64 * 1024 + 20_000);
        stream.write_all(&there).await.unwrap();
        socket.write_all(b"before").await.unwrap();
        stream.set_option(SocketOption::SendBuffer, 4096).await.unwrap();
        assert_eq!(
            stream.set_option(SocketOption::SendBuffer, 30_000).await,
            Err(Errno::EBUSY),
            "the ring before is not empty yet"
        );
        socket.write_all(b" and after").await.unwrap();
        stream.write_all(b"the end").await.unwrap();
        stream.close(Close::Write).await.unwrap();
        let mut back = [0; 16];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"before and after");
        let all = socket.read_to_end().await.unwrap();
        assert!(all.strip_suffix(b"the end").unwrap() == there);
    });
}

#[test]
fn an_end_of_stream_survives_a_change_of_size() {
    with_extensions(|rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        socket.write_all(b"last").await.unwrap();
        socket.finish();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(stream.read(&mut bytes).await, Ok(0));
        stream.set_option(SocketOption::ReceiveBuffer, 60_000).await.unwrap();
        assert_eq!(stream.read(&mut bytes).await, Ok(0));
        stream.write_all(b"bye").await.unwrap();
        assert_eq!(socket.read(&mut bytes).await, Ok(3));
    });
}

#[test]
fn consecutive_connections_reuse_one_ring_and_its_grants() {
    with_extensions(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let (mut ports, mut grants) = (Vec::new(), Vec::new());
        for round in 0..20u8 {
            let mut stream = rig.frontend.connect(address(80)).await.unwrap();
            let socket = server.accept().await;
            stream.write_all(&[round]).await.unwrap();
            let mut byte = [0];
            socket.read(&mut byte).await.unwrap();
            socket.write_all(&byte).await.unwrap();
            stream.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, [round]);
            stream.close(Close::Both).await.unwrap();
            ports.push(rig.world.ports());
            grants.push(rig.world.made_grants());
        }
        // A RELEASE of draft 1 cannot announce that the ring will be used again.
        let reuses = ports[0] == 2;
        assert_eq!(grants[19] == grants[0], reuses, "{grants:?}");
        assert!(ports.iter().all(|&count| count == ports[0]), "{ports:?}");
    });
}

#[test]
fn few_rings_are_kept_when_many_connections_end_at_once() {
    with_extensions(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut streams = Vec::new();
        for _ in 0..40 {
            streams.push(rig.frontend.connect(address(80)).await.unwrap());
            server.accept().await;
        }
        drop(streams);
        rig.until(|| rig.frontend.statistics().streams_open == 0).await;
        assert!(rig.frontend.statistics().parked_rings <= 8);
        rig.until(|| rig.holds_nothing_in_use()).await;
    });
}

#[test]
fn event_indexes_save_events_on_a_data_ring() {
    let mut events = Vec::new();
    for extensions in [Extensions::all() - Extensions::EVENT_INDEX, Extensions::all()] {
        for protocol in extended() {
            let config = Config { extensions, ..config() };
            with_backend_of(protocol, config, limits(), |rig| {
                let counted = &mut events;
                async move {
                    let (mut stream, socket) = connected(&rig, Options::new()).await;
                    let before = rig.world.events();
                    let sending = async { stream.write_all(&pattern(4_000_000)).await.unwrap() };
                    let receiving = async {
                        let (mut left, mut some) = (4_000_000, [0; 16 * 1024]);
                        while left > 0 {
                            left -= socket.read(&mut some).await.unwrap();
                        }
                    };
                    join(sending, receiving).await;
                    counted.push(rig.world.events() - before);
                }
            });
        }
    }
    println!("events: plain and with indexes, by dialect: {events:?}");
    let (plain, quiet) = events.split_at(events.len() / 2);
    assert!(plain.iter().zip(quiet).all(|(plain, quiet)| quiet < plain), "{events:?}");
}
