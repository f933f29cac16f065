//! The apps of `xensock-kernel`, and their command line.
//!
//! The apps use the traits of `edge-nal` for sockets and [`Environment`] for everything else, so
//! they run over XenSock, over a stack in the guest, and in tests on a host.
//!
//! ```
//! use apps::config::{App, Config};
//!
//! let config = Config::parse(b"app=echo port=7007").unwrap();
//! assert_eq!(config.app, App::Echo { port: 7007 });
//! let error = Config::parse(b"app=http port=0").unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "command line, column 10: `port=0`: a port is a whole number from 1 to 65535"
//! );
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bench;
pub mod config;
mod context;
mod datagrams;
mod echo;
pub mod fetch;
mod http;
#[cfg(feature = "tls")]
mod secure;
mod serve;
pub mod trace;
mod wire;

pub use context::{Context, Environment, Metric};
pub use netfront::{NameServers, Resolver, TcpOnly};
#[cfg(feature = "tls")]
pub use secure::SecureError;
pub use serve::ServeError;

use alloc::string::{String, ToString};
use config::{App, Config};
use core::convert::Infallible;
use core::pin::pin;
use core::time::Duration;
use datagrams::Server;
use edge_nal::{Dns, TcpAccept, TcpBind, TcpConnect, UdpBind};
use futures_util::future::{Either, select};
use thiserror::Error;

/// Why an app failed.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages explain them")]
pub enum AppError {
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[cfg(feature = "tls")]
    #[error("tls: {0}")]
    Tls(#[from] SecureError),
    #[error("fetch {url}: {error}")]
    Fetch { url: String, error: fetch::FetchError },
}

/// Runs the app that `config` names. `names` resolves host names. A server returns only an error,
/// a client when it has finished.
pub async fn run<S>(
    config: &Config,
    stack: &S,
    names: &impl Dns,
    context: &Context,
) -> Result<(), AppError>
where
    S: TcpBind + TcpConnect + UdpBind,
{
    let idle = config.idle_timeout;
    match &config.app {
        #[cfg(feature = "tls")]
        App::Http { port, tls: true } => {
            let server = secure::server(context)?;
            let acceptor = serve::bind(stack, *port).await?;
            log::info!("http: serving on port {port}, over TLS");
            context.listening();
            context.pattern();
            let memory = http::CONNECTION_MEMORY + secure::CONNECTION_MEMORY;
            let serve_one = async |socket| {
                let stream = secure::accept(socket, &server, idle, context).await?;
                http::converse(stream, idle, context).await
            };
            let limit = limit(config, context, memory);
            match serve::serve(&acceptor, limit, serve_one, context).await? {}
        }
        App::Http { port, .. } => {
            let acceptor = serve::bind(stack, *port).await?;
            log::info!("http: serving on port {port}");
            context.listening();
            // First, because the limit depends on the memory that is left.
            context.pattern();
            let limit = limit(config, context, http::CONNECTION_MEMORY);
            match serve_http(&acceptor, limit, idle, context).await? {}
        }
        App::Echo { port } => {
            let acceptor = serve::bind(stack, *port).await?;
            log::info!("echo: serving on port {port}");
            context.listening();
            let limit = limit(config, context, echo::CONNECTION_MEMORY);
            let serve_one = async |socket| echo::echo(socket, idle, context).await;
            let streams = serve::serve(&acceptor, limit, serve_one, context);
            let datagrams = datagrams::serve(stack, *port, Server::Echo, context);
            match select(pin!(streams), pin!(datagrams)).await {
                Either::Left((ended, _)) => match ended? {},
                Either::Right((never, _)) => match never {},
            }
        }
        App::Bench { port, bytes } => {
            context.pattern();
            let limit = limit(config, context, bench::CONNECTION_MEMORY);
            match bench::run(stack, *port, *bytes, (limit, idle), context).await? {}
        }
        App::Fetch { url } => {
            let report = fetch::fetch(url, stack, names, idle, context).await;
            let report = report.map_err(|error| AppError::Fetch { url: url.to_string(), error })?;
            log::info!("fetch {url}: {report}");
            Ok(())
        }
    }
}

/// Serves HTTP to the clients of `acceptor`.
async fn serve_http<A: TcpAccept>(
    acceptor: &A,
    limit: usize,
    idle: Option<Duration>,
    context: &Context,
) -> Result<Infallible, ServeError> {
    let serve_one = async |socket| http::converse(socket, idle, context).await;
    serve::serve(acceptor, limit, serve_one, context).await
}

/// The most connections of a server at once.
fn limit(config: &Config, context: &Context, app_bytes: usize) -> usize {
    config.max_connections.unwrap_or_else(|| context.connection_limit(app_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_on_the_command_line_overrides_the_memory() {
        let context = Context::new(());
        let mut config = Config::default();
        assert_eq!(limit(&config, &context, 1 << 14), 16);
        config.max_connections = Some(3);
        assert_eq!(limit(&config, &context, 1 << 14), 3);
    }
}
