//! Streams a network interface's frames to a client.

use crate::serve::{ServeError, bind};
use core::convert::Infallible;
use core::pin::pin;
use edge_nal::{TcpAccept, TcpBind};
use embassy_time::{Duration, Timer};
use embedded_io_async::Write;
use futures_util::future::{Either, select};
use netfront::Capture;

/// The pause after a failed `accept`.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves the frames that `capture` has kept, and then each new one, in libpcap's format. There
/// is one client at a time: a new one replaces the former.
pub async fn serve<S: TcpBind>(
    stack: &S,
    port: u16,
    capture: &Capture,
) -> Result<Infallible, ServeError> {
    let acceptor = bind(stack, port).await?;
    log::info!("trace: serving frames on port {port} of dom0");
    let mut accepted = acceptor.accept().await;
    loop {
        accepted = match accepted {
            Ok((peer, mut socket)) => {
                log::info!(
                    "trace: {peer} is connected; {} frames were lost before",
                    capture.lost()
                );
                let sending = pin!(send(&mut socket, capture));
                match select(sending, pin!(acceptor.accept())).await {
                    Either::Left((_, next)) => next.await,
                    Either::Right((next, _)) => next,
                }
            }
            Err(error) => {
                log::warn!("trace: accept failed: {error}");
                Timer::after(PAUSE).await;
                acceptor.accept().await
            }
        }
    }
}

async fn send<W: Write>(to: &mut W, capture: &Capture) -> Result<Infallible, W::Error> {
    to.write_all(&Capture::header()).await?;
    loop {
        to.write_all(&capture.next().await).await?;
    }
}
