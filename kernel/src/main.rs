//! The image that comes with XenSock: the kernel with the apps `http`, `echo` and `fetch`.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use apps::config::{Config, MAX_LENGTH, StackChoice};
use apps::{Context, Environment, Metric};
use core::future::pending;
use core::pin::pin;
use embassy_time::Instant;
use futures_util::future::{select, try_join};
use kernel::System;
use netfront::{Capture, Resolver};
use xensock::front;

kernel::entry!(main);

/// Bytes of frames that are kept until somebody fetches them.
const TRACED: usize = 1 << 20;

// The kernel must keep one byte more than is allowed, so that a line that is too long is reported.
const _: () = assert!(MAX_LENGTH < kernel::COMMAND_LINE_SIZE);

async fn main(system: System) -> Result<(), String> {
    let config = Config::parse(system.command_line()).map_err(|error| error.to_string())?;
    let ring_order = config.ring_order.map(u32::from);
    let sockets = front::Config { ring_order, ..front::Config::default() };
    let context = Context::new(Guest(system.clone()));
    let over_xensock = async {
        let stack = system.sockets(sockets).await.map_err(|error| error.to_string())?;
        let names = Resolver::new(&stack, &config.network.dns);
        apps::run(&config, &stack, &names, &context).await.map_err(|error| error.to_string())
    };
    let over_netfront = async {
        let stack = config.network.stack(0);
        let since_boot = core::time::Duration::from_micros(Instant::now().as_micros());
        let boot = system.wall_clock().unwrap_or_default().saturating_sub(since_boot);
        let capture = config.trace.map(|port| (port, Capture::new(TRACED, boot)));
        let kept = capture.as_ref().map(|(_, capture)| capture.clone());
        let stack = system.network(Default::default(), stack, kept).await;
        let stack = stack.map_err(|error| error.to_string())?;
        let app = pin!(apps::run(&config, &stack, &stack, &context));
        let traced = pin!(async {
            if let Some((port, capture)) = capture {
                trace(&system, sockets, port, &capture).await;
            }
            pending().await
        });
        select(app, traced).await.factor_first().0.map_err(|error| error.to_string())
    };
    match config.stack {
        StackChoice::XenSock => over_xensock.await,
        StackChoice::NetFront => over_netfront.await,
        // The first error ends both.
        StackChoice::Both => try_join(over_xensock, over_netfront).await.map(drop),
    }
}

/// Serves an interface's frames over dom0's sockets. The app runs on if that fails.
async fn trace(system: &System, sockets: front::Config, port: u16, capture: &Capture) {
    let ended = match system.sockets(sockets).await {
        Ok(sockets) => apps::trace::serve(&sockets, port, capture).await,
        Err(error) => return log::error!("trace: cannot use dom0's sockets: {error}"),
    };
    let Err(error) = ended;
    log::error!("trace: {error}");
}

/// This guest, as the apps see it.
struct Guest(System);

impl Environment for Guest {
    fn metrics(&self) -> Vec<Metric> {
        self.0.snapshot().metrics().collect()
    }

    fn free_memory(&self) -> u64 {
        let now = self.0.snapshot();
        now.heap_total_bytes - now.heap_used_bytes + now.free_pages * xen::PAGE_SIZE as u64
    }

    fn socket_memory(&self) -> u64 {
        self.0.snapshot().socket_bytes
    }

    fn has_room(&self, bytes: usize) -> bool {
        kernel::memory::has_room(bytes)
    }

    fn listening(&self) {
        self.0.listening();
    }
}
