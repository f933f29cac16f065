//! A frontend and a backend in one process and one thread, compared to copying memory.
//!
//! Each end copies each byte once, and the events, tasks and rings add to that. Two ratios are
//! printed first: to one `memcpy` between large buffers, and to the two copies alone, in buffers of
//! the same sizes. They are medians of rounds, in which all measurements take turns. Times are CPU
//! times of the thread, so that other programs do not count. Times of different runs or machines
//! cannot be compared; ratios can, roughly, if nothing else uses the caches.

#[path = "../tests/rig/mod.rs"]
mod rig;

use criterion::{Criterion, Throughput};
use edge_nal::{UdpReceive, UdpSend};
use embedded_io_async::{Read, Write};
use rig::{Rig, address, config, limits, with_backend_of};
use rustix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;
use xensock::front::Config;
use xensock::wire::{Dialect, Extensions, Protocol};

const KIBI: usize = 1 << 10;
const MEBI: usize = 1 << 20;

/// Bytes of one read or write of an application.
const CHUNK: usize = 64 * KIBI;

/// Bytes that move before measuring, so that rings have their size.
const WARM_UP: usize = 2 * MEBI;

/// Rounds of measurements.
const ROUNDS: usize = 7;

/// The cost of a run.
#[derive(Clone, Copy, Default)]
struct Cost {
    time: Duration,
    /// Events sent by both ends, each of which would be a hypercall.
    events: u64,
}

/// Runs `test` with a frontend and a backend, and returns the cost that it measured.
fn timed(config: Config, test: impl AsyncFnOnce(Rc<Rig>) -> Cost) -> Cost {
    let cost = Cell::default();
    let protocol = Protocol { dialect: Dialect::PvCalls, extensions: Extensions::all() };
    with_backend_of(protocol, config, limits(), |rig| async {
        cost.set(test(rig).await);
    });
    cost.get()
}

/// A point in time, of which only differences count.
#[derive(Clone, Copy)]
struct Instant(Duration);

impl Instant {
    fn now() -> Instant {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Instant(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    fn elapsed(self) -> Duration {
        Instant::now().0 - self.0
    }
}

/// From an application to a peer that discards everything.
fn outwards(bytes: usize, chunk: usize, config: Config) -> Cost {
    timed(config, async |rig| {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        let chunk = rig::pattern(chunk);
        let mut send = async |bytes: usize| {
            let sending = async {
                for _ in 0..bytes / chunk.len() {
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
        };
        measured(&rig, bytes, &mut send).await
    })
}

/// To an application, from a peer that sends arbitrary bytes.
fn inwards(bytes: usize, chunk: usize, config: Config) -> Cost {
    timed(config, async |rig| {
        let server = rig.net.listen(address(80)).unwrap();
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        let mut chunk = vec![0; chunk];
        let mut receive = async |bytes: usize| {
            let sending = async {
                let mut left = bytes;
                while left > 0 {
                    left -= socket.write_in_place(|room| room.len().min(left)).await.unwrap();
                }
            };
            let receiving = async {
                for _ in 0..bytes / chunk.len() {
                    stream.read_exact(&mut chunk).await.unwrap();
                    black_box(&chunk);
                }
            };
            futures_util::future::join(sending, receiving).await;
        };
        measured(&rig, bytes, &mut receive).await
    })
}

/// The cost of moving so many bytes, after a warm-up.
async fn measured(rig: &Rig, bytes: usize, transfer: &mut impl AsyncFnMut(usize)) -> Cost {
    transfer(WARM_UP).await;
    let (events, start) = (rig.world.events(), Instant::now());
    transfer(bytes).await;
    Cost { time: start.elapsed(), events: rig.world.events() - events }
}

/// Requests and responses of 64 bytes.
fn round_trips(count: u64) -> Duration {
    timed(config(), async |rig| {
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
        Cost { time: start.elapsed(), events: 0 }
    })
    .time
}

/// Datagrams from an application to a peer that discards them, or the other way, in batches.
fn datagrams(count: u64, length: usize, is_out: bool) -> Cost {
    const BATCH: u64 = 32;
    timed(config(), async |rig| {
        let mut socket = rig.frontend.bind_udp(address(53)).await.unwrap();
        let peer = rig.net.datagrams_at(address(7)).unwrap();
        let mut data = rig::pattern(length);
        let (events, start) = (rig.world.events(), Instant::now());
        for at in (0..count).step_by(BATCH as usize) {
            let batch = BATCH.min(count - at);
            for _ in 0..batch {
                match is_out {
                    true => socket.send(address(7), &data).await.unwrap(),
                    false => peer.send(address(53), &data).unwrap(),
                }
            }
            for _ in 0..batch {
                match is_out {
                    true => drop(black_box(peer.receive().await)),
                    false => drop(black_box(socket.receive(&mut data).await.unwrap())),
                }
            }
        }
        Cost { time: start.elapsed(), events: rig.world.events() - events }
    })
}

/// Connections that are opened and closed, one after the other.
fn connections(count: u64) -> Duration {
    timed(config(), async |rig| {
        let server = rig.net.listen(address(80)).unwrap();
        rig.frontend.connected().await.unwrap();
        let start = Instant::now();
        for _ in 0..count {
            let stream = rig.frontend.connect(address(80)).await.unwrap();
            let socket = server.accept().await;
            drop(stream);
            socket.read(&mut [0]).await.unwrap();
        }
        Cost { time: start.elapsed(), events: 0 }
    })
    .time
}

/// Copies between two buffers that are as large as the largest ring.
fn copying(bytes: usize, chunk: usize) -> Cost {
    let from = rig::pattern(MEBI);
    let mut to = vec![0; MEBI];
    let start = Instant::now();
    for at in (0..bytes).step_by(chunk) {
        let at = at % MEBI;
        black_box(&mut to)[at..at + chunk].copy_from_slice(&black_box(&from)[at..at + chunk]);
    }
    Cost { time: start.elapsed(), events: 0 }
}

/// Copies from an application's buffer into a ring of `size` bytes, and from there into a socket's
/// buffer.
fn copying_twice(bytes: usize, chunk: usize, size: usize) -> Cost {
    let from = rig::pattern(chunk);
    let (mut ring, mut socket) = (vec![0; size], vec![0; 64 * KIBI]);
    let chunk = chunk.min(size);
    let start = Instant::now();
    for at in (0..bytes).step_by(chunk) {
        let (ring_at, socket_at) = (at % size, at % socket.len());
        let ring = &mut black_box(&mut ring)[ring_at..ring_at + chunk];
        ring.copy_from_slice(&black_box(&from)[..chunk]);
        black_box(&mut socket)[socket_at..socket_at + chunk].copy_from_slice(black_box(ring));
    }
    Cost { time: start.elapsed(), events: 0 }
}

/// One way to move bytes: its name, the cost of moving some, and the cost of the copies alone.
type Way = (String, [Box<dyn Fn(usize) -> Cost>; 2]);

/// All ways to move bytes in pieces of `chunk` bytes.
fn ways(chunk: usize) -> Vec<Way> {
    let mut ways: Vec<Way> = Vec::new();
    let plain = Extensions::all() - Extensions::EVENT_INDEX;
    for (name, ring_order, extensions) in [
        ("default settings", None, Extensions::all()),
        ("ring order 4, event indexes", Some(4), Extensions::all()),
        ("ring order 6, plain", Some(6), plain),
        ("ring order 6, event indexes", Some(6), Extensions::all()),
        ("ring order 7, event indexes", Some(7), Extensions::all()),
        ("ring order 8, event indexes", Some(8), Extensions::all()),
        ("ring order 9, event indexes", Some(9), Extensions::all()),
    ] {
        let config = Config { ring_order, extensions, ..config() };
        let size = 2048 << ring_order.unwrap_or(9);
        let copies = move |bytes| copying_twice(bytes, chunk, size);
        let out = move |bytes| outwards(bytes, chunk, config);
        ways.push((format!("{name}, out"), [Box::new(out), Box::new(copies)]));
        let input = move |bytes| inwards(bytes, chunk, config);
        ways.push((format!("{name}, in"), [Box::new(input), Box::new(copies)]));
    }
    ways
}

fn median<T: Copy>(mut values: Vec<T>, order: impl Fn(&T) -> f64) -> T {
    values.sort_by(|one, other| order(one).total_cmp(&order(other)));
    values[values.len() / 2]
}

fn ratios() {
    const BYTES: usize = 256 * MEBI;
    let speed = |cost: &Cost| BYTES as f64 / 1e6 / cost.time.as_secs_f64();
    for chunk in [16 * KIBI, CHUNK] {
        let ways = ways(chunk);
        // For each way, the speed, the two ratios and the events of each round.
        let mut results = vec![Vec::new(); ways.len()];
        let mut memory = Vec::new();
        for _ in 0..ROUNDS {
            for ((_, [run, copies]), result) in ways.iter().zip(&mut results) {
                let (memcpy, copies, cost) = (copying(BYTES, chunk), copies(BYTES), run(BYTES));
                let [memcpy, copies, own] = [memcpy, copies, cost].map(|cost| speed(&cost));
                memory.push(memcpy);
                result.push((own, own / memcpy, own / copies, cost.events));
            }
        }
        let memory = median(memory, |speed| *speed);
        println!("in pieces of {} KiB; memcpy: {memory:.0} MB/s", chunk / KIBI);
        for ((name, _), rounds) in ways.iter().zip(results) {
            let (speed, to_memcpy, to_copies, events) = median(rounds, |round| round.1);
            println!(
                "pair, {name}: {speed:.0} MB/s, ratio to memcpy {to_memcpy:.2}, to its two copies \
                 {to_copies:.2}, {:.1} events per MiB",
                events as f64 / (BYTES / MEBI) as f64
            );
        }
    }
}

fn main() {
    // `cargo test --benches` only checks that it runs.
    if !std::env::args().any(|argument| argument == "--bench") {
        outwards(MEBI, CHUNK, config());
        inwards(MEBI, CHUNK, config());
        datagrams(100, 1400, true);
        datagrams(100, 1400, false);
        return;
    }
    ratios();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("pair");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Bytes(MEBI as u64));
    group.bench_function("1 MiB out", |bencher| {
        bencher.iter_custom(|count| outwards(count as usize * MEBI, CHUNK, config()).time);
    });
    group.bench_function("1 MiB in", |bencher| {
        bencher.iter_custom(|count| inwards(count as usize * MEBI, CHUNK, config()).time);
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("round trip of 64 bytes", |bencher| {
        bencher.iter_custom(round_trips);
    });
    group.bench_function("connection opened and closed", |bencher| {
        bencher.iter_custom(connections);
    });
    for (name, is_out) in [("out", true), ("in", false)] {
        let events = datagrams(1000, 1400, is_out).events;
        println!("pair, 1000 datagrams {name}: {events} events");
        group.bench_function(format!("datagram of 1400 bytes {name}"), |bencher| {
            bencher.iter_custom(|count| datagrams(count, 1400, is_out).time);
        });
    }
    group.finish();
    criterion.final_summary();
}
