//! A hostile guest: it does one thing to its backend, as fast as it can, until it is destroyed.
//!
//! | word | over and over |
//! |---|---|
//! | `events` | events without a request |
//! | `commands` | a full command ring of requests that succeed |
//! | `garbage` | a full command ring of random bytes, and now and then impossible indexes |
//! | `connections` | a connection to its own listening socket, at the port that `port=` names |
//! | `references` | ACCEPT with grants and ports that are not its own |
//! | `states` | other states of its device |
//! | `nodes` | other values of its device's nodes, and new ones |
//! | `ports` | as many bound sockets as it gets, then none |
//! | `nothing` | nothing, to compare: it only uses up its processor's time |
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt::Display;
use core::net::{Ipv4Addr, SocketAddr};
use core::pin::pin;
use core::sync::atomic::Ordering::{Acquire, Release};
use embassy_time::{Duration, Timer, with_timeout};
use futures_util::future::{Either, join_all, select, try_join, try_join_all};
use kernel::System;
use kernel::machine::Domain;
use xen::frontend::{GrantedPages, PagePool};
use xen::xenbus::{OtherEnd, State, StateWatch, switch_state};
use xen::{Errno, GrantRef, Machine, PAGE_SIZE, Port, Signal, yield_now};
use xensock::front::Config;
use xensock::ring::CommandFront;
use xensock::wire::{Call, Dialect, Family, Request, RingGrants, RingOffer};

kernel::entry!(main);

const PATH: &str = "device/pvcalls/0";

/// The offsets of the indexes of requests and of responses in the ring's page (`io/ring.h`).
const REQUESTS: usize = 0;
const RESPONSES: usize = 8;

/// After how many rounds of garbage the index is impossible. The backend closes the device.
const IMPOSSIBLE: u32 = 10_000;

/// The number of the listening socket.
const LISTENER: u64 = 1 << 40;

/// The connections that are made at a time.
const AT_A_TIME: usize = 16;

/// How long a backend may take to offer its device again.
const PATIENCE: Duration = Duration::from_secs(5);

async fn main(system: System) -> Result<(), String> {
    let line = core::str::from_utf8(system.command_line()).map_err(text)?;
    let (storm, port) = line.split_once(" port=").unwrap_or((line, "0"));
    let port = port.parse().map_err(text)?;
    let count = Cell::new(0u64);
    let log = async {
        loop {
            Timer::after_secs(1).await;
            log::info!("in a second: {} {storm}", count.take());
        }
    };
    let storm = async {
        match storm {
            "events" | "commands" | "garbage" | "references" => loop {
                // The backend may keep the device closed for a while.
                let connected = with_timeout(PATIENCE, Device::connect(&system)).await;
                let Ok(Ok((mut device, mut watch))) = connected else { continue };
                let random = system.random().await.map_err(text)?;
                let storming = pin!(device.storm(storm, random, &count));
                let closed = pin!(watch.wait_for(|state| state != State::Connected));
                select(storming, closed).await;
            },
            "nothing" => loop {
                count.set(count.get() + 1);
                yield_now().await;
            },
            "connections" | "ports" => sockets(&system, storm, port, &count).await,
            "states" | "nodes" => nodes(&system, storm, &count).await,
            other => Err(format!("{other:?} is no storm")),
        }
    };
    let (storm, log) = (pin!(storm), pin!(log));
    match select(storm, log).await {
        Either::Left((ended, _)) => ended,
        Either::Right(((), _)) => Ok(()),
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The device, connected with a command ring.
struct Device {
    machine: Domain,
    page: GrantedPages,
    ring: CommandFront,
    port: Port,
    next: u32,
}

impl Device {
    /// Connects the device as a frontend does. Its memory is never freed.
    async fn connect(system: &System) -> Result<(Device, StateWatch), Errno> {
        let store = system.store();
        let backend = OtherEnd::backend_of(store, PATH).await?;
        let mut watch = StateWatch::new(store, &backend.path).await?;
        switch_state(store, PATH, State::Initialising).await?;
        watch.wait_for(|state| state == State::InitWait).await?;
        let machine = system.domain();
        let page = PagePool::new(machine).share(backend.domain, 1)?;
        let ring = CommandFront::new(Dialect::PvCalls, page.shared());
        let port = machine.open_port(backend.domain, Arc::new(Signal::new()))?;
        let nodes = [("version", 1), ("port", port.0), ("ring-ref", page.grants()[0].0)];
        for (name, value) in nodes {
            store.write(&format!("{PATH}/{name}"), value.to_string()).await?;
        }
        switch_state(store, PATH, State::Initialised).await?;
        watch.wait_for(|state| state == State::Connected).await?;
        switch_state(store, PATH, State::Connected).await?;
        Ok((Device { machine, page, ring, port, next: 0 }, watch))
    }

    async fn storm(&mut self, storm: &str, random: impl FnMut() -> [u8; 16], count: &Cell<u64>) {
        match storm {
            "events" => loop {
                self.machine.notify(self.port);
                count.set(count.get() + 1);
                yield_now().await;
            },
            "garbage" => self.garbage(random, count).await,
            "commands" => loop {
                self.fill(|next| {
                    let socket = u64::from(next / 2);
                    let new = Call::Socket { family: Family::V4 };
                    (socket, if next % 2 == 0 { new } else { Call::Release { reuse: false } })
                });
                self.take_answers(count).await;
            },
            _ => {
                let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
                let mut calls = vec![
                    Call::Listen { backlog: 1 },
                    Call::Bind { addr: any },
                    Call::Socket { family: Family::V4 },
                ];
                while let Some(call) = calls.pop() {
                    self.push(LISTENER, call);
                }
                self.take_answers(count).await;
                loop {
                    self.fill(|next| {
                        let (grant, port) = (GrantRef(next % 4096), Port(next % 64));
                        let ring = RingOffer { grants: RingGrants::Indexes(grant), port };
                        (LISTENER, Call::Accept { new: LISTENER + 1 + u64::from(next), ring })
                    });
                    self.take_answers(count).await;
                }
            }
        }
    }

    fn push(&mut self, socket: u64, call: Call) {
        let request = Request { id: self.next, socket, call };
        self.next = self.next.wrapping_add(1);
        self.ring.push(self.page.shared(), &request).expect("there is room");
    }

    fn fill(&mut self, call: impl Fn(u32) -> (u64, Call)) {
        while self.ring.free() > 0 {
            let (socket, call) = call(self.next);
            self.push(socket, call);
        }
    }

    /// Shows the backend what was pushed, and takes all answers.
    async fn take_answers(&mut self, count: &Cell<u64>) {
        let page = self.page.shared();
        if self.ring.publish(page).is_due() {
            self.machine.notify(self.port);
        }
        while self.ring.free() < self.ring.slots() {
            if !self.ring.final_check(page) {
                yield_now().await;
            }
            // A backend's answers are possible.
            while let Ok(Some(_)) = self.ring.pop(page) {
                count.set(count.get() + 1);
            }
        }
    }

    /// Writes random bytes into all slots.
    async fn garbage(&mut self, mut random: impl FnMut() -> [u8; 16], count: &Cell<u64>) {
        let page = self.page.shared();
        for round in 1u32.. {
            for at in (64..PAGE_SIZE).step_by(16) {
                page.write(at, &random());
            }
            let answered = page.load_u32(RESPONSES, Acquire);
            let slots = if round % IMPOSSIBLE == 0 { u32::MAX / 2 } else { self.ring.slots() };
            page.store_u32(REQUESTS, answered.wrapping_add(slots), Release);
            self.machine.notify(self.port);
            count.set(count.get() + 1);
            yield_now().await;
        }
    }
}

/// Makes connections to a listening socket of its own, or sockets that are only bound.
async fn sockets(system: &System, storm: &str, port: u16, count: &Cell<u64>) -> Result<(), String> {
    let sockets = system.sockets(Config::default()).await.map_err(text)?;
    if storm == "ports" {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        loop {
            let mut held = Vec::new();
            while let Ok(socket) = sockets.bind(any).await {
                count.set(count.get() + 1);
                held.push(socket);
            }
            yield_now().await;
        }
    }
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = sockets.bind(at).await.map_err(text)?;
    let accept = async || -> Result<(), String> {
        loop {
            drop(listener.accept().await.map_err(text)?);
        }
    };
    let connect = async || -> Result<(), String> {
        loop {
            match sockets.connect(at).await {
                Ok(_) => count.set(count.get() + 1),
                Err(_) => yield_now().await,
            }
        }
    };
    let accepts = try_join_all((0..AT_A_TIME).map(|_| accept()));
    let connects = try_join_all((0..AT_A_TIME).map(|_| connect()));
    try_join(accepts, connects).await.map(drop)
}

/// Writes nodes that the backend reads.
async fn nodes(system: &System, storm: &str, count: &Cell<u64>) -> Result<(), String> {
    let store = system.store();
    for round in 0u32.. {
        let writes = (0..8).map(|one| async move {
            let number = round.wrapping_mul(8).wrapping_add(one);
            let (name, value) = match (storm, number % 4) {
                ("states", _) => ("state".to_string(), (number % 8).to_string()),
                (_, 0) => ("port".to_string(), number.to_string()),
                (_, 1) => ("ring-ref".to_string(), "garbage".repeat(100)),
                (_, 2) => (format!("new-{}", number % 400), String::new()),
                _ => ("version".to_string(), number.to_string()),
            };
            // Its quota may be at its end.
            let _ = store.write(&format!("{PATH}/{name}"), value).await;
        });
        join_all(writes).await;
        count.set(count.get() + 8);
    }
    Ok(())
}
