//! The servers that benchmarks measure: they move bytes and do nothing else with them.
//!
//! | port | server |
//! |---|---|
//! | `port` | a sink: reads and discards |
//! | `port` + 1 | sends back what it receives |
//! | `port` + 2 | a source: sends `mb` MiB of zeroes, then closes |
//! | `port` + 3 | the HTTP server, for requests and for the guest's numbers |
//!
//! The first three also serve datagrams; the source sends as many as a datagram requests.

use crate::datagrams;
use crate::serve::{self, ServeError};
use crate::wire::{Deadline, Wire, WireError};
use crate::{Context, serve_http};
use core::convert::Infallible;
use core::pin::pin;
use core::time::Duration;
use edge_nal::{TcpBind, TcpShutdown, UdpBind};
use embedded_io_async::{Read, Write};
use futures_util::future::{Either, join3, select, try_join4};

/// The last port, counted from the first one.
pub const LAST_PORT: u16 = 3;

/// The buffer of a connection at first, in bytes: thousands of idle ones must fit into memory.
const SMALL: usize = 1 << 10;

/// The buffer of a connection that carries bulk, in bytes.
const LARGE: usize = 64 << 10;

/// The most memory that one connection takes, in bytes, without its socket.
pub const CONNECTION_MEMORY: usize = SMALL + LARGE + (2 << 10);

/// What a connection is for.
#[derive(Clone, Copy)]
enum Server {
    Sink,
    Echo,
    Source { bytes: u64 },
}

/// Serves on `port` and the next ones, at most `limit` connections on each.
pub async fn run<S: TcpBind + UdpBind>(
    stack: &S,
    port: u16,
    bytes: u64,
    (limit, idle): (usize, Option<Duration>),
    context: &Context,
) -> Result<Infallible, ServeError> {
    let sink = serve::bind(stack, port).await?;
    let echo = serve::bind(stack, port + 1).await?;
    let source = serve::bind(stack, port + 2).await?;
    let http = serve::bind(stack, port + LAST_PORT).await?;
    log::info!("bench: serving on ports {port} to {}", port + LAST_PORT);
    context.listening();
    let raw = async |acceptor, server| {
        let one = async |socket| converse(socket, server, idle, context).await;
        serve::serve(acceptor, limit, one, context).await
    };
    let streams = try_join4(
        raw(&sink, Server::Sink),
        raw(&echo, Server::Echo),
        raw(&source, Server::Source { bytes }),
        serve_http(&http, limit, idle, context),
    );
    let datagrams = |offset, server| datagrams::serve(stack, port + offset, server, context);
    let datagrams = join3(
        datagrams(0, datagrams::Server::Sink),
        datagrams(1, datagrams::Server::Echo),
        datagrams(2, datagrams::Server::Source),
    );
    match select(pin!(streams), pin!(datagrams)).await {
        Either::Left((ended, _)) => match ended?.0 {},
        Either::Right((never, _)) => match never.0 {},
    }
}

/// Serves one connection.
async fn converse<S>(
    socket: S,
    server: Server,
    idle: Option<Duration>,
    context: &Context,
) -> Result<(), WireError>
where
    S: Read + Write + TcpShutdown,
{
    let mut wire = Wire::new(socket, SMALL, Deadline::new(idle), context)?;
    match server {
        Server::Source { bytes } => {
            let block = context.buffer(LARGE).ok_or(WireError::NoMemory)?;
            let mut left = bytes;
            while left > 0 {
                let some = left.min(LARGE as u64);
                wire.write_all(&block[..some as usize]).await?;
                left -= some;
            }
        }
        Server::Sink | Server::Echo => loop {
            match wire.fill().await? {
                0 => break,
                // There is more to come, perhaps much.
                _ if wire.is_full() => wire.enlarge(LARGE),
                _ => {}
            }
            match server {
                Server::Echo => wire.echo().await?,
                _ => wire.consume(usize::MAX),
            }
            wire.deadline.extend();
        },
    }
    wire.close().await
}
