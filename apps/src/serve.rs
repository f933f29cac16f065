//! The accept loop that servers share.

use crate::Context;
use crate::wire::WireError;
use alloc::string::{String, ToString};
use core::convert::Infallible;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use edge_nal::{TcpAccept, TcpBind};
use embassy_time::{Duration, Timer};
use futures_util::StreamExt;
use futures_util::future::Either;
use futures_util::stream::FuturesUnordered;
use thiserror::Error;

/// How often `accept` may fail in a row while no connection is open. With the pauses, half a
/// minute.
const MAX_FAILURES: u32 = 8;

/// The first pause after a failure. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause while connections are open: each one that ends may free the missing resource.
const BUSY_PAUSE: Duration = Duration::from_millis(800);

/// Why a server ended.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages explain them")]
pub enum ServeError {
    #[error("cannot listen on port {port}: {reason}")]
    Bind { port: u16, reason: String },
    #[error("cannot accept connections any more: {reason}")]
    Accept { reason: String },
}

/// Listens on `port` of all addresses.
pub async fn bind<S: TcpBind>(stack: &S, port: u16) -> Result<S::Accept<'_>, ServeError> {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let bound = stack.bind(any).await;
    bound.map_err(|error| ServeError::Bind { port, reason: error.to_string() })
}

/// The result of one of the loop's futures.
enum Event<S, E> {
    Accepted(Result<(SocketAddr, S), E>),
    Ended,
}

/// Accepts connections and serves each with `handler`, at most `limit` at once. Others wait in the
/// listener's backlog. Returns only if the listener keeps failing.
///
/// `accept` is in the same set of futures as the connections. So a wake polls one future only,
/// and an `accept` that has begun is never dropped, which could lose a connection.
pub async fn serve<'a, A, H>(
    acceptor: &'a A,
    limit: usize,
    handler: H,
    context: &Context,
) -> Result<Infallible, ServeError>
where
    A: TcpAccept,
    H: AsyncFn(A::Socket<'a>) -> Result<(), WireError>,
{
    let handler = &handler;
    let accept = |pause: Option<Duration>| {
        Either::Left(async move {
            if let Some(pause) = pause {
                Timer::after(pause).await;
            }
            Event::Accepted(acceptor.accept().await)
        })
    };
    let mut open = 0;
    let mut accepting = true;
    // Failures in a row: all, and the last ones without an open connection.
    let (mut failures, mut alone) = (0u32, 0);
    let tasks = &mut FuturesUnordered::new();
    tasks.push(accept(None));
    loop {
        let event = tasks.next().await;
        accepting &= matches!(event, Some(Event::Ended));
        match event {
            Some(Event::Accepted(Ok((peer, socket)))) => {
                (failures, alone) = (0, 0);
                open += 1;
                tasks.push(Either::Right(async move {
                    let _open = context.connection();
                    log::debug!("{peer}: connected");
                    match handler(socket).await {
                        Ok(()) => log::debug!("{peer}: done"),
                        Err(error) => {
                            context.counters.connections_failed.add(1);
                            log::debug!("{peer}: {error}");
                        }
                    }
                    Event::Ended
                }));
            }
            Some(Event::Accepted(Err(error))) => {
                failures += 1;
                alone = if open == 0 { alone + 1 } else { 0 };
                if failures.is_power_of_two() {
                    log::warn!("accept failed, {failures} times in a row: {error}");
                }
                if alone > MAX_FAILURES {
                    return Err(ServeError::Accept { reason: error.to_string() });
                }
            }
            Some(Event::Ended) => open -= 1,
            // Impossible: there is always an `accept` or a connection.
            None => {}
        }
        if !accepting && open < limit {
            let pause = |failures: u32| FIRST_PAUSE * (1 << (failures - 1).min(MAX_FAILURES));
            tasks.push(accept(match failures {
                0 => None,
                _ if open > 0 => Some(pause(failures).min(BUSY_PAUSE)),
                _ => Some(pause(alone.max(1))),
            }));
            accepting = true;
        }
    }
}
