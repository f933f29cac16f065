//! The kernel's image with the apps that come with it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image {
    extern crate alloc;

    use alloc::string::{String, ToString};
    use futures_util::future::try_join;
    use kernel::System;
    use kernel::apps;
    use kernel::config::{Config, StackChoice};
    use kernel::metrics::Metrics;
    use net::Resolver;
    use xensock::front;

    kernel::entry!(main);

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
            let stack = system.network(Default::default(), stack).await;
            let stack = stack.map_err(|error| error.to_string())?;
            apps::run(&config, &stack, &stack, &metrics).await.map_err(|error| error.to_string())
        };
        match config.stack {
            StackChoice::XenSock => over_xensock.await,
            StackChoice::NetFront => over_netfront.await,
            // Whichever fails first is told, and ends both.
            StackChoice::Both => try_join(over_xensock, over_netfront).await.map(drop),
        }
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this program is an operating system's kernel: build it with `make kernel`");
    std::process::exit(1);
}
