//! The apps that the kernel can run.
//!
//! They know nothing of Xen: they are written for the traits of `edge-nal`, so they run over
//! XenSock, over an in-guest stack, and on a host under test. Their connections are served from one
//! [`FuturesUnordered`](futures_util::stream::FuturesUnordered), so a wake polls the connection that
//! it is meant for and no other.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod config;
mod context;
pub mod echo;
pub mod fetch;
pub mod http;
mod serve;
pub mod trace;
mod wire;

pub use context::{Context, Environment, Metric, OpenConnection};
pub use netfront::Resolver;
pub use serve::ServeError;

use alloc::string::{String, ToString};
use config::{App, Config};
use edge_nal::{Dns, TcpBind, TcpConnect};
use thiserror::Error;

/// Why an app ended without having done its work.
#[derive(Debug, Error)]
pub enum AppError {
    /// The server ended.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The URL could not be fetched.
    #[error("fetch {url}: {error}")]
    Fetch {
        /// The URL.
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
    context: &Context,
) -> Result<(), AppError>
where
    S: TcpBind + TcpConnect,
{
    let idle = config.idle_timeout;
    match &config.app {
        App::Http { port } => {
            let acceptor = serve::bind(stack, *port).await?;
            log::info!("http: serving on port {port}");
            context.listening();
            let limit = limit(config, context, http::CONNECTION_MEMORY);
            let serve_one = async |socket| http::converse(socket, idle, context).await;
            match serve::serve(&acceptor, limit, serve_one, context).await? {}
        }
        App::Echo { port } => {
            let acceptor = serve::bind(stack, *port).await?;
            log::info!("echo: serving on port {port}");
            context.listening();
            let limit = limit(config, context, echo::CONNECTION_MEMORY);
            let serve_one = async |socket| echo::echo(socket, idle, context).await;
            match serve::serve(&acceptor, limit, serve_one, context).await? {}
        }
        App::Fetch { url } => {
            let report = fetch::fetch(url, stack, names, idle, context).await;
            let report = report.map_err(|error| AppError::Fetch { url: url.to_string(), error })?;
            log::info!("fetch {url}: {report}");
            Ok(())
        }
    }
}

fn limit(config: &Config, context: &Context, app_bytes: usize) -> usize {
    config.max_connections.unwrap_or_else(|| context.connection_limit(app_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_overrules_the_memory() {
        let context = Context::new(());
        let mut config = Config::default();
        assert_eq!(limit(&config, &context, 1 << 14), 16);
        config.max_connections = Some(3);
        assert_eq!(limit(&config, &context, 1 << 14), 3);
    }
}
