//! The accept loop that servers share.

use super::AppError;
use crate::metrics::Metrics;
use alloc::string::ToString;
use core::convert::Infallible;
use core::net::SocketAddr;
use edge_nal::TcpAccept;
use embassy_time::{Duration, Timer};
use futures_util::StreamExt;
use futures_util::future::Either;
use futures_util::stream::FuturesUnordered;

/// How often `accept` may fail in a row. With the pauses, that is half a minute.
const MAX_FAILURES: u32 = 8;

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What woke the loop.
enum Event<S, E> {
    Accepted(Result<(SocketAddr, S), E>),
    Ended,
}

/// Accepts connections and serves each with `handler`, at most `limit` at once; others wait in the
/// listener's backlog. Returns only when the listener fails for good.
///
/// `accept` stands in the same set as the connections: a wake polls only the future that it is
/// meant for, and an `accept` under way is never dropped, so no connection is lost with it.
pub async fn serve<'a, A, H>(
    acceptor: &'a A,
    limit: usize,
    handler: H,
    metrics: &Metrics,
) -> Result<Infallible, AppError>
where
    A: TcpAccept,
    H: AsyncFn(SocketAddr, A::Socket<'a>),
{
    let handler = &handler;
    let accept = |failures: u32| {
        Either::Left(async move {
            if failures > 0 {
                Timer::after(FIRST_PAUSE * (1 << (failures - 1).min(MAX_FAILURES))).await;
            }
            Event::Accepted(acceptor.accept().await)
        })
    };
    let mut open = 0;
    let mut accepting = true;
    let mut failures = 0;
    let tasks = &mut FuturesUnordered::new();
    tasks.push(accept(0));
    loop {
        match tasks.next().await {
            Some(Event::Accepted(Ok((peer, socket)))) => {
                failures = 0;
                open += 1;
                tasks.push(Either::Right(async move {
                    let _open = metrics.counters.connection();
                    log::debug!("{peer}: connected");
                    handler(peer, socket).await;
                    log::debug!("{peer}: done");
                    Event::Ended
                }));
                accepting = false;
            }
            Some(Event::Accepted(Err(error))) => {
                failures += 1;
                log::warn!("accept failed, {failures} times in a row: {error}");
                // Connections that end give back what may be lacking.
                if failures > MAX_FAILURES && open == 0 {
                    return Err(AppError::Accept { reason: error.to_string() });
                }
                accepting = false;
            }
            Some(Event::Ended) => open -= 1,
            // The set always holds an `accept` or a connection.
            None => accepting = false,
        }
        if !accepting && open < limit {
            tasks.push(accept(failures));
            accepting = true;
        }
    }
}
