//! Tests what the kernel offers apps besides sockets, for the tests in real Xen. `test=` has one
//! of the names below. Results are printed on the console.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::net::{Ipv4Addr, SocketAddr};
use embassy_time::{Duration, Instant, Timer};
use futures_util::future::join_all;
use kernel::System;
use sha2::{Digest, Sha256};
use xen::Errno;
use xen::xenstore::{Store, Transaction};

kernel::entry!(main);

async fn main(system: System) -> Result<(), String> {
    let line = core::str::from_utf8(system.command_line()).unwrap_or_default();
    let name = line.split_whitespace().find_map(|word| word.strip_prefix("test="));
    match name.unwrap_or_default() {
        "idle" => idle(&system).await,
        "timers" => timers(&system).await,
        "output" => output(&system).await,
        "flood" => flood(&system).await,
        "input" => input(&system).await,
        "xenstore" => xenstore(system.store()).await,
        "random" => random(&system).await,
        name => Err(format!("unknown test {name:?}")),
    }
}

fn text(error: Errno) -> String {
    error.to_string()
}

/// Random numbers, as other crates get them, and as the system gives them.
async fn random(system: &System) -> Result<(), String> {
    let numbers = system.random().await;
    let mut number = [0; 16];
    match getrandom::fill(&mut number) {
        Ok(()) => log::info!("random: {number:02x?}"),
        Err(error) => log::info!("no random numbers: {error}"),
    }
    match numbers {
        Ok(mut numbers) => log::info!("system: {:02x?}", numbers()),
        Err(error) => log::info!("none of the system: {error}"),
    }
    Ok(())
}

/// An idle guest with a listener wakes for events only.
async fn idle(system: &System) -> Result<(), String> {
    let sockets = system.sockets(Default::default()).await.map_err(text)?;
    let listener =
        sockets.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await.map_err(text)?;
    let accepting = async {
        let _ = listener.accept().await;
    };
    let counting = async {
        // The start may not be complete yet.
        Timer::after_secs(1).await;
        let before = system.snapshot().wakeups_total;
        Timer::after_secs(10).await;
        log::info!("wake-ups in 10 s: {}", system.snapshot().wakeups_total - before);
    };
    futures_util::future::select(core::pin::pin!(accepting), core::pin::pin!(counting)).await;
    Ok(())
}

/// Thousands of timers fire once each, in order, never early, and a millisecond is one.
async fn timers(system: &System) -> Result<(), String> {
    const COUNT: u64 = 5000;
    // On a busy host it takes long until all tasks wait, and the host may stand still for seconds.
    let start = Instant::now() + Duration::from_secs(10);
    let lateness = Rc::new(RefCell::new(Vec::new()));
    let (early, last, unordered) =
        (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for n in 0..COUNT {
        let due = start + Duration::from_micros(n * 7919 % COUNT * 200);
        let (lateness, early) = (lateness.clone(), early.clone());
        let (last, unordered) = (last.clone(), unordered.clone());
        system.spawn(async move {
            Timer::at(due).await;
            let now = Instant::now();
            early.set(early.get() + u32::from(now < due));
            // Timers that are due at once may fire in any order.
            unordered.set(unordered.get() + u32::from(due.as_micros() + 50_000 < last.get()));
            last.set(due.as_micros().max(last.get()));
            lateness.borrow_mut().push((now - due.min(now)).as_micros());
        });
    }
    // The first count may come too early: under emulation the clock can jump by a second, and
    // timers that are swept are absent until their tasks have run again.
    let mut pending = 0;
    while pending < COUNT as _ && Instant::now() < start {
        Timer::after_millis(100).await;
        pending = system.snapshot().timers;
    }
    log::info!("timers pending: {pending}");
    while (lateness.borrow().len() as u64) < COUNT {
        Timer::after_millis(50).await;
    }
    let mut lateness = lateness.take();
    lateness.sort_unstable();
    log::info!("timers: {COUNT} fired, {} early, {} out of order", early.get(), unordered.get());
    log::info!(
        "late by {} us in the middle, {} at most",
        lateness[lateness.len() / 2],
        lateness[lateness.len() - 1]
    );
    let start = Instant::now();
    for _ in 0..100 {
        Timer::after_millis(1).await;
    }
    let took = start.elapsed();
    log::info!(
        "100 sleeps of 1 ms: {} us, {}",
        took.as_micros(),
        took >= Duration::from_millis(100)
    );
    Ok(())
}

/// A megabyte of output, complete and in order.
async fn output(system: &System) -> Result<(), String> {
    let console = system.console().ok_or("no console")?;
    let mut digest = Sha256::new();
    for n in 0..16_384 {
        let line = format!("out {n:059}\n");
        digest.update(&line);
        console.write_all(line.as_bytes()).await.map_err(text)?;
    }
    log::info!("output: {}, {} dropped", hex(&digest.finalize()), console.dropped());
    Ok(())
}

/// More messages than fit while the console is not read: the excess is lost, and no task waits.
async fn flood(system: &System) -> Result<(), String> {
    let console = system.console().ok_or("no console")?;
    for n in 0..4000 {
        log::info!("flood {n:060}");
    }
    let node = "data/flood";
    system.store().write(node, console.dropped().to_string()).await.map_err(text)?;
    // The test reads the node and removes it.
    let mut changes = system.store().watch(node).await.map_err(text)?;
    while system.store().read(node).await.is_ok() {
        changes.next().await;
    }
    console.flush().await.map_err(text)?;
    log::info!("after the flood");
    Ok(())
}

/// Reads input up to a line `end`.
async fn input(system: &System) -> Result<(), String> {
    let console = system.console().ok_or("no console")?;
    log::info!("waiting for input");
    let (mut digest, mut count, mut tail) = (Sha256::new(), 0, Vec::new());
    while !tail.ends_with(b"\nend\n") {
        let mut bytes = [0; 256];
        let read = console.read(&mut bytes).await.map_err(text)?;
        digest.update(&bytes[..read]);
        count += read;
        tail.extend_from_slice(&bytes[..read]);
        tail.drain(..tail.len().saturating_sub(8));
    }
    log::info!("input: {count} bytes, {}", hex(&digest.finalize()));
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Xenstore's quotas, long lists, errors and conflicting transactions.
async fn xenstore(store: &Store) -> Result<(), String> {
    let long = store.directory("data/long").await.map_err(text)?;
    log::info!("xenstore: a list of {} nodes", long.len());
    for _ in 0..300 {
        drop(store.watch("data/watched").await.map_err(|error| format!("a watch leaks: {error}"))?);
    }
    let mut watches = Vec::new();
    let error = loop {
        match store.watch("data/watched").await {
            Ok(watch) => watches.push(watch),
            Err(error) => break error,
        }
    };
    log::info!("xenstore: no more watches than {}: {error}", watches.len());
    drop(watches);
    store.watch("data/watched").await.map_err(text)?;

    let mut made = 0;
    let error = loop {
        let node = format!("data/many/{made:060}");
        match store.write(&node, "x").await {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
        if made > 100_000 {
            return Err("there is no quota of nodes".into());
        }
    };
    let listed = store.directory("data/many").await.map_err(text)?;
    log::info!("xenstore: no more nodes than {made}, {} listed: {error}", listed.len());
    store.rm("data/many").await.map_err(text)?;
    store.write("data/one", "x").await.map_err(text)?;

    let long = store.write("data/one", [b'x'; 4000]).await;
    log::info!("xenstore: a long value: {}", long.map_or_else(text, |()| "written".into()));
    let foreign = store.write("/local/domain/0/name", "mine").await;
    log::info!("xenstore: another's node: {}", foreign.map_or_else(text, |()| "written".into()));

    store.write("data/count", "0").await.map_err(text)?;
    let rival = async || -> Result<(), Errno> {
        for _ in 0..5 {
            let increase = async |transaction: &Transaction| {
                let count: u32 = transaction
                    .read_string("data/count")
                    .await?
                    .parse()
                    .map_err(|_| Errno::EPROTO)?;
                transaction.write("data/count", (count + 1).to_string()).await
            };
            store.transact(increase).await?;
        }
        Ok(())
    };
    let results = join_all((0..4).map(|_| rival())).await;
    let failed = results.iter().filter(|result| result.is_err()).count();
    let count = store.read_string("data/count").await.map_err(text)?;
    log::info!("xenstore: 4 rivals counted to {count}, {failed} failed");
    Ok(())
}
