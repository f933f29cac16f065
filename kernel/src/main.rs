//! The kernel's image with the apps that come with it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image {
    extern crate alloc;

    use alloc::string::{String, ToString};
    use kernel::System;
    use kernel::apps;
    use kernel::config::Config;
    use kernel::metrics::Metrics;
    use xensock::front;

    kernel::entry!(main);

    async fn main(system: System) -> Result<(), String> {
        let config = Config::parse(system.command_line()).map_err(|error| error.to_string())?;
        let ring_order = config.ring_order.map(u32::from);
        let sockets = front::Config { ring_order, ..front::Config::default() };
        let stack = system.sockets(sockets).await.map_err(|error| error.to_string())?;
        let metrics = Metrics::new(move || system.snapshot());
        apps::run(&config, &stack, &metrics).await.map_err(|error| error.to_string())
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this program is an operating system's kernel: build it with `make kernel`");
    std::process::exit(1);
}
