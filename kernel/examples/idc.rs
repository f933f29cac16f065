//! One end of the exam of IDC (`idc::exam`), or of its load. The other end is another guest, or
//! `linux/examples/idc.rs`.
//!
//! | word | |
//! |---|---|
//! | `serve=ADDRESS` | serves at an address, such as `any/exam` |
//! | `examine=ADDRESS` | examines the service at an address, such as `xen:7/exam`, and ends |
//! | `load=ADDRESS` | keeps the service at an address busy |
//! | `clients=N` | serves so many at a time |
//! | `listen=IP:PORT` | TCP through dom0's sockets, at an address that the other end can reach |
#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::{String, ToString};
use core::fmt::Display;
use core::net::SocketAddr;
use core::pin::pin;
use core::str::FromStr;
use embassy_time::{Instant, Timer};
use futures_util::future::{Either, select};
use idc::exam::{examine, load, serve};
use idc::tcp::Tcp;
use idc::transport::Transport;
use idc::xen::DEFAULT_ORDER;
use idc::{Address, Node};
use kernel::System;

kernel::entry!(main);

async fn main(system: System) -> Result<(), String> {
    let Some(listen) = word::<SocketAddr>(&system, "listen=")? else {
        let transport = system.idc(DEFAULT_ORDER).await.map_err(text)?;
        return run(&system, transport).await;
    };
    let sockets = system.sockets(Default::default()).await.map_err(text)?;
    let acceptor = sockets.bind(listen).await.map_err(text)?;
    let transport = Tcp::new(&sockets, Some(listen));
    let door = transport.clone();
    match select(pin!(door.serve(&acceptor)), pin!(run(&system, transport))).await {
        Either::Left((error, _)) => Err(text(error)),
        Either::Right((result, _)) => result,
    }
}

/// The value of a word of the command line.
fn word<T: FromStr<Err: Display>>(system: &System, name: &str) -> Result<Option<T>, String> {
    let line = core::str::from_utf8(system.command_line()).map_err(text)?;
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(name));
    value.map(|value| value.parse().map_err(text)).transpose()
}

fn text(error: impl Display) -> String {
    error.to_string()
}

async fn run(system: &System, transport: impl Transport) -> Result<(), String> {
    let node = Node::new(transport, system.random().map_err(text)?);
    system.spawn(show_usage(system.clone()));
    if let Some(address) = word::<Address>(system, "serve=")? {
        let clients = word(system, "clients=")?.unwrap_or(1);
        log::info!("serving at {address}");
        return Err(text(serve(&node, &address, clients).await));
    }
    if let Some(address) = word(system, "examine=")? {
        let start = Instant::now();
        examine(&node, &address, |step| log::info!("passed: {step}")).await?;
        log::info!("the exam is passed in {} ms", start.elapsed().as_millis());
        return Ok(());
    }
    match word(system, "load=")? {
        Some(address) => {
            let Err(error) = load(&node, &address, |load| log::info!("{load}")).await;
            Err(error)
        }
        None => Err("write serve=, examine= or load=, and an address".to_string()),
    }
}

/// Logs, again and again, what is in use.
async fn show_usage(system: System) {
    let mut last = [0; 4];
    loop {
        let now = system.snapshot();
        let usage = [now.grants_in_use, now.foreign_pages, now.ports_open, now.quarantined_pages];
        if core::mem::replace(&mut last, usage) != usage {
            let [grants, foreign, ports, quarantined] = usage;
            log::info!(
                "in use: {grants} grants, {foreign} foreign pages, {ports} ports, {quarantined} \
                 quarantined"
            );
        }
        Timer::after_millis(200).await;
    }
}
