//! A connection, from the CONNECT or ACCEPT that opens it to the answer of its RELEASE.

use super::data_ring::DataRing;
use super::guest::Guest;
use super::passive::Turn;
use super::pump::Pumps;
use super::socket::{Control, Plan};
use super::{Host, Socket, Stream};
use crate::wire::{Call, Request, RingOffer, SocketOption};
use alloc::rc::Rc;
use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use xen::Errno;

/// Where a connection comes from.
pub(super) enum Origin<H: Host> {
    /// It is made, to this address.
    Connect(SocketAddr, Plan),
    /// It is the next one of a listening socket.
    Accept(Turn<H>),
}

/// Opens a connection, answers `opening`, moves bytes until the guest asks for the end, and answers
/// that. The guest's name for the socket is free again afterwards.
pub(super) async fn run<H: Host>(
    guest: &Guest<'_, H>,
    id: u64,
    control: Rc<Control>,
    origin: Origin<H>,
    offer: RingOffer,
    opening: Request,
) {
    // What the socket falls back to when a CONNECT fails.
    let (plan, linger) = match &origin {
        Origin::Connect(_, plan) => (Some(*plan), plan.options.get(SocketOption::Linger)),
        Origin::Accept(turn) => (None, turn.linger()),
    };
    let opened = match DataRing::attach(guest, &offer) {
        Ok(ring) => match open(guest, &control, origin).await {
            Ok(stream) => Ok((ring, stream)),
            Err(stopped) => Err(stopped),
        },
        Err(error) => Err(Stopped::Failed(error)),
    };
    let released = match opened {
        Ok((ring, stream)) => {
            control.open();
            let name = if plan.is_none() { stream.peer_addr() } else { stream.local_addr() };
            guest.answer_with(opening.answer(Ok(0)), name.ok());
            let mut pumps = Pumps::new(ring, stream, linger);
            let released = poll_fn(|cx| {
                while let Poll::Ready(request) = control.poll(cx) {
                    if let Call::Release { .. } = request.call {
                        return Poll::Ready(request);
                    }
                    pumps.carry_out(guest, &request);
                }
                pumps.poll(guest, cx);
                Poll::Pending
            })
            .await;
            drain(guest, &mut pumps).await;
            // The socket is closed before the ring is parked, and before the guest hears of it.
            let ring = pumps.into_ring();
            if let (Call::Release { reuse: true }, Some(ring)) = (&released.call, ring) {
                guest.park(offer, ring);
            }
            released
        }
        Err(Stopped::Released(released)) => {
            guest.answer(opening.answer(Err(Errno::ECONNABORTED)));
            released
        }
        Err(Stopped::Failed(error)) => {
            guest.answer(opening.answer(Err(error)));
            match (control.take_release(), plan) {
                (Some(released), _) => released,
                (None, Some(plan)) => return guest.reset(id, plan),
                (None, None) => {
                    guest.sockets.borrow_mut().remove(&id);
                    return;
                }
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
    control: &Control,
    origin: Origin<H>,
) -> Result<H::Stream, Stopped> {
    let mut opening = pin!(async {
        match origin {
            Origin::Connect(to, plan) => guest.host.connect(guest.id, to, &plan.options).await,
            Origin::Accept(turn) => poll_fn(|cx| turn.poll_accept(guest.host, cx)).await,
        }
    });
    poll_fn(|cx| {
        // Nothing but a RELEASE is handed over before the connection is open.
        if let Poll::Ready(request) = control.poll(cx) {
            return Poll::Ready(Err(Stopped::Released(request)));
        }
        opening.as_mut().poll(cx).map_err(Stopped::Failed)
    })
    .await
}

/// Sends what the guest had written when it asked for the release, for a bounded time.
async fn drain<H: Host>(guest: &Guest<'_, H>, pumps: &mut Pumps<H>) {
    let wish = pumps.linger().map(|seconds| Duration::from_secs(seconds.into()));
    let patience = wish.unwrap_or(guest.limits.linger).min(guest.limits.linger);
    if patience.is_zero() {
        return;
    }
    let total = pumps.sent() + pumps.unsent();
    // Without a wish of the guest's, a remote that goes on taking something gets more time.
    let rounds = if wish.is_some() { 1 } else { 4 };
    for _ in 0..rounds {
        let before = pumps.sent();
        let mut patience = pin!(guest.host.sleep(patience));
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
