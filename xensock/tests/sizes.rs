//! The sizes of data rings: they grow under load, shrink again, and serve further connections.

mod rig;

use edge_nal::{Close, TcpShutdown};
use embassy_time::{Duration, Timer};
use embedded_io_async::{Read, Write};
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::join;
use rig::{Rig, address, config, extended, limits, pattern, with_backend_of};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use xen::testing::FakeMachine;
use xensock::Errno;
use xensock::back::Limits;
use xensock::front::{Config, Stream};
use xensock::testing::FakeStream;
use xensock::wire::{Dialect, Extensions, Options, Protocol, SocketOption};

const MUCH: usize = 3_000_000;

/// Runs a test in every dialect, with all extensions.
fn with_sizes<F: Future<Output = ()>>(config: Config, limits: Limits, test: impl Fn(Rc<Rig>) -> F) {
    for protocol in extended() {
        println!("with {protocol:?}");
        with_backend_of(protocol, config, limits, &test);
    }
}

/// A time after which rings shrink that does not pass during a transfer.
fn patient() -> Config {
    Config { shrink_after: Duration::from_secs(600), ..config() }
}

async fn connected(rig: &Rig, options: Options) -> (Stream<FakeMachine>, FakeStream) {
    let server = rig.net.listen(address(80)).unwrap();
    let stream = rig.frontend.connect_with(address(80), options).await.unwrap();
    (stream, server.accept().await)
}

async fn sizes(stream: &Stream<FakeMachine>) -> [u32; 2] {
    let input = stream.option(SocketOption::ReceiveBuffer).await.unwrap();
    [input, stream.option(SocketOption::SendBuffer).await.unwrap()]
}

/// The sizes of `in` and `out` at first, and at most.
fn bounds(rig: &Rig) -> [[u32; 2]; 2] {
    match rig.frontend.ring_pages() {
        3 => [[4096; 2], [1 << 20; 2]],
        4 => [[4096, 8192], [1 << 16, 1 << 17]],
        pages => panic!("a new ring of {pages} pages"),
    }
}

async fn send(stream: &mut Stream<FakeMachine>, socket: &FakeStream, bytes: usize) {
    let data = pattern(bytes);
    let receiving = async {
        let (mut received, mut some) = (Vec::new(), vec![0; 100_000]);
        while received.len() < bytes {
            let count = socket.read(&mut some).await.unwrap();
            received.extend_from_slice(&some[..count]);
        }
        assert!(received == data);
    };
    join(async { stream.write_all(&data).await.unwrap() }, receiving).await;
}

async fn receive(stream: &mut Stream<FakeMachine>, socket: &FakeStream, bytes: usize) {
    let (data, mut received) = (pattern(bytes), vec![0; bytes]);
    let sending = async { socket.write_all(&data).await.unwrap() };
    join(sending, async { stream.read_exact(&mut received).await.unwrap() }).await;
    assert!(received == data);
}

#[test]
fn connections_with_little_traffic_stay_small() {
    with_sizes(config(), limits(), |rig| async move {
        let mut pairs = Vec::new();
        for _ in 0..10 {
            pairs.push(connected(&rig, Options::new()).await);
        }
        for _ in 0..100 {
            for (stream, socket) in &mut pairs {
                send(stream, socket, 1000).await;
                receive(stream, socket, 1000).await;
            }
        }
        let statistics = rig.frontend.statistics();
        assert_eq!(statistics.ring_pages, 10 * rig.frontend.ring_pages() as u64);
        assert_eq!(statistics.rings_resized, 0);
    });
}

#[test]
fn a_ring_grows_while_much_is_written() {
    with_sizes(patient(), limits(), |rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        let [first, most] = bounds(&rig);
        assert_eq!(sizes(&stream).await, first);
        send(&mut stream, &socket, MUCH).await;
        assert_eq!(sizes(&stream).await, most);
        assert!(rig.frontend.statistics().rings_resized <= 2);
    });
}

#[test]
fn a_ring_grows_while_much_is_read() {
    with_sizes(patient(), limits(), |rig| async move {
        rig.net.set_capacity(1 << 20);
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        let [first, most] = bounds(&rig);
        assert_eq!(sizes(&stream).await, first);
        receive(&mut stream, &socket, MUCH).await;
        assert_eq!(sizes(&stream).await, most);
        assert!(rig.frontend.statistics().rings_resized <= 2);
    });
}

#[test]
fn a_ring_shrinks_when_its_connection_idles_and_can_grow_again() {
    let config = Config { shrink_after: Duration::from_millis(50), ..config() };
    with_sizes(config, limits(), |rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        let [first, _] = bounds(&rig);
        for _ in 0..2 {
            let before = rig.frontend.statistics().rings_resized;
            send(&mut stream, &socket, MUCH).await;
            rig.until(|| rig.frontend.statistics().ring_pages == rig.frontend.ring_pages() as u64)
                .await;
            assert_eq!(sizes(&stream).await, first);
            assert!(rig.frontend.statistics().rings_resized > before + 1);
        }
    });
}

#[test]
fn rings_shrink_when_memory_is_wanted() {
    with_sizes(patient(), limits(), |rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        send(&mut stream, &socket, MUCH).await;
        let grown = rig.world.pages();
        rig.frontend.trim();
        let small = rig.frontend.ring_pages() as u64;
        rig.until(|| rig.frontend.statistics().ring_pages == small).await;
        rig.frontend.trim();
        assert!(rig.world.pages() < grown / 2);
        // For a while the ring stays small.
        send(&mut stream, &socket, MUCH).await;
        assert_eq!(rig.frontend.statistics().ring_pages, small);
    });
}

#[test]
fn rings_do_not_grow_while_memory_is_short() {
    with_sizes(patient(), limits(), |rig| async move {
        rig.guest.set_short(true);
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        send(&mut stream, &socket, MUCH).await;
        receive(&mut stream, &socket, MUCH).await;
        assert_eq!(rig.frontend.statistics().rings_resized, 0);
    });
}

#[test]
fn rings_that_have_grown_give_way_to_new_connections() {
    with_sizes(patient(), limits(), |rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        send(&mut stream, &socket, MUCH).await;
        for limit in [|rig: &Rig| rig.world.limit_grants(0), |rig: &Rig| rig.world.limit_pages(0)] {
            limit(&rig);
            let (mut other, peer) = connected(&rig, Options::new()).await;
            send(&mut other, &peer, 100_000).await;
            send(&mut stream, &socket, 100_000).await;
        }
    });
}

#[test]
fn growth_stops_at_the_budget_and_leaves_some_to_others() {
    const BUDGET: usize = 200;
    let config = Config { ring_budget: BUDGET, ..patient() };
    with_sizes(config, limits(), |rig| async move {
        let mut pairs = Vec::new();
        rig.frontend.connected().await.unwrap();
        let small = rig.frontend.ring_pages();
        for count in 1..10 {
            let (mut stream, socket) = connected(&rig, Options::new()).await;
            send(&mut stream, &socket, 1_000_000).await;
            let sizes = sizes(&stream).await;
            println!("connection {count}: {sizes:?}");
            assert!(count > 3 || sizes[1] >= 16384);
            pairs.push((stream, socket));
            let pages = rig.frontend.statistics().ring_pages as usize;
            assert!(pages <= BUDGET + (count + 1) * small, "{pages} pages");
        }
    });
}

#[test]
fn a_larger_ring_that_cannot_be_had_is_no_error() {
    // The backend maps no more pages than these.
    with_sizes(patient(), Limits { pages: 12, ..limits() }, |rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        send(&mut stream, &socket, MUCH).await;
        receive(&mut stream, &socket, MUCH).await;
        assert!(rig.frontend.statistics().ring_pages <= 12);
    });
    for limit in [
        |rig: &Rig| rig.world.limit_pages(20),
        |rig: &Rig| rig.world.limit_grants(20),
        |rig: &Rig| rig.world.limit_grants(0),
    ] {
        with_sizes(patient(), limits(), |rig| async move {
            let (mut stream, socket) = connected(&rig, Options::new()).await;
            limit(&rig);
            send(&mut stream, &socket, MUCH).await;
            receive(&mut stream, &socket, MUCH).await;
            assert!(rig.frontend.statistics().ring_pages <= 24);
        });
    }
}

#[test]
fn a_size_that_was_chosen_stays() {
    for protocol in extended() {
        let fixed = Config { ring_order: Some(3), ..config() };
        with_backend_of(protocol, fixed, limits(), |rig| async move {
            let (mut stream, socket) = connected(&rig, Options::new()).await;
            send(&mut stream, &socket, MUCH).await;
            receive(&mut stream, &socket, MUCH).await;
            assert_eq!(rig.frontend.statistics().rings_resized, 0);
        });
        with_backend_of(protocol, config(), limits(), |rig| async move {
            let options = Options::new().with(SocketOption::SendBuffer, 16384);
            let (mut stream, socket) = connected(&rig, options).await;
            let chosen = sizes(&stream).await;
            send(&mut stream, &socket, MUCH).await;
            receive(&mut stream, &socket, MUCH).await;
            assert_eq!(sizes(&stream).await, chosen);

            // The same later, also while the ring grows.
            let (mut stream, socket) = connected(&rig, Options::new()).await;
            send(&mut stream, &socket, 20_000).await;
            stream.set_option(SocketOption::SendBuffer, 16384).await.unwrap();
            send(&mut stream, &socket, MUCH).await;
            receive(&mut stream, &socket, MUCH).await;
            assert_eq!(sizes(&stream).await, chosen);
        });
    }
}

#[test]
fn without_the_extension_rings_have_one_medium_size() {
    let plain = |dialect| Protocol { dialect, extensions: Extensions::empty() };
    for (limit, budget, size) in [(9, 4096, 1 << 17), (4, 4096, 32768), (9, 100, 32768)] {
        let limits = Limits { max_ring_order: limit, ..limits() };
        let config = Config { ring_budget: budget, ..config() };
        with_backend_of(plain(Dialect::PvCalls), config, limits, |rig| async move {
            let (mut stream, socket) = connected(&rig, Options::new()).await;
            assert_eq!(sizes(&stream).await, [size; 2]);
            send(&mut stream, &socket, MUCH).await;
            assert_eq!(sizes(&stream).await, [size; 2]);
        });
    }
    with_backend_of(plain(Dialect::Draft1), config(), limits(), |rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        send(&mut stream, &socket, MUCH).await;
        assert_eq!(sizes(&stream).await, [1 << 16, 1 << 17]);
    });
}

#[test]
fn the_next_connection_gets_the_ring_that_has_grown() {
    let protocol = Protocol { dialect: Dialect::PvCalls, extensions: Extensions::all() };
    with_backend_of(protocol, patient(), limits(), |rig| async move {
        let mut grants = Vec::new();
        for _ in 0..5 {
            let (mut stream, socket) = connected(&rig, Options::new()).await;
            send(&mut stream, &socket, MUCH).await;
            assert_eq!(sizes(&stream).await[1], 1 << 20);
            stream.close(Close::Both).await.unwrap();
            assert_eq!(rig.frontend.statistics().parked_rings, 1);
            grants.push(rig.world.made_grants());
        }
        assert!(grants.iter().all(|made| *made == grants[0]), "{grants:?}");
        assert_eq!(rig.frontend.statistics().rings_resized, 2);
    });
}

#[test]
fn a_ring_that_the_backend_did_not_keep_is_mapped_again() {
    let protocol = Protocol { dialect: Dialect::PvCalls, extensions: Extensions::all() };
    // Enough pages for one large ring, but not for two.
    let limits = Limits { pages: 600, ..limits() };
    with_backend_of(protocol, patient(), limits, |rig| async move {
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        send(&mut stream, &socket, MUCH).await;
        stream.close(Close::Both).await.unwrap();
        let options = Options::new().with(SocketOption::SendBuffer, 500_000);
        let (mut stream, socket) = connected(&rig, options).await;
        send(&mut stream, &socket, MUCH).await;
        stream.close(Close::Both).await.unwrap();
        let grants = rig.world.made_grants();
        for _ in 0..2 {
            let options = Options::new().with(SocketOption::SendBuffer, 1 << 20);
            let (mut stream, socket) = connected(&rig, options).await;
            assert_eq!(rig.world.made_grants(), grants, "the first ring again");
            send(&mut stream, &socket, MUCH).await;
            stream.close(Close::Both).await.unwrap();
        }
    });
}

#[test]
fn parked_rings_hold_at_most_half_of_the_budget() {
    let config = Config { ring_budget: 400, ..patient() };
    with_sizes(config, limits(), |rig| async move {
        let mut pairs = Vec::new();
        for _ in 0..8 {
            let (mut stream, socket) = connected(&rig, Options::new()).await;
            send(&mut stream, &socket, 1_000_000).await;
            pairs.push((stream, socket));
        }
        drop(pairs);
        rig.until(|| rig.frontend.statistics().streams_open == 0).await;
        rig.until(|| {
            let small = 8 * rig.frontend.ring_pages() as u64;
            rig.frontend.statistics().ring_pages <= 200 + small
        })
        .await;
    });
}

#[test]
fn bulk_costs_at_most_four_events_per_mebibyte() {
    const MEBI: usize = 1 << 20;
    let protocol = Protocol { dialect: Dialect::PvCalls, extensions: Extensions::all() };
    with_backend_of(protocol, patient(), limits(), |rig| async move {
        rig.net.set_capacity(MEBI);
        let (mut stream, socket) = connected(&rig, Options::new()).await;
        send(&mut stream, &socket, MUCH).await;
        let before = rig.world.events();
        send(&mut stream, &socket, 16 * MEBI).await;
        let out = rig.world.events() - before;
        receive(&mut stream, &socket, 16 * MEBI).await;
        let input = rig.world.events() - before - out;
        println!("events for 16 MiB: {out} out, {input} in");
        assert!(out <= 64 && input <= 64, "{out} events out, {input} in");
    });
}

#[test]
fn bytes_written_at_any_moment_of_a_resize_arrive() {
    with_sizes(config(), limits(), |rig| async move {
        let (done, ended) = oneshot::channel();
        let player = rig.clone();
        // A task takes turns with each other task.
        rig.spawn(async move {
            for turns in 0..30 {
                let (mut stream, socket) = connected(&player, Options::new()).await;
                send(&mut stream, &socket, 300_000).await;
                player.frontend.trim();
                let mut left = turns;
                poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    left -= 1;
                    if left < 0 { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                let data = pattern(1000);
                let sent = stream.write(&data).now_or_never().map_or(0, Result::unwrap);
                let closing = async { stream.close(Close::Both).await.unwrap() };
                let (received, ()) = join(socket.read_to_end(), closing).await;
                assert!(received.unwrap() == data[..sent], "after {turns} turns");
            }
            let _ = done.send(());
        });
        ended.await.unwrap();
    });
}

#[test]
fn a_connection_may_end_while_its_ring_changes_its_size() {
    with_sizes(config(), limits(), |rig| async move {
        for turns in 0..12 {
            let (mut stream, socket) = connected(&rig, Options::new()).await;
            let data = pattern(20_000);
            let sending = async {
                stream.write_all(&data).await.unwrap();
                for _ in 0..turns {
                    Timer::after_ticks(0).await;
                }
                stream.close(Close::Both).await.unwrap();
            };
            let (received, ()) = join(socket.read_to_end(), sending).await;
            assert!(received.unwrap() == data);
        }
        rig.until(|| rig.holds_nothing_in_use()).await;
    });
}

#[test]
fn streams_end_with_the_backend_while_their_rings_grow() {
    for protocol in extended() {
        rig::with_frontend(Config { dialect: protocol.dialect, ..config() }, |rig| async move {
            let mut backend = rig.start_backend(protocol, limits());
            for turns in 0..12 {
                let (mut stream, _socket) = connected(&rig, Options::new()).await;
                let writing = async {
                    let data = pattern(200_000);
                    while stream.write_all(&data).await.is_ok() {}
                    stream.write(&data).await
                };
                let killing = async {
                    for _ in 0..turns {
                        Timer::after_ticks(0).await;
                    }
                    backend.kill();
                    rig.start_backend(protocol, limits())
                };
                let (written, next) = join(writing, killing).await;
                assert_eq!(written, Err(Errno::ENETDOWN));
                backend = next;
            }
        });
    }
}
