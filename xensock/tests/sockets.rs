//! The socket API of an application, over the real backend engine.

mod rig;

use edge_nal::{Close, Readable, TcpShutdown, TcpSplit};
use embedded_io_async::{BufRead, Read, Write};
use futures_util::future::{join, join4};
use rig::{address, config, pattern, with_backend, with_backend_and};
use xen::testing::FakeMachine;
use xensock::Errno;
use xensock::back::Limits;
use xensock::front::{Config, Stream};
use xensock::wire::Extensions;

async fn read_to_end(stream: &mut Stream<FakeMachine>) -> Result<Vec<u8>, Errno> {
    let (mut all, mut some) = (Vec::new(), [0; 5000]);
    loop {
        match stream.read(&mut some).await? {
            0 => return Ok(all),
            count => all.extend_from_slice(&some[..count]),
        }
    }
}

#[test]
fn a_client_exchanges_data_with_a_server() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        stream.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        assert_eq!(socket.read(&mut bytes).await, Ok(4));
        assert_eq!(&bytes, b"ping");
        socket.write_all(b"pong").await.unwrap();
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"pong");
    });
}

#[test]
fn a_refused_connection_is_econnrefused_and_leaves_nothing_behind() {
    with_backend(|rig| async move {
        for _ in 0..3 {
            let refused = rig.frontend.connect(address(80)).await.map(drop);
            assert_eq!(refused, Err(Errno::ECONNREFUSED));
        }
        assert_eq!(rig.world.ports(), 1, "only the command ring's port");
    });
}

#[test]
fn an_ipv6_address_without_the_extension_is_refused_at_once() {
    let config = Config { extensions: Extensions::all() - Extensions::IPV6, ..config() };
    with_backend_and(config, Limits::default(), |rig| async move {
        let connected = rig.frontend.connect("[::1]:80".parse().unwrap()).await.map(drop);
        assert_eq!(connected, Err(Errno::EAFNOSUPPORT));
        let bound = rig.frontend.bind("[::1]:80".parse().unwrap()).await.map(drop);
        assert_eq!(bound, Err(Errno::EAFNOSUPPORT));
    });
}

#[test]
fn much_data_moves_both_ways_at_once_intact() {
    const MUCH: usize = 3_000_000;
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        rig.spawn(async move {
            let socket = server.accept().await;
            let mut some = [0; 7777];
            loop {
                match socket.read(&mut some).await.unwrap() {
                    0 => break,
                    count => socket.write_all(&some[..count]).await.unwrap(),
                }
            }
        });
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let data = pattern(MUCH);
        let (mut reader, mut writer) = stream.split();
        let mut received = vec![0; MUCH];
        let (written, read) = join(writer.write_all(&data), reader.read_exact(&mut received)).await;
        written.unwrap();
        read.unwrap();
        assert!(received == data);
        let statistics = rig.frontend.statistics();
        assert_eq!((statistics.bytes_in, statistics.bytes_out), (MUCH as u64, MUCH as u64));
    });
}

#[test]
fn all_data_is_read_before_the_end_of_the_stream() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        let data = pattern(100_000);
        let sent = data.clone();
        rig.spawn(async move { socket.write_all(&sent).await.unwrap() });
        assert!(read_to_end(&mut stream).await.unwrap() == data);
        assert_eq!(stream.read(&mut [0]).await, Ok(0), "the end of the stream persists");
    });
}

#[test]
fn a_reset_connection_is_an_error() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        socket.reset();
        assert_eq!(stream.read(&mut [0]).await, Err(Errno::ECONNRESET));
    });
}

#[test]
fn written_bytes_arrive_although_the_stream_was_dropped() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        // More than the network buffers, so the ring is not empty.
        let data = pattern(64 * 1024 + 30_000);
        stream.write_all(&data).await.unwrap();
        drop(stream);
        assert!(socket.read_to_end().await.unwrap() == data);
    });
}

#[test]
fn closing_waits_until_everything_is_sent() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        stream.write_all(b"last words").await.unwrap();
        stream.close(Close::Both).await.unwrap();
        assert_eq!(rig.frontend.statistics().streams_open, 0);
        assert_eq!(socket.read_to_end().await.unwrap(), b"last words");
        assert_eq!(stream.write(b"x").await, Err(Errno::ENOTCONN));
        stream.close(Close::Both).await.unwrap();
    });
}

#[test]
fn a_peer_that_reads_nothing_cannot_hold_a_dropped_stream_for_ever() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let _socket = server.accept().await;
        stream.write_all(&pattern(64 * 1024 + 1000)).await.unwrap();
        drop(stream);
        rig.until(|| rig.frontend.statistics().streams_open == 0).await;
    });
}

#[test]
fn aborting_does_not_wait_for_the_peer() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        stream.write_all(&pattern(64 * 1024 + 1000)).await.unwrap();
        stream.abort().await.unwrap();
        drop(socket);
        rig.until(|| rig.frontend.statistics().streams_open == 0).await;
    });
}

#[test]
fn a_server_serves_many_clients() {
    with_backend(|rig| async move {
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        for round in 0..50u8 {
            let client = rig.net.connect(address(80)).await.unwrap();
            let mut stream = listener.accept().await.unwrap();
            client.write_all(&[round]).await.unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, [round]);
            stream.write_all(&byte).await.unwrap();
            drop(stream);
            assert_eq!(client.read_to_end().await.unwrap(), [round]);
        }
        assert_eq!(rig.frontend.statistics().streams_opened, 50);
    });
}

#[test]
fn several_calls_of_accept_can_wait() {
    with_backend(|rig| async move {
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        let connecting = async {
            let mut clients = Vec::new();
            for _ in 0..3 {
                clients.push(rig.net.connect(address(80)).await.unwrap());
            }
            clients
        };
        let (a, b, c, clients) =
            join4(listener.accept(), listener.accept(), listener.accept(), connecting).await;
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        assert_eq!(clients.len(), 3);
    });
}

#[test]
fn an_address_in_use_cannot_be_bound_until_its_listener_is_dropped() {
    with_backend(|rig| async move {
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        assert_eq!(rig.frontend.bind(address(80)).await.map(drop), Err(Errno::EADDRINUSE));
        drop(listener);
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        assert_eq!(rig.frontend.statistics().listeners_open, 1);
        drop(listener);
        rig.until(|| rig.net.bound_sockets() == 0).await;
    });
}

#[test]
fn the_buffer_of_a_stream_keeps_what_was_not_consumed() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        socket.write_all(b"one two").await.unwrap();
        stream.readable().await.unwrap();
        assert_eq!(stream.fill_buf().await.unwrap(), b"one two");
        stream.consume(4);
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"t");
        assert_eq!(stream.fill_buf().await.unwrap(), b"wo");
        stream.consume(2);
        drop(socket);
        assert_eq!(stream.fill_buf().await.unwrap(), b"");
    });
}

#[test]
fn data_is_read_and_written_in_place() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        let written = stream.write_in_place(|room| {
            room[0].write(0, b"in place");
            (8, room[0].len())
        });
        assert!(written.await.unwrap() >= 4096);
        let mut bytes = [0; 8];
        assert_eq!(socket.read(&mut bytes).await, Ok(8));
        assert_eq!(&bytes, b"in place");
        socket.write_all(b"abc").await.unwrap();
        let first = stream.read_in_place(|data| {
            let mut byte = [0];
            data[0].read(0, &mut byte);
            (1, byte[0])
        });
        assert_eq!(first.await, Ok(b'a'));
        assert_eq!(stream.read(&mut bytes).await, Ok(2));
    });
}

#[test]
fn a_stream_that_is_always_ready_lets_others_run() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        socket.write_all(&pattern(1000)).await.unwrap();
        let others = std::rc::Rc::new(std::cell::Cell::new(0));
        let seen = others.clone();
        // Counts its turns, and yields at once.
        rig.spawn(std::future::poll_fn(move |cx| {
            seen.set(seen.get() + 1);
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        }));
        for _ in 0..1000 {
            stream.read_exact(&mut [0]).await.unwrap();
        }
        assert!(others.get() > 10, "only {} turns", others.get());
    });
}

#[test]
fn small_messages_cost_one_event_each() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        let before = rig.frontend.statistics().notifications_sent;
        let mut bytes = [0; 64];
        for _ in 0..100 {
            stream.write_all(&bytes).await.unwrap();
            assert_eq!(socket.read(&mut bytes).await, Ok(64));
            socket.write_all(&bytes).await.unwrap();
            stream.read_exact(&mut bytes).await.unwrap();
        }
        // Reading sends none: the ring was never half full.
        assert_eq!(rig.frontend.statistics().notifications_sent - before, 100);
    });
}

#[test]
fn a_connection_costs_one_event_to_open_and_one_to_close() {
    with_backend(|rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        rig.frontend.connected().await.unwrap();
        let sent = || rig.frontend.statistics().notifications_sent;
        for _ in 0..20 {
            let before = sent();
            let mut stream = rig.frontend.connect(address(80)).await.unwrap();
            assert_eq!(sent() - before, 1);
            let _socket = server.accept().await;
            stream.close(Close::Both).await.unwrap();
            assert_eq!(sent() - before, 2);
        }
    });
}

#[test]
fn pages_are_kept_for_the_next_connections_unless_memory_is_short() {
    with_backend(|rig| async move {
        let _server = rig.net.listen(address(80)).unwrap();
        let pages = || rig.frontend.statistics().pages;
        rig.frontend.connected().await.unwrap();
        let bare = pages();
        let come_and_go = async || {
            // More connections than rings can be parked.
            let connecting = (0..12).map(|_| rig.frontend.connect(address(80)));
            let streams = futures_util::future::join_all(connecting).await;
            let used = pages();
            drop(streams);
            rig.until(|| rig.frontend.statistics().streams_open == 0).await;
            used
        };
        let used = come_and_go().await;
        let each = (used - bare) / 12;
        // A page is in a ring in use, in a parked ring, in the pool, or free.
        let none_kept = || pages() == bare + each * rig.frontend.statistics().parked_rings;
        assert_eq!(pages(), used, "the pages are kept");
        rig.until(|| {
            rig.frontend.trim();
            none_kept()
        })
        .await;

        rig.guest.set_short(true);
        assert_eq!(come_and_go().await, used);
        rig.until(none_kept).await;
        rig.guest.set_short(false);
        assert_eq!(come_and_go().await, used);
        assert_eq!(pages(), used, "the pages are kept again");
    });
}
