//! A connection, from the CONNECT or ACCEPT that opens it to the answer of its RELEASE.

use super::Host;
use super::data_ring::DataRing;
use super::guest::Guest;
use super::passive::Turn;
use super::pump::Pumps;
use super::socket::Release;
use crate::wire::{Request, RingOffer};
use alloc::rc::Rc;
use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::pin::pin;
use core::task::Poll;
use xen::Errno;

/// Where a connection comes from.
pub(super) enum Origin<H: Host> {
    /// It is made, to this address.
    Connect(SocketAddr),
    /// It is the next one of a listening socket.
    Accept(Turn<H>),
}

/// Opens a connection, answers `opening`, moves bytes until `release` asks for the end, and answers
/// that. The guest's name for the socket is free again afterwards.
pub(super) async fn run<H: Host>(
    guest: &Guest<'_, H>,
    id: u64,
    release: Rc<Release>,
    origin: Origin<H>,
    offer: RingOffer,
    opening: Request,
) {
    let accepts = matches!(origin, Origin::Accept(_));
    let opened = match DataRing::attach(guest, &offer) {
        Ok(ring) => match open(guest, &release, origin).await {
            Ok(stream) => Ok((ring, stream)),
            Err(stopped) => Err(stopped),
        },
        Err(error) => Err(Stopped::Failed(error)),
    };
    let released = match opened {
        Ok((ring, stream)) => {
            guest.answer(opening.answer(Ok(0)));
            let mut pumps = Pumps::new(&ring, stream);
            let released = poll_fn(|cx| {
                let released = release.poll(cx);
                if released.is_pending() {
                    pumps.poll(guest, cx);
                }
                released
            })
            .await;
            drain(guest, &mut pumps).await;
            released
        }
        Err(Stopped::Released(released)) => {
            guest.answer(opening.answer(Err(Errno::ECONNABORTED)));
            released
        }
        Err(Stopped::Failed(error)) => {
            guest.answer(opening.answer(Err(error)));
            match release.take() {
                Some(released) => released,
                None if accepts => {
                    guest.sockets.borrow_mut().remove(&id);
                    return;
                }
                None => return guest.reset(id),
            }
        }
    };
    guest.sockets.borrow_mut().remove(&id);
    guest.answer(released.answer(Ok(0)));
}

/// Why a connection did not come to be.
enum Stopped {
    Failed(Errno),
    Released(Request),
}

async fn open<H: Host>(
    guest: &Guest<'_, H>,
    release: &Release,
    origin: Origin<H>,
) -> Result<H::Stream, Stopped> {
    let mut opening = pin!(async {
        match origin {
            Origin::Connect(to) => guest.host.connect(guest.id, to).await,
            Origin::Accept(turn) => poll_fn(|cx| turn.poll_accept(guest.host, cx)).await,
        }
    });
    poll_fn(|cx| {
        if let Poll::Ready(request) = release.poll(cx) {
            return Poll::Ready(Err(Stopped::Released(request)));
        }
        opening.as_mut().poll(cx).map_err(Stopped::Failed)
    })
    .await
}

/// Sends what the guest had written when it asked for the release, for a bounded time.
async fn drain<H: Host>(guest: &Guest<'_, H>, pumps: &mut Pumps<'_, H>) {
    let total = pumps.sent() + pumps.unsent();
    for _ in 0..4 {
        let before = pumps.sent();
        let mut patience = pin!(guest.host.sleep(guest.limits.linger));
        let done = poll_fn(|cx| {
            if pumps.poll_drain(guest, cx, total).is_ready() {
                return Poll::Ready(true);
            }
            patience.as_mut().poll(cx).map(|()| false)
        })
        .await;
        if done {
            return;
        }
        if pumps.sent() == before {
            break;
        }
    }
    let left = total.saturating_sub(pumps.sent());
    log::debug!("domain {}: a released socket takes too long; {left} bytes are lost", guest.id);
}
