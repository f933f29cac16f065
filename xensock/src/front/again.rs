//! Binding a socket again after the backend has returned.

use super::link::{Link, Session};
use core::cell::Cell;
use core::net::SocketAddr;
use embassy_time::{Duration, Timer};
use xen::{Errno, Machine};

/// The number of attempts to bind again, and the pauses between them: about half a minute in all.
/// The address may still be in use, by another socket or by connections that are being closed.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Binds a socket again in the present session; `what` is for the log. `None` if there is no
/// session, or the socket was closed: the next session tries again.
pub(super) async fn again<M: Machine, T>(
    link: &Link<M>,
    what: &str,
    addr: &Cell<SocketAddr>,
    is_closed: impl Fn() -> bool,
    mut bind: impl AsyncFnMut(&Session) -> Result<T, Errno>,
) -> Option<Result<T, Errno>> {
    let mut pause = PAUSE;
    let mut last = None;
    for _ in 0..TRIES {
        let session = link.session().filter(|_| !is_closed())?;
        match bind(&session).await {
            Ok(bound) => {
                log::info!("{what} {} again", addr.get());
                return Some(Ok(bound));
            }
            Err(Errno::ENETDOWN) => return None,
            Err(error) => {
                log::warn!("{what} {} again failed: {error}", addr.get());
                last = Some(Err(error));
                Timer::after(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    last
}
