//! A connection, from the CONNECT or ACCEPT that opens it to the response to its RELEASE.

use super::account::Flow;
use super::engine::{Engine, Reply};
use super::gate::Place;
use super::host::{Host, Limit, Network, Socket, Stream, StreamOf};
use super::listener::Turn;
use super::pump::Pumps;
use super::socket::{Mailbox, Release, Settings};
use crate::wire::{Header, RingOffer, SocketOption};
use alloc::rc::Rc;
use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::pin::pin;
use core::task::{Poll, ready};
use core::time::Duration;
use xen::Errno;

/// Where a connection comes from.
pub(super) enum Origin<H: Host> {
    /// CONNECT to this address.
    Connect(SocketAddr, Settings),
    /// ACCEPT on a listening socket.
    Accept(Turn<H>),
}

/// Opens a connection and answers `opening`, moves bytes until the guest requests the RELEASE, and
/// answers the RELEASE. Then the guest's `id` is free again.
pub(super) async fn run<H: Host>(
    engine: &Engine<'_, H>,
    id: u64,
    mailbox: Rc<Mailbox>,
    origin: Origin<H>,
    offer: RingOffer,
    opening: Header,
) {
    // A socket whose CONNECT fails gets its settings back.
    let (settings, linger) = match &origin {
        Origin::Connect(_, settings) => {
            (Some(*settings), settings.options.get(SocketOption::Linger))
        }
        Origin::Accept(turn) => (None, turn.linger()),
    };
    let opened = match engine.rings.attach(&offer) {
        Ok(ring) => open(engine, &mailbox, origin).await.map(|stream| (ring, stream)),
        Err(error) => Err(Stopped::Failed(error)),
    };
    let release = match opened {
        Ok((ring, stream)) => {
            mailbox.open();
            let addr = if settings.is_none() { stream.peer_addr() } else { stream.local_addr() };
            engine.answer(opening, Ok(Reply { value: 0, addr: addr.ok() }));
            let mut pumps = Pumps::new(ring, stream, linger);
            let release = poll_fn(|cx| {
                mailbox.register(cx);
                while let Some((header, operation)) = mailbox.take_operation() {
                    engine.answer(header, pumps.carry_out(engine, operation));
                }
                if let Some(release) = mailbox.take_release() {
                    return Poll::Ready(release);
                }
                pumps.poll(engine, cx);
                Poll::Pending
            })
            .await;
            drain(engine, &mut pumps).await;
            // Closes the socket, before the RELEASE is answered.
            let (ring, resized) = pumps.into_ring();
            if release.reuse {
                let grants = resized.unwrap_or(offer.grants);
                engine.rings.park(RingOffer { grants, ..offer }, ring);
            }
            release
        }
        Err(Stopped::Released(release)) => {
            engine.answer(opening, Err(Errno::ECONNABORTED));
            release
        }
        Err(Stopped::Failed(error)) => {
            engine.answer(opening, Err(error));
            match (mailbox.take_release(), settings) {
                (Some(release), _) => release,
                (None, Some(settings)) => return engine.reset(id, settings),
                (None, None) => {
                    engine.sockets.borrow_mut().remove(id);
                    return;
                }
            }
        }
    };
    engine.sockets.borrow_mut().remove(id);
    engine.answer(release.header, Ok(Reply::default()));
}

/// Why a connection was not opened.
enum Stopped {
    Failed(Errno),
    Released(Release),
}

async fn open<H: Host>(
    engine: &Engine<'_, H>,
    mailbox: &Mailbox,
    origin: Origin<H>,
) -> Result<StreamOf<H>, Stopped> {
    let mut opening = pin!(async {
        match origin {
            Origin::Connect(to, settings) => {
                if engine.account.permitted(Flow::Connections, || engine.host.now()).is_err() {
                    engine.host.limited(engine.guest, Limit::Connections);
                    return Err(Errno::ENOBUFS);
                }
                engine.account.take(Flow::Connections, 1);
                engine.host.network().connect(engine.guest, to, &settings.options).await
            }
            Origin::Accept(turn) => {
                // The host's socket keeps connections that come too fast.
                let mut place = Place::default();
                let stream = poll_fn(|cx| {
                    ready!(turn.poll_first(cx))?;
                    ready!(engine.poll_permitted(cx, Flow::Connections, &mut place));
                    turn.poll_accept(cx)
                });
                let stream = stream.await?;
                engine.account.take(Flow::Connections, 1);
                Ok(stream)
            }
        }
    });
    poll_fn(|cx| {
        mailbox.register(cx);
        if let Some(release) = mailbox.take_release() {
            return Poll::Ready(Err(Stopped::Released(release)));
        }
        opening.as_mut().poll(cx).map_err(Stopped::Failed)
    })
    .await
}

/// Sends, for a bounded time, the bytes that the guest wrote before it requested the RELEASE.
async fn drain<H: Host>(engine: &Engine<'_, H>, pumps: &mut Pumps<H>) {
    let limit = engine.account.limits().linger;
    let requested = pumps.linger.map(|seconds| Duration::from_secs(seconds.into()));
    let patience = requested.unwrap_or(limit).min(limit);
    if patience.is_zero() {
        return;
    }
    let total = pumps.sent + pumps.unsent();
    // Unless the guest set a time, a peer that continues to take bytes gets more time.
    let rounds = if requested.is_some() { 1 } else { 4 };
    for _ in 0..rounds {
        let before = pumps.sent;
        let mut patience = pin!(engine.host.sleep(patience));
        let done = poll_fn(|cx| {
            if pumps.poll_drain(engine, cx, total).is_ready() {
                return Poll::Ready(true);
            }
            patience.as_mut().poll(cx).map(|()| false)
        })
        .await;
        if done {
            return;
        }
        if pumps.sent == before {
            break;
        }
    }
    let left = total.saturating_sub(pumps.sent);
    let guest = engine.guest;
    log::debug!("domain {guest}: {left} bytes of a released socket could not be sent in time");
}
