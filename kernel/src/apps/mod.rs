//! The apps that the kernel can run.
//!
//! They know nothing of Xen: they are written for the traits of `edge-nal`, so they run over
//! XenSock, over an in-guest stack, and on a host under test. Their connections are served from one
//! [`FuturesUnordered`](futures_util::stream::FuturesUnordered), so a wake polls the connection that
//! it is meant for and no other.

pub mod echo;
pub mod fetch;
pub mod http;
mod serve;
pub mod trace;
mod wire;

use crate::boot::stages::{self, Stage};
use crate::config::{App, Config};
use crate::metrics::Metrics;
use alloc::string::{String, ToString};
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use edge_nal::{Dns, TcpBind, TcpConnect};
use thiserror::Error;

/// Why an app ended without having done its work.
#[derive(Debug, Error)]
pub enum AppError {
    /// The port could not be listened on.
    #[error("cannot listen on port {port}: {reason}; is another server there?")]
    Bind {
        /// The port.
        port: u16,
        /// What the stack said.
        reason: String,
    },
    /// The listener fails again and again.
    #[error("cannot accept connections any more: {reason}")]
    Accept {
        /// What the stack said last.
        reason: String,
    },
    /// The URL could not be got.
    #[error("fetch {url}: {error}")]
    Fetch {
        /// What was to be got.
        url: String,
        /// What went wrong.
        error: fetch::FetchError,
    },
}

/// Runs the app that `config` asks for; `names` knows hosts. A server never returns without an error; a client returns
/// when its work is done, and the kernel may then shut down.
pub async fn run<S>(
    config: &Config,
    stack: &S,
    names: &impl Dns,
    metrics: &Metrics,
) -> Result<(), AppError>
where
    S: TcpBind + TcpConnect,
{
    match &config.app {
        App::Http { port } => {
            let acceptor = bind(stack, *port).await?;
            log::info!("http: serving on port {port}");
            match serve::serve(
                &acceptor,
                connection_limit(config, metrics, http::CONNECTION_MEMORY),
                async |_, socket| http::converse(socket, config.idle_timeout, metrics).await,
                metrics,
            )
            .await? {}
        }
        App::Echo { port } => {
            let acceptor = bind(stack, *port).await?;
            log::info!("echo: serving on port {port}");
            match serve::serve(
                &acceptor,
                connection_limit(config, metrics, echo::CONNECTION_MEMORY),
                async |_, socket| echo::echo(socket, config.idle_timeout, metrics).await,
                metrics,
            )
            .await? {}
        }
        App::Fetch { url } => {
            match fetch::fetch(url, stack, names, config.idle_timeout, metrics).await {
                Ok(report) => {
                    log::info!("fetch {url}: {report}");
                    Ok(())
                }
                Err(error) => Err(AppError::Fetch { url: url.to_string(), error }),
            }
        }
    }
}

async fn bind<S: TcpBind>(stack: &S, port: u16) -> Result<S::Accept<'_>, AppError> {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let bound = stack.bind(any).await;
    let bound = bound.map_err(|error| AppError::Bind { port, reason: error.to_string() })?;
    stages::mark(Stage::Listening);
    Ok(bound)
}

/// How many connections a server holds at once: what was asked for, or as many as fit in half of
/// the memory that is free when it starts.
fn connection_limit(config: &Config, metrics: &Metrics, app_bytes: usize) -> usize {
    if let Some(limit) = config.max_connections {
        return limit;
    }
    let snapshot = metrics.snapshot();
    let heap = snapshot.heap_total.saturating_sub(snapshot.heap_used);
    let free = heap.saturating_add(snapshot.free_pages.saturating_mul(4096));
    let each = snapshot.socket_bytes.saturating_add(app_bytes as u64).max(1);
    // Where the kernel does not know its memory, the lower bound holds.
    (free / 2 / each).clamp(16, 65536) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Snapshot;

    #[test]
    fn a_guest_of_64_mib_has_room_for_200_connections() {
        let snapshot = Snapshot {
            heap_total: 48 << 20,
            heap_used: 1 << 20,
            // The rings of draft 1's default order would be 256 KiB; PV Calls' order 4 is 64 KiB.
            socket_bytes: 68 << 10,
            ..Snapshot::default()
        };
        let metrics = Metrics::new(move || snapshot);
        let limit = connection_limit(&Config::default(), &metrics, http::CONNECTION_MEMORY);
        assert!((200..400).contains(&limit), "{limit}");
    }

    #[test]
    fn the_command_line_overrules_the_memory() {
        let metrics = Metrics::new(Snapshot::default);
        let mut config = Config::default();
        assert_eq!(connection_limit(&config, &metrics, 1 << 14), 16);
        config.max_connections = Some(3);
        assert_eq!(connection_limit(&config, &metrics, 1 << 14), 3);
    }
}
