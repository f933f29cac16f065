//! The kernel's image with the apps that come with it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image {
    extern crate alloc;

    use alloc::string::{String, ToString};
    use core::future::pending;
    use core::pin::pin;
    use embassy_time::Instant;
    use futures_util::future::{select, try_join};
    use kernel::System;
    use kernel::apps;
    use kernel::config::{Config, StackChoice};
    use kernel::metrics::Metrics;
    use netfront::{Capture, Resolver};
    use xensock::front;

    kernel::entry!(main);

    /// Bytes of frames that are kept until somebody fetches them.
    const TRACED: usize = 1 << 20;

    async fn main(system: System) -> Result<(), String> {
        let config = Config::parse(system.command_line()).map_err(|error| error.to_string())?;
        let ring_order = config.ring_order.map(u32::from);
        let sockets = front::Config { ring_order, ..front::Config::default() };
        let guest = system.clone();
        let metrics = Metrics::new(move || guest.snapshot());
        let over_xensock = async {
            let stack = system.sockets(sockets).await.map_err(|error| error.to_string())?;
            let names = Resolver::new(&stack, &config.network.dns);
            apps::run(&config, &stack, &names, &metrics).await.map_err(|error| error.to_string())
        };
        let over_netfront = async {
            let stack = config.network.stack(0);
            let since_boot = core::time::Duration::from_micros(Instant::now().as_micros());
            let boot = system.wall_clock().unwrap_or_default().saturating_sub(since_boot);
            let capture = config.trace.map(|port| (port, Capture::new(TRACED, boot)));
            let kept = capture.as_ref().map(|(_, capture)| capture.clone());
            let stack = system.network(Default::default(), stack, kept).await;
            let stack = stack.map_err(|error| error.to_string())?;
            let app = pin!(apps::run(&config, &stack, &stack, &metrics));
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
            // Whichever fails first is told, and ends both.
            StackChoice::Both => try_join(over_xensock, over_netfront).await.map(drop),
        }
    }

    /// Streams an interface's frames by dom0's sockets. An app can do without.
    async fn trace(system: &System, sockets: front::Config, port: u16, capture: &Capture) {
        let ended = match system.sockets(sockets).await {
            Ok(sockets) => apps::trace::serve(&sockets, port, capture).await,
            Err(error) => return log::error!("trace: dom0's sockets cannot be had: {error}"),
        };
        let Err(error) = ended;
        log::error!("trace: {error}");
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this program is an operating system's kernel: build it with `make kernel`");
    std::process::exit(1);
}
