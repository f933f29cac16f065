//! A frontend and a backend in one process and one thread, compared to copying memory.
//!
//! Each end copies each byte once, and the events, tasks and rings add to that. The ratio that is
//! printed first is the share of the speed of `memcpy` that remains. Times of different runs or
//! machines cannot be compared; ratios can, roughly.

#[path = "../tests/rig/mod.rs"]
mod rig;

use criterion::{Criterion, Throughput};
use embedded_io_async::{Read, Write};
use rig::{Rig, address, config, limits, with_backend_of};
use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xensock::back::Limits;
use xensock::front::Config;
use xensock::wire::{Dialect, Extensions, Protocol};

/// Bytes of one write of an application.
const CHUNK: usize = 16 * 1024;
const MEBI: usize = 1 << 20;

/// The cost of a run.
#[derive(Clone, Copy, Default)]
struct Cost {
    time: Duration,
    /// Events sent by both ends, each of which would be a hypercall.
    events: u64,
}

/// Runs `test` with a connected pair, and returns the time that it measured.
fn timed<F: Future<Output = Duration>>(config: Config, test: impl FnOnce(Rc<Rig>) -> F) -> Cost {
    let cost = Cell::default();
    let protocol = Protocol { dialect: Dialect::PvCalls, extensions: Extensions::all() };
    with_backend_of(protocol, config, Limits { max_ring_order: 9, ..limits() }, |rig| {
        let test = test(rig.clone());
        let cost = &cost;
        async move {
            let before = rig.world.events();
            let time = test.await;
            cost.set(Cost { time, events: rig.world.events() - before });
        }
    });
    cost.get()
}

/// From an application to a peer that discards everything.
fn outwards(bytes: usize, config: Config) -> Cost {
    timed(config, |rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        let chunk = rig::pattern(CHUNK);
        let start = Instant::now();
        let sending = async {
            for _ in 0..bytes / CHUNK {
                stream.write_all(&chunk).await.unwrap();
            }
        };
        let receiving = async {
            let mut left = bytes;
            while left > 0 {
                left -= socket.read_in_place(|some| black_box(some).len()).await.unwrap();
            }
        };
        futures_util::future::join(sending, receiving).await;
        start.elapsed()
    })
}

/// To an application, from a peer that sends arbitrary bytes.
fn inwards(bytes: usize, config: Config) -> Cost {
    timed(config, |rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        let mut chunk = vec![0; CHUNK];
        let start = Instant::now();
        let sending = async {
            let mut left = bytes;
            while left > 0 {
                left -= socket.write_in_place(|room| room.len().min(left)).await.unwrap();
            }
        };
        let receiving = async {
            for _ in 0..bytes / CHUNK {
                stream.read_exact(&mut chunk).await.unwrap();
                black_box(&chunk);
            }
        };
        futures_util::future::join(sending, receiving).await;
        start.elapsed()
    })
}

/// Requests and responses of 64 bytes.
fn round_trips(count: u64) -> Duration {
    timed(config(), |rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        rig.spawn(async move {
            let mut bytes = [0; 64];
            while let Ok(count @ 1..) = socket.read(&mut bytes).await {
                if socket.write_all(&bytes[..count]).await.is_err() {
                    break;
                }
            }
        });
        let mut bytes = [7; 64];
        let start = Instant::now();
        for _ in 0..count {
            stream.write_all(&bytes).await.unwrap();
            stream.read_exact(&mut bytes).await.unwrap();
        }
        start.elapsed()
    })
    .time
}

/// Connections that are opened and closed, one after the other.
fn connections(count: u64) -> Duration {
    timed(config(), |rig| async move {
        let server = rig.net.listen(address(80)).unwrap();
        rig.frontend.connected().await.unwrap();
        let start = Instant::now();
        for _ in 0..count {
            let stream = rig.frontend.connect(address(80)).await.unwrap();
            let socket = server.accept().await;
            drop(stream);
            socket.read(&mut [0]).await.unwrap();
        }
        start.elapsed()
    })
    .time
}

/// Copies between two buffers that are as large as a ring.
fn copying(bytes: usize) -> Duration {
    let from = rig::pattern(MEBI);
    let mut to = vec![0; MEBI];
    let start = Instant::now();
    for at in (0..bytes).step_by(CHUNK) {
        let at = at % MEBI;
        black_box(&mut to)[at..at + CHUNK].copy_from_slice(&black_box(&from)[at..at + CHUNK]);
    }
    start.elapsed()
}

/// The best of several runs: disturbances only make a run slower.
fn best(run: impl Fn() -> Cost) -> Cost {
    (0..7).map(|_| run()).min_by_key(|cost| cost.time).unwrap_or_default()
}

fn ratios() {
    const BYTES: usize = 128 * MEBI;
    let speed = |cost: Cost| BYTES as f64 / 1e6 / cost.time.as_secs_f64();
    let memory = speed(best(|| Cost { time: copying(BYTES), events: 0 }));
    println!("memcpy, in pieces of {} KiB: {memory:.0} MB/s", CHUNK / 1024);
    let plain = Extensions::all() - Extensions::EVENT_INDEX;
    for (order, kind, extensions) in [
        (4, "plain", plain),
        (4, "event indexes", Extensions::all()),
        (6, "plain", plain),
        (6, "event indexes", Extensions::all()),
        (9, "event indexes", Extensions::all()),
    ] {
        let config = Config { ring_order: Some(order), extensions, ..config() };
        let ways =
            [("out", best(|| outwards(BYTES, config))), ("in", best(|| inwards(BYTES, config)))];
        for (name, cost) in ways {
            println!(
                "pair, ring order {order}, {kind}, {name}: {:.0} MB/s, ratio to memcpy {:.2}, \
                 {:.1} events per MiB",
                speed(cost),
                speed(cost) / memory,
                cost.events as f64 / (BYTES / MEBI) as f64
            );
        }
    }
}

fn main() {
    // `cargo test --benches` only checks that it runs.
    if !std::env::args().any(|argument| argument == "--bench") {
        outwards(MEBI, config());
        inwards(MEBI, config());
        return;
    }
    ratios();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("pair");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Bytes(MEBI as u64));
    group.bench_function("1 MiB out", |bencher| {
        bencher.iter_custom(|count| outwards(count as usize * MEBI, config()).time);
    });
    group.bench_function("1 MiB in", |bencher| {
        bencher.iter_custom(|count| inwards(count as usize * MEBI, config()).time);
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("round trip of 64 bytes", |bencher| {
        bencher.iter_custom(round_trips);
    });
    group.bench_function("connection opened and closed", |bencher| {
        bencher.iter_custom(connections);
    });
    group.finish();
    criterion.final_summary();
}
