//! Tests event channels and grants on real Xen, up to their limits: all ports and grant
//! references, events without pause, masks, and that everything can be freed.
//!
//! `ports=N` is the number of ports that the domain may have (`max_event_channels` in its
//! configuration, or the limit of the ABI chosen by `evtchn=`), `frames=N` that of its grant
//! table's frames (`max_grant_frames`).
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "gives back a page that it granted")]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use embassy_time::{Duration, Timer, with_timeout};
use kernel::System;
use kernel::hypercall::Xen;
use kernel::machine::{Domain, Guest, guest};
use xen::Machine;
use xen::abi::xen::DOMID_SELF;
use xen::event::{EventHandler, Priority};
use xen::grant::Usage;
use xen::hypercall::Operations;
use xen::{DomId, Errno, PAGE_SIZE, Port, yield_now};

kernel::entry!(main);

/// The time limit of a check.
const LIMIT: Duration = Duration::from_secs(60);

/// Entries of the grant table per frame, and entries reserved for the toolstack.
const PER_FRAME: u32 = (PAGE_SIZE / 8) as u32;
const RESERVED: u32 = 8;

/// The result of a check: the error is the reason.
type Outcome = Result<(), String>;

struct Bench {
    guest: &'static Guest,
    ports: u32,
    frames: u32,
}

async fn main(system: System) -> Result<(), String> {
    let line = core::str::from_utf8(system.command_line()).unwrap_or_default();
    let number = |key| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(key));
        value
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| format!("write {key} and a number"))
    };
    let (ports, frames) = (number("ports=")?, number("frames=")?);
    let bench = Bench { guest: guest().ok_or("there is no machine")?, ports, frames };
    log::info!("event channels: {} ABI", bench.guest.events.abi());

    let mut failed = 0;
    macro_rules! checks {
        ($($check:ident)*) => { $(
            match with_timeout(LIMIT, $check(&bench)).await {
                Ok(Ok(())) => log::info!("check {}: ok", stringify!($check)),
                Ok(Err(reason)) => {
                    failed += 1;
                    log::error!("check {}: {reason}", stringify!($check));
                }
                Err(_) => {
                    failed += 1;
                    log::error!("check {}: timed out", stringify!($check));
                }
            }
        )* };
    }
    checks!(an_event_arrives a_masked_port_keeps_its_event a_busy_port_does_not_starve_others
        a_busy_port_of_the_highest_priority_does_not_starve_others every_port_can_be_used
        every_grant_reference_can_be_used);
    log::info!("checks are done: {failed} failed");
    Ok(())
}

fn failed<E: Debug>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error:?}")
}

fn expect<T: PartialEq + Debug>(what: &str, got: T, wanted: T) -> Outcome {
    if got == wanted { Ok(()) } else { Err(format!("{what}: {got:?} and not {wanted:?}")) }
}

/// Counts a port's events.
#[derive(Default)]
struct Counter(AtomicU32);

impl EventHandler for Counter {
    fn raise(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Counter {
    fn count(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Waits for `count` events, while other tasks and timers run.
    async fn reaches(&self, count: u32) {
        while self.count() < count {
            yield_now().await;
        }
    }
}

/// Sends an event after each one received, until it is stopped.
struct Storm {
    xen: Xen,
    /// The port to send to; 0 for none.
    to: AtomicU32,
    count: AtomicU32,
}

impl EventHandler for Storm {
    fn raise(&self) {
        self.count.fetch_add(1, Relaxed);
        let to = self.to.load(Relaxed);
        if to != 0 {
            let _ = self.xen.send(Port(to));
        }
    }
}

/// Both ends of an event channel from this domain to itself: events sent over the first arrive at
/// the handler of the second.
struct Channel {
    guest: &'static Guest,
    from: Port,
    to: Port,
}

impl Channel {
    fn new(guest: &'static Guest, handler: Arc<dyn EventHandler>) -> Result<Channel, Errno> {
        let own = DomId(DOMID_SELF);
        let to = guest.events.alloc_unbound(own, handler)?;
        let from = match guest.events.bind_interdomain(own, to, Arc::new(Counter::default())) {
            Ok(from) => from,
            Err(error) => {
                guest.events.close(to)?;
                return Err(error);
            }
        };
        Ok(Channel { guest, from, to })
    }

    fn send(&self) -> Outcome {
        self.guest.events.send(self.from).map_err(failed("send"))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        for port in [self.from, self.to] {
            if let Err(error) = self.guest.events.close(port) {
                log::error!("check: port {} does not close: {error}", port.0);
            }
        }
    }
}

/// A channel with a counter of its events.
fn counted(bench: &Bench) -> Result<(Channel, Arc<Counter>), String> {
    let counter = Arc::new(Counter::default());
    let channel = Channel::new(bench.guest, counter.clone()).map_err(failed("open"))?;
    Ok((channel, counter))
}

async fn an_event_arrives(bench: &Bench) -> Outcome {
    let (channel, counter) = counted(bench)?;
    for count in 1..=100 {
        channel.send()?;
        counter.reaches(count).await;
    }
    // The executor sleeps until the timer's event.
    Timer::after_millis(1).await;
    expect("events", counter.count(), 100)
}

async fn a_masked_port_keeps_its_event(bench: &Bench) -> Outcome {
    let (channel, counter) = counted(bench)?;
    let (other, marker) = counted(bench)?;
    let events = &bench.guest.events;
    let mut total = 0;
    for round in 0..50 {
        // The event is sent before the mask, after it, or both, and dispatched in between or not.
        if round % 3 != 0 {
            channel.send()?;
        }
        events.mask(channel.to);
        if round % 3 != 1 {
            channel.send()?;
        }
        if round % 2 == 0 {
            // An event that is sent later over another port has arrived, so this port was
            // checked, too.
            other.send()?;
            marker.reaches(round / 2 + 1).await;
        }
        expect("events while masked", counter.count(), total)?;
        events.unmask(channel.to);
        total += 1;
        counter.reaches(total).await;
    }
    Ok(())
}

/// Sends events without pause over one channel, while the timer and another channel must get
/// theirs.
async fn storm(bench: &Bench, stormy: Priority, quiet: Priority) -> Outcome {
    let events = &bench.guest.events;
    let handler =
        Arc::new(Storm { xen: bench.guest.xen, to: AtomicU32::new(0), count: AtomicU32::new(0) });
    let channel = Channel::new(bench.guest, handler.clone()).map_err(failed("open"))?;
    events.set_priority(channel.to, stormy).map_err(failed("priority"))?;
    let (other, counter) = counted(bench)?;
    events.set_priority(other.to, quiet).map_err(failed("priority"))?;

    handler.to.store(channel.from.0, Relaxed);
    channel.send()?;
    let mut rounds = 0;
    while rounds < 10 || handler.count.load(Relaxed) < 2_000 {
        rounds += 1;
        Timer::after_millis(5).await;
        other.send()?;
        counter.reaches(rounds).await;
    }
    handler.to.store(0, Relaxed);
    log::info!("{} events beside {rounds}, each after a timer", handler.count.load(Relaxed));
    Ok(())
}

async fn a_busy_port_does_not_starve_others(bench: &Bench) -> Outcome {
    storm(bench, Priority::DEFAULT, Priority::DEFAULT).await
}

async fn a_busy_port_of_the_highest_priority_does_not_starve_others(bench: &Bench) -> Outcome {
    storm(bench, Priority::HIGHEST, Priority::LOWEST).await
}

/// Opens channels until there are no more ports. Returns them and the error.
fn all_ports(bench: &Bench) -> (Vec<(Channel, Arc<Counter>)>, Errno) {
    let mut channels = Vec::new();
    loop {
        let counter = Arc::new(Counter::default());
        match Channel::new(bench.guest, counter.clone()) {
            Ok(channel) => channels.push((channel, counter)),
            Err(error) => return (channels, error),
        }
    }
}

async fn every_port_can_be_used(bench: &Bench) -> Outcome {
    let (channels, error) = all_ports(bench);
    expect("the end", error, Errno::ENOSPC)?;
    let highest = channels.iter().map(|(channel, _)| channel.from.max(channel.to)).max();
    let highest = highest.ok_or("there is no port")?.0;
    log::info!("{} channels, the highest port is {highest}", channels.len());
    // A channel has two ports, so one port may be left.
    expect("the highest", highest + 2 >= bench.ports && highest < bench.ports, true)?;
    // All at once, which is more than one turn handles.
    for (channel, _) in &channels {
        channel.send()?;
    }
    for (_, counter) in &channels {
        counter.reaches(1).await;
    }
    Timer::after_millis(1).await;
    let once = channels.iter().all(|(_, counter)| counter.count() == 1);
    expect("each event arrived once", once, true)?;

    // Xen allocates the lowest free number: that of the first port.
    let first = channels[0].0.to;
    drop(channels);
    let (channel, counter) = counted(bench)?;
    expect("they are free again", channel.to, first)?;
    channel.send()?;
    counter.reaches(1).await;
    Ok(())
}

async fn every_grant_reference_can_be_used(bench: &Bench) -> Outcome {
    let (machine, grants) = (Domain::new(bench.guest), &bench.guest.grants);
    let before = grants.usage();
    expect("capacity", before.capacity, bench.frames * PER_FRAME - RESERVED)?;
    let page = machine.alloc(1).map_err(failed("a page"))?;
    for round in 0..2 {
        let mut made = Vec::new();
        let error = loop {
            match machine.grant(DomId(0), &page, 0) {
                Ok(grant) => made.push(grant),
                Err(error) => break error,
            }
        };
        log::info!("{} grants, then {error}", made.len());
        expect("the end", error, Errno::ENOSPC)?;
        let full = Usage { in_use: before.capacity, free: 0, capacity: before.capacity };
        expect("the full table", grants.usage(), full)?;
        for grant in made {
            machine.revoke(grant).map_err(failed("revoke"))?;
        }
        let free = before.capacity - before.in_use;
        expect(&format!("round {round}"), grants.usage(), Usage { free, ..before })?;
    }
    // SAFETY: all its grants were revoked.
    unsafe { machine.free(page) };
    Ok(())
}
