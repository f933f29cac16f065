//! The image that comes with XenSock: the kernel with the apps `http`, `echo`, `fetch`, `bench`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use apps::config::{Config, MAX_LENGTH, StackChoice, Stacks};
use apps::{Context, Environment, Metric, NameServers, Resolver};
use edge_nal::{TcpBind, TcpConnect, UdpBind, UdpConnect};
#[cfg(all(feature = "xensock", feature = "netfront"))]
use either::{Servers, Stack};
use kernel::System;

#[cfg(all(feature = "xensock", feature = "netfront"))]
mod either;

kernel::entry!(main);

/// The stacks of this image.
const STACKS: Stacks =
    Stacks { xensock: cfg!(feature = "xensock"), netfront: cfg!(feature = "netfront") };

// The kernel keeps at least one byte more than is allowed, so that a longer line is reported.
const _: () = assert!(MAX_LENGTH < kernel::COMMAND_LINE_SIZE);

async fn main(system: System) -> Result<(), String> {
    let config = Config::parse_for(STACKS, system.command_line()).map_err(text)?;
    let context = Context::new(Guest(system.clone()));
    match config.stack {
        #[cfg(feature = "xensock")]
        StackChoice::XenSock => over_xensock(&system, &config, &context).await,
        #[cfg(feature = "netfront")]
        StackChoice::NetFront => over_netfront(&system, &config, &context).await,
        #[cfg(all(feature = "xensock", feature = "netfront"))]
        StackChoice::Both => {
            let xensock = over_xensock(&system, &config, &context);
            let netfront = over_netfront(&system, &config, &context);
            // The first error ends both.
            futures_util::future::try_join(xensock, netfront).await.map(drop)
        }
        #[cfg(not(all(feature = "xensock", feature = "netfront")))]
        _ => Err("this image has no stack".into()),
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// Runs the app over a stack.
async fn run<S>(
    system: &System,
    config: &Config,
    stack: &S,
    servers: impl NameServers,
    context: &Context,
) -> Result<(), String>
where
    S: TcpBind + TcpConnect + UdpBind + UdpConnect,
{
    // Makes the source of random numbers ready. Without one, the numbers of queries are those of
    // the clock.
    let source = system.random().await.map(drop);
    #[cfg(feature = "tls")]
    if config.tls() {
        source.map_err(|_| tls::Failure::NoRandomNumbers.to_string())?;
    }
    #[cfg(not(feature = "tls"))]
    let _ = source;
    let random = || kernel::entropy::number() as u16;
    let names = Resolver::new(stack, servers, random);
    apps::run(config, stack, &names, context).await.map_err(text)
}

/// The configuration of the sockets in dom0.
#[cfg(feature = "xensock")]
fn sockets(config: &Config) -> xensock::front::Config {
    let ring_order = config.ring_order.map(u32::from);
    xensock::front::Config { ring_order, ..xensock::front::Config::default() }
}

/// Runs the app over sockets in dom0.
#[cfg(feature = "xensock")]
async fn over_xensock(system: &System, config: &Config, context: &Context) -> Result<(), String> {
    let stack = system.sockets(sockets(config)).await.map_err(text)?;
    let servers = config.network.dns.clone();
    #[cfg(feature = "netfront")]
    let (stack, servers) = (Stack::XenSock(stack), Servers::XenSock(servers));
    run(system, config, &stack, servers, context).await
}

/// Runs the app over the guest's own stack, and the trace beside it.
#[cfg(feature = "netfront")]
async fn over_netfront(system: &System, config: &Config, context: &Context) -> Result<(), String> {
    /// Bytes of frames that are kept until a reader fetches them.
    const TRACED: usize = 1 << 20;

    let uptime = embassy_time::Instant::now().as_micros();
    let uptime = core::time::Duration::from_micros(uptime);
    let boot = system.wall_clock().unwrap_or_default().saturating_sub(uptime);
    let capture = config.trace.map(|_| netfront::Capture::new(TRACED, boot));
    let stack = config.network.stack(0);
    let stack = system.network(Default::default(), stack, capture.clone()).await.map_err(text)?;
    let servers = stack.clone();
    #[cfg(feature = "xensock")]
    let (stack, servers) = (Stack::NetFront(stack), Servers::NetFront(servers));
    let app = core::pin::pin!(run(system, config, &stack, servers, context));
    let traced = core::pin::pin!(async {
        #[cfg(feature = "xensock")]
        if let (Some(port), Some(capture)) = (config.trace, &capture) {
            trace(system, config, port, capture).await;
        }
        core::future::pending().await
    });
    futures_util::future::select(app, traced).await.factor_first().0
}

/// Serves an interface's frames over dom0's sockets. The app continues if that fails.
#[cfg(all(feature = "xensock", feature = "netfront"))]
async fn trace(system: &System, config: &Config, port: u16, capture: &netfront::Capture) {
    let ended = match system.sockets(sockets(config)).await {
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

    fn files(&self) -> Vec<&'static [u8]> {
        self.0.modules().map(|module| module.bytes).collect()
    }

    fn clock(&self) -> fn() -> Option<core::time::Duration> {
        kernel::wall_clock
    }

    fn listening(&self) {
        self.0.listening();
    }
}
