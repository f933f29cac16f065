//! Makes the socket calls of its command line over both devices for sockets, and prints what each
//! returns: `connect=ADDRESS:PORT`, `bind=ADDRESS:PORT`. Then it binds sockets until that fails.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddr};
use embassy_time::Timer;
use kernel::System;
use kernel::machine::Domain;
use xen::Errno;
use xensock::front::{Config, Frontend};
use xensock::wire::Dialect;

kernel::entry!(main);

/// More than the test permits.
const MANY: usize = 100;

fn name(error: Errno) -> &'static str {
    error.name().unwrap_or("another error")
}

/// Binds a socket and closes it. One of the other device may still be closing.
async fn bind(sockets: &Frontend<Domain>, address: SocketAddr) -> Result<(), Errno> {
    loop {
        match sockets.bind(address).await {
            Err(Errno::EADDRINUSE) => Timer::after_millis(20).await,
            result => return result.map(drop),
        }
    }
}

async fn main(system: System) {
    let both = Dialect::ALL.map(|dialect| {
        let path = format!("device/{}/0", dialect.device());
        let config = Config { dialect, ..Config::default() };
        let (sockets, driver) =
            Frontend::new(system.domain(), system.store().clone(), &path, config);
        system.spawn(async move {
            driver.run().await;
        });
        (dialect.device(), sockets)
    });
    let line = core::str::from_utf8(system.command_line()).unwrap_or_default();
    let calls = line.split_whitespace().filter_map(|word| {
        let (call, address) = word.split_once('=')?;
        Some((call, address.parse::<SocketAddr>().ok()?))
    });
    for (call, address) in calls {
        for (device, sockets) in &both {
            let result = match call {
                "connect" => sockets.connect(address).await.map(drop),
                _ => bind(sockets, address).await,
            };
            match result {
                Ok(()) => log::info!("{device}: {call} {address}: ok"),
                Err(error) => log::info!("{device}: {call} {address}: {}", name(error)),
            }
        }
    }
    let mut held = Vec::new();
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    for (_, sockets) in both.iter().cycle().take(MANY) {
        match sockets.bind(any).await {
            Ok(socket) => held.push(socket),
            Err(error) => {
                log::info!("{} sockets, then {}", held.len(), name(error));
                break;
            }
        }
    }
    drop(held);
    for (_, sockets) in both {
        sockets.shutdown().await;
    }
}
