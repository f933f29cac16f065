//! Sends requests to a backend that the frontend never sends, and prints the results; then lets
//! the frontend time out on a CONNECT. In the backend's domain, the port that `port=` names and
//! the next one must be free, and the port of `slow=` must take long to accept a connection.
//!
//! Each line on the console describes one behaviour of the backend. The tests compare it with
//! what they expect of that backend.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::net::{Ipv4Addr, SocketAddr};
use core::task::Poll;
use embassy_time::{Duration, Instant, with_timeout};
use embedded_io_async::{Read, Write};
use kernel::System;
use kernel::machine::{Domain, guest};
use xen::xenbus::{self, OtherEnd, State, StateWatch};
use xen::{DomId, Errno, Port};
use xen::{Machine, Pages, Side, Signal};
use xensock::front::{self, Stream};
use xensock::ring::{CommandFront, Consumer, NotifyPolicy, Producer, copy_in, len};
use xensock::wire::{Call, Dialect, Family, Layout, Protocol, Request, Response, RingOffer};

kernel::entry!(main);

/// The data rings' order, the largest that Linux maps.
const ORDER: u32 = 4;
const PATH: &str = "device/pvcalls/0";
/// The time limit for a response that must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// After this time, a response that is not expected is considered missing.
const QUIET: Duration = Duration::from_secs(2);
/// After this time without an event, nothing more happens in a ring, even if the machine stands
/// still for some seconds.
const SETTLED: Duration = Duration::from_secs(8);
/// The frontend's time limit for a response: the slow CONNECT exceeds it, and nothing else may.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

// The sockets' ids.
const LISTENER: u64 = 1;
const CONNECTED: u64 = 2;
const ACCEPTED: u64 = 3;
const NEVER_ACCEPTED: u64 = 4;
const UNKNOWN: u64 = 77;

async fn main(system: System) -> Result<(), String> {
    let line = core::str::from_utf8(system.command_line()).unwrap_or_default();
    let number = |key| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(key));
        value
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| format!("write {key} and a number"))
    };
    let (port, slow) = (number("port=")?, number("slow=")?);
    let failed = |error: Errno| error.to_string();
    by_hand(&system, port).await.map_err(failed)?;
    given_up(&system, port, slow).await.map_err(failed)
}

/// A command ring, and the machine under it. Its memory is never freed.
struct Device {
    machine: Domain,
    peer: DomId,
    page: Pages,
    ring: CommandFront,
    port: Port,
    signal: Arc<Signal>,
    next: u32,
}

impl Device {
    /// Connects the device as the specification requires.
    async fn attach(system: &System) -> Result<(Device, OtherEnd, StateWatch), Errno> {
        let store = system.store();
        let backend = OtherEnd::backend_of(store, PATH).await?;
        let mut watch = StateWatch::new(store, &backend.path).await?;
        watch.wait_for(|state| state == State::InitWait).await?;
        let machine = Domain::new(guest().ok_or(Errno::ENODEV)?);
        let peer = backend.domain;
        let page = machine.alloc(1)?;
        let grant = machine.grant(peer, &page, 0)?;
        let signal = Arc::new(Signal::new());
        let port = machine.open_port(peer, signal.clone())?;
        let ring = CommandFront::new(Dialect::PvCalls, page.shared());
        let nodes = [("version", 1), ("port", port.0), ("ring-ref", grant.0)];
        for (name, value) in nodes {
            store.write(&format!("{PATH}/{name}"), value.to_string()).await?;
        }
        xenbus::switch_state(store, PATH, State::Initialised).await?;
        watch.wait_for(|state| state == State::Connected).await?;
        xenbus::switch_state(store, PATH, State::Connected).await?;
        Ok((Device { machine, peer, page, ring, port, signal, next: 0 }, backend, watch))
    }

    /// Sends a request and returns its number.
    fn ask(&mut self, socket: u64, call: Call) -> Result<u32, Errno> {
        let id = self.next;
        self.next += 1;
        self.ring.push(self.page.shared(), &Request { id, socket, call })?;
        if self.ring.publish(self.page.shared()).is_due() {
            self.machine.notify(self.port);
        }
        Ok(id)
    }

    /// The next response; `None` if there is none in time.
    async fn next_answer(&mut self, within: Duration) -> Option<Response> {
        let Device { ring, page, signal, .. } = self;
        let look = || {
            ring.pop(page.shared()).ok().flatten().or_else(|| {
                ring.final_check(page.shared()).then(|| ring.pop(page.shared()).ok().flatten())?
            })
        };
        event(signal, within, look).await
    }

    /// Sends a request and returns the result in its response.
    async fn call(&mut self, socket: u64, call: Call) -> Result<u32, Errno> {
        let id = self.ask(socket, call)?;
        loop {
            let answer = self.next_answer(PATIENCE).await.ok_or(Errno::ETIMEDOUT)?;
            if answer.id == id {
                return answer.result;
            }
        }
    }

    /// Opens a data ring.
    fn data(&self) -> Result<(Data, RingOffer), Errno> {
        let layout = Protocol::from(Dialect::PvCalls).layout(ORDER)?;
        let pages = self.machine.alloc(layout.pages)?;
        let grants = (0..layout.pages).map(|page| self.machine.grant(self.peer, &pages, page));
        let grants = grants.collect::<Result<Vec<_>, _>>()?;
        let signal = Arc::new(Signal::new());
        let port = self.machine.open_port(self.peer, signal.clone())?;
        let indexes = layout.split(pages.shared()).indexes;
        let offer =
            RingOffer { grants: Dialect::PvCalls.offer_ring(indexes, ORDER, &grants), port };
        Ok((Data { machine: self.machine, pages, layout, port, signal }, offer))
    }
}

/// A connection's data ring.
struct Data {
    machine: Domain,
    pages: Pages,
    layout: Layout,
    port: Port,
    signal: Arc<Signal>,
}

impl Data {
    /// Writes until no more bytes are taken, and returns their number.
    async fn fill(&self) -> Result<usize, Errno> {
        let region = self.layout.split(self.pages.shared());
        let mut producer = Producer::new(self.layout.output);
        let mut written = 0;
        loop {
            let look = || producer.room(region).ok().filter(|room| len(room) > 0);
            let Some(room) = event(&self.signal, SETTLED, look).await else { return Ok(written) };
            let count = copy_in(&room, &[0x5a; 4096]);
            if producer.advance(region, count).is_due() {
                self.machine.notify(self.port);
            }
            written += count;
        }
    }

    /// Reads until no more bytes arrive, and returns their number.
    async fn drain(&self) -> Result<usize, Errno> {
        let region = self.layout.split(self.pages.shared());
        let mut consumer = Consumer::new(self.layout.input, NotifyPolicy::FullOrEmpty);
        let mut read = 0;
        loop {
            let look =
                || consumer.data(region).ok().map(|data| len(&data)).filter(|count| *count > 0);
            let Some(count) = event(&self.signal, SETTLED, look).await else { return Ok(read) };
            let _ = consumer.advance(region, count);
            self.machine.notify(self.port);
            read += count;
        }
    }
}

/// Calls `look` now and after each event, until it returns something; `None` after a time limit.
async fn event<T>(
    signal: &Signal,
    within: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let looking = poll_fn(|cx| {
        signal.register(Side::Rx, cx.waker());
        look().map_or(Poll::Pending, Poll::Ready)
    });
    with_timeout(within, looking).await.ok()
}

/// The requests that the frontend never sends.
async fn by_hand(system: &System, port: u16) -> Result<(), Errno> {
    let (mut device, _, mut watch) = Device::attach(system).await?;
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));

    let unknown = device.ask(UNKNOWN, Call::Poll)?;
    let answer = device.next_answer(QUIET).await.filter(|answer| answer.id == unknown);
    log::info!("POLL of an unknown socket: {}", shown(answer.map(|answer| answer.result)));

    device.call(LISTENER, Call::Socket { family: Family::V4 }).await?;
    device.call(LISTENER, Call::Bind { addr }).await?;
    device.call(LISTENER, Call::Listen { backlog: 1 }).await?;
    let (accepted, ring) = device.data()?;
    device.ask(LISTENER, Call::Accept { new: ACCEPTED, ring })?;
    let (_, ring) = device.data()?;
    let second = device.ask(LISTENER, Call::Accept { new: NEVER_ACCEPTED, ring })?;
    let answer = device.next_answer(PATIENCE).await.filter(|answer| answer.id == second);
    log::info!("a second ACCEPT: {}", shown(answer.map(|answer| answer.result)));

    device.call(CONNECTED, Call::Socket { family: Family::V4 }).await?;
    let (connected, ring) = device.data()?;
    device.call(CONNECTED, Call::Connect { addr, flags: 0, ring }).await?;
    let written = connected.fill().await?;
    device.call(CONNECTED, Call::Release { reuse: false }).await?;
    let read = accepted.drain().await?;
    log::info!("RELEASE with a full ring: {} of {written} bytes are lost", written - read);

    device.call(ACCEPTED, Call::Release { reuse: false }).await?;
    device.call(LISTENER, Call::Release { reuse: false }).await?;
    xenbus::switch_state(system.store(), PATH, State::Closing).await?;
    watch.wait_for(|state| state != State::Connected).await?;
    xenbus::switch_state(system.store(), PATH, State::Closed).await
}

fn shown(result: Option<Result<u32, Errno>>) -> String {
    match result {
        None => "no answer".to_string(),
        Some(Ok(value)) => format!("answered with {value}"),
        Some(Err(error)) => format!("answered with {error}"),
    }
}

/// A CONNECT that takes longer than the frontend waits, and what works during and after it.
async fn given_up(system: &System, port: u16, slow: u16) -> Result<(), Errno> {
    let config = front::Config { answer_within: ANSWER_WITHIN, ..Default::default() };
    let sockets = system.sockets(config).await?;
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = sockets.bind(at(port)).await?;
    let mut from = sockets.connect(at(port)).await?;
    let mut to = listener.accept().await?;

    let before = Instant::now();
    let given_up = sockets.connect(at(slow)).await.map(|_| 0);
    let seconds = before.elapsed().as_secs();
    log::info!("a slow CONNECT: {} after {seconds} s", shown(Some(given_up)));
    log::info!("meanwhile: {}", exchange(&mut from, &mut to).await?);
    // The backend replies once it has finished the CONNECT; until then it may not reply at all.
    let listener = loop {
        match sockets.bind(at(port + 1)).await {
            Err(Errno::ETIMEDOUT) => log::info!("the backend is busy"),
            listener => break listener?,
        }
    };
    let mut from = sockets.connect(at(port + 1)).await?;
    let mut to = listener.accept().await?;
    log::info!("afterwards: {}", exchange(&mut from, &mut to).await?);
    Ok(())
}

async fn exchange(from: &mut Stream<Domain>, to: &mut Stream<Domain>) -> Result<String, Errno> {
    from.write(b"over and over").await?;
    let mut bytes = [0; 32];
    let count = to.read(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}
