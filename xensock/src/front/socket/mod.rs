//! The state of a socket with a ring, which its stream or its [`UdpSocket`] shares with the driver:
//! its opening, its data path and its release.
//!
//! [`UdpSocket`]: super::UdpSocket

mod data;
mod options;
mod sizing;

pub(super) use options::{preparations, requested_sizes};
pub(super) use sizing::Elastic;

use super::link::{Answer, Session};
use super::rings::{Ends, ParkSlot, Ring};
use super::state::{Core, Member};
use crate::ring::len;
use crate::wire::{Call, Extensions, RingOffer, SocketOption};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::task::Poll;
use embassy_time::with_timeout;
use futures_util::FutureExt;
use sizing::Load;
use xen::{Errno, Machine, Port, Side, Signal};

/// The type of a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Stream,
    Datagrams,
}

/// A socket with a ring.
pub(super) struct Socket<M: Machine + 'static> {
    pub(super) core: Rc<Core<M>>,
    pub(super) id: u64,
    pub(super) session: Session,
    kind: Kind,
    signal: Arc<Signal>,
    port: Port,
    pub(super) addrs: Cell<Addrs>,
    /// `None` once the ring is closed.
    ring: RefCell<Option<Ends>>,
    /// After a RESIZE: the former ring, until both ends have emptied it.
    former: RefCell<Option<Ends>>,
    /// Whether a RESIZE is in progress. Nothing may be written until it is answered.
    resizing: Cell<bool>,
    /// Whether the socket is being released.
    ending: Cell<bool>,
    load: Load,
    /// Whether writing was shut down.
    write_shutdown: Cell<bool>,
    /// The requested sizes of `in` and `out`.
    sizes: Cell<[Option<u32>; 2]>,
    /// The error of every further operation.
    failed: Cell<Option<Errno>>,
    /// Operations since the task last yielded.
    burst: Cell<u32>,
}

/// The addresses of a socket's two ends, if known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Addrs {
    pub(super) local: Option<SocketAddr>,
    pub(super) peer: Option<SocketAddr>,
}

impl<M: Machine> Socket<M> {
    /// Opens a socket: makes `calls` and the call that offers its ring, all at once.
    pub(super) async fn open(
        core: &Rc<Core<M>>,
        session: Session,
        kind: Kind,
        sizes: [Option<u32>; 2],
        peer: Option<SocketAddr>,
        mut calls: Vec<Call>,
        opens: impl FnOnce(RingOffer) -> Call,
    ) -> Result<Rc<Self>, Errno> {
        let (ring, offer) = core.open_ring(&session, kind, sizes).await?;
        let id = core.new_id();
        calls.push(opens(offer));
        match core.link.call_all(&session, id, calls).await {
            // The session has ended since the answer came, so nothing would end this socket.
            Ok(_) if !core.link.is_in(&session) => {
                core.rings.close(ring);
                Err(Errno::ENETDOWN)
            }
            Ok(reply) => {
                let addrs = Addrs { local: reply.addr, peer };
                Ok(Socket::new(core, id, session, kind, ring, addrs, sizes))
            }
            Err(error) => {
                // The backend may still have the socket and, if it has not answered, map the ring
                // later. It cannot once it has answered this RELEASE or has disconnected.
                match core.link.call(&session, id, Call::Release { reuse: false }).await {
                    Err(Errno::ETIMEDOUT) => core.rings.keep(ring),
                    _ => core.rings.close(ring),
                }
                Err(error)
            }
        }
    }

    pub(super) fn new(
        core: &Rc<Core<M>>,
        id: u64,
        session: Session,
        kind: Kind,
        ring: Ring,
        addrs: Addrs,
        sizes: [Option<u32>; 2],
    ) -> Rc<Self> {
        let Ring { pages, port, signal } = ring;
        let socket = Rc::new(Socket {
            core: core.clone(),
            id,
            session,
            kind,
            signal,
            port,
            addrs: Cell::new(addrs),
            ring: RefCell::new(Some(Ends::new(pages))),
            former: RefCell::default(),
            resizing: Cell::new(false),
            ending: Cell::new(false),
            load: Load::default(),
            write_shutdown: Cell::new(false),
            sizes: Cell::new(sizes),
            failed: Cell::new(None),
            burst: Cell::new(0),
        });
        core.register(id, &socket);
        socket.watch_size();
        let mut statistics = core.statistics.borrow_mut();
        match kind {
            Kind::Stream => {
                statistics.streams_opened += 1;
                statistics.streams_open += 1;
            }
            Kind::Datagrams => statistics.datagram_sockets_open += 1,
        }
        drop(statistics);
        socket
    }

    /// Makes a request about this socket.
    pub(super) async fn call(&self, call: Call) -> Answer {
        self.core.link.check()?;
        self.core.link.call(&self.session, self.id, call).await
    }

    /// [`Errno::EOPNOTSUPP`] if the two ends have not agreed on an extension.
    pub(super) fn needs(&self, extension: Extensions) -> Result<(), Errno> {
        if self.session.protocol.has(extension) { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
    }

    /// Whether the ring is still open.
    pub(super) fn is_open(&self) -> bool {
        self.ring.borrow().is_some()
    }

    /// Ends the socket: closes its ring, and wakes all waiters with the error.
    fn end(&self, error: Errno) {
        if let Some(ring) = self.take_ring(error) {
            self.core.rings.close(ring);
            self.core.rings.changed.wake_all();
        }
        self.signal.raise();
    }

    fn take_ring(&self, error: Errno) -> Option<Ring> {
        if self.failed.get().is_none() {
            self.failed.set(Some(error));
        }
        self.core.elastic.remove(self.id);
        if let Some(former) = self.former.take() {
            self.core.rings.close_pages(former.pages);
        }
        let Ends { pages, .. } = self.ring.take()?;
        if self.core.unregister(self.id) {
            let mut statistics = self.core.statistics.borrow_mut();
            match self.kind {
                Kind::Stream => statistics.streams_open -= 1,
                Kind::Datagrams => statistics.datagram_sockets_open -= 1,
            }
        }
        Some(Ring { pages, port: self.port, signal: self.signal.clone() })
    }

    /// A place for the ring among the parked ones, if the ring is intact, so that it may serve
    /// another connection. It is unknown which ring the backend has during a RESIZE.
    fn park_slot(&self) -> Option<ParkSlot> {
        if self.failed.get().is_some() || self.resizing.get() {
            return None;
        }
        self.core.rings.reserve(&self.session, &self.ring.borrow().as_ref()?.pages)
    }

    /// Closes the socket, and waits until the backend has taken all that is in `out`.
    pub(super) async fn close(self: &Rc<Self>) -> Result<(), Errno> {
        if self.ending.get() || !self.is_open() {
            return Ok(());
        }
        let released = self.clone().release(false);
        self.core.link.run(released.map(Ok)).await
    }

    /// Lets the driver close the socket, at once with `abort`.
    pub(super) fn start_closing(self: &Rc<Self>, abort: bool) {
        if !self.ending.get() && self.is_open() {
            self.core.link.spawn(self.clone().release(abort));
        }
    }

    /// Releases the socket after its unsent data is sent or, with `abort`, at once. Counts as
    /// [releasing](Core::releasing) from the call on.
    ///
    /// Some backends lose what is in `out` at the RELEASE, so `out` must be empty first.
    fn release(self: Rc<Self>, abort: bool) -> impl Future<Output = ()> {
        let releasing = self.core.releasing.begin();
        self.ending.set(true);
        self.watch_size();
        async move {
            let _releasing = releasing;
            if abort {
                // If the backend knows this option, it sends nothing more and resets the
                // connection.
                let _ = self.set_option(SocketOption::Linger, 0).await;
            } else {
                self.drain().await;
            }
            if !self.is_open() {
                return;
            }
            let slot = self.park_slot();
            let answer = self.call(Call::Release { reuse: slot.is_some() }).await;
            if let Err(error) = answer {
                log::warn!("releasing socket {} failed: {error}", self.id);
            }
            let is_parked = answer.is_ok() && self.failed.get().is_none();
            match slot.filter(|_| is_parked) {
                Some(slot) => {
                    if let Some(ring) = self.take_ring(Errno::ENOTCONN) {
                        self.core.rings.park(slot, &self.session, ring);
                    }
                    self.signal.raise();
                }
                // Without an answer the backend may still map the ring: then it goes into
                // quarantine.
                None => self.end(Errno::ENOTCONN),
            }
        }
    }

    /// Waits until `out` is empty, or until the backend takes nothing for some time.
    async fn drain(self: &Rc<Self>) {
        let mut unsent = self.unsent();
        while unsent > 0 {
            let less = poll_fn(|cx| {
                self.signal.register(Side::Tx, cx.waker());
                self.arm_for_drain();
                // Discards what arrives: the peer may read only after it has written everything.
                let _ = self.poll_take(cx, |data| (len(&data), ()));
                // Only a new minimum is progress: the backend may move its index back.
                if self.unsent() >= unsent { Poll::Pending } else { Poll::Ready(()) }
            });
            let timed_out = with_timeout(self.core.config.linger, less).await.is_err();
            // The backend may have advanced without an event.
            let now = self.unsent();
            if timed_out && now >= unsent {
                log::warn!("socket {}: {unsent} bytes could not be sent", self.id);
                return;
            }
            unsent = unsent.min(now);
        }
    }
}

impl<M: Machine> Member for Socket<M> {
    fn link_lost(&self, error: Errno) {
        self.end(error);
    }
}
