//! A connection, from the CONNECT or ACCEPT that opens it to the response to its RELEASE.

use super::account::Flow;
use super::data_ring::{DataRing, EventChannel};
use super::engine::{Engine, OPENING, Reply};
use super::gate::Place;
use super::host::{Host, Network, Socket, Stream, StreamOf};
use super::listener::Turn;
use super::pump::Pumps;
use super::socket::{Mailbox, Operation, Release, Settings};
use crate::wire::{Header, RingGrants, RingOffer, SocketOption};
use alloc::rc::Rc;
use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::pin::pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;
use xen::{Errno, Side};

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
    engine.work(OPENING).await;
    let opened = match engine.rings.attach(&offer) {
        Ok(ring) => open(engine, &mailbox, origin).await.map(|stream| (ring, stream)),
        Err(error) => Err(Stopped::Failed(error)),
    };
    let release = match opened {
        Ok((ring, stream)) => {
            mailbox.open();
            let addr = if settings.is_none() { stream.peer_addr() } else { stream.local_addr() };
            engine.answer(opening, Ok(Reply { value: 0, addr: addr.ok() }));
            serve(engine, &mailbox, Pumps::new(ring, stream, Linger(linger)), offer).await
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

/// What moves data between an open socket and its ring.
pub(super) trait Pump<H: Host> {
    /// Carries out a request about the socket.
    fn carry_out(&mut self, engine: &Engine<'_, H>, operation: Operation) -> Result<Reply, Errno>;

    /// The ring's event channel.
    fn channel(&self) -> &EventChannel<H>;

    /// Whether the last operation was to send.
    fn has_sent(&self) -> bool;

    /// Receives from the socket, a bounded amount.
    fn poll_receive(&mut self, engine: &Engine<'_, H>, cx: &mut Context<'_>) -> Poll<()>;

    /// Sends to the socket, a bounded amount.
    fn poll_send(&mut self, engine: &Engine<'_, H>, cx: &mut Context<'_>) -> Poll<()>;

    /// Moves a bounded amount of data, and registers to be woken for more.
    fn poll(&mut self, engine: &Engine<'_, H>, cx: &mut Context<'_>) {
        self.channel().signal.register(Side::Rx, cx.waker());
        // Neither direction takes all turns.
        if self.has_sent() {
            let _ = self.poll_receive(engine, cx);
            let _ = self.poll_send(engine, cx);
        } else {
            let _ = self.poll_send(engine, cx);
            let _ = self.poll_receive(engine, cx);
        }
    }

    /// The bytes that the guest wrote and that are not sent.
    fn unsent(&mut self) -> u64;

    /// The bytes that were sent, and for how long a RELEASE may continue.
    fn progress(&self) -> (u64, Linger);

    /// Sends until so many bytes are sent in total or sending fails; receives nothing.
    fn poll_drain(&mut self, engine: &Engine<'_, H>, cx: &mut Context<'_>, total: u64) -> Poll<()>;

    /// Closes the socket and returns the present ring, and its pages if a RESIZE has replaced the
    /// first ring.
    fn into_ring(self) -> (DataRing<H>, Option<RingGrants>);
}

/// Serves an open socket until its RELEASE, which is then to be answered.
pub(super) async fn serve<H: Host>(
    engine: &Engine<'_, H>,
    mailbox: &Mailbox,
    mut pump: impl Pump<H>,
    offer: RingOffer,
) -> Release {
    let release = poll_fn(|cx| {
        mailbox.register(cx);
        while let Some((header, operation)) = mailbox.take_operation() {
            engine.answer(header, pump.carry_out(engine, operation));
        }
        if let Some(release) = mailbox.take_release() {
            return Poll::Ready(release);
        }
        pump.poll(engine, cx);
        Poll::Pending
    })
    .await;
    drain(engine, &mut pump).await;
    engine.work(OPENING).await;
    // Closes the socket, before the RELEASE is answered.
    let (ring, resized) = pump.into_ring();
    if release.reuse {
        let grants = resized.unwrap_or(offer.grants);
        engine.rings.park(RingOffer { grants, ..offer }, ring);
    }
    release
}

/// SO_LINGER, in seconds, if the guest set it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Linger(pub(super) Option<u32>);

impl Linger {
    /// The option's value.
    pub(super) fn value<H: Host>(self, engine: &Engine<'_, H>) -> u32 {
        let longest = engine.account.limits().linger.as_secs() as u32;
        self.0.map_or(longest, |seconds| seconds.min(longest))
    }
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
                engine.count_connection()?;
                engine.work(OPENING).await;
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
        ready!(engine.poll_budget(cx));
        let opened = ready!(opening.as_mut().poll(cx));
        engine.charge(OPENING);
        Poll::Ready(opened.map_err(Stopped::Failed))
    })
    .await
}

/// Sends, for a bounded time, the bytes that the guest wrote before it requested the RELEASE.
async fn drain<H: Host>(engine: &Engine<'_, H>, pump: &mut impl Pump<H>) {
    let limit = engine.account.limits().linger;
    let (sent, Linger(requested)) = pump.progress();
    let requested = requested.map(|seconds| Duration::from_secs(seconds.into()));
    let patience = requested.unwrap_or(limit).min(limit);
    if patience.is_zero() {
        return;
    }
    let total = sent + pump.unsent();
    // Unless the guest set a time, a peer that continues to take bytes gets more time.
    let rounds = if requested.is_some() { 1 } else { 4 };
    for _ in 0..rounds {
        let before = pump.progress().0;
        let mut patience = pin!(engine.host.sleep(patience));
        let done = poll_fn(|cx| {
            if pump.poll_drain(engine, cx, total).is_ready() {
                return Poll::Ready(true);
            }
            patience.as_mut().poll(cx).map(|()| false)
        })
        .await;
        if done {
            return;
        }
        if pump.progress().0 == before {
            break;
        }
    }
    let left = total.saturating_sub(pump.progress().0);
    let guest = engine.guest;
    log::debug!("domain {guest}: {left} bytes of a released socket could not be sent in time");
}
