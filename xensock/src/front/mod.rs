//! The frontend: sockets for a guest.
//!
//! [`Frontend`] opens [`Stream`]s and [`Listener`]s. Its [`Driver`] is a future that must be polled beside
//! them. Both are for one thread. The traits are those of `edge-nal` and `embedded-io-async`, so programs for
//! those traits run over it unchanged.
//!
//! | file | purpose |
//! |---|---|
//! | `socket`, `stream` | a connection: requests and data path; the API over it |
//! | `listener` | a listening socket, which is bound again in each session |
//! | `rings` | the data rings of connections |
//! | `link` | requests on the command ring, and work that is completed if its caller leaves |
//! | `session` | negotiation with a backend |
//! | `state` | what all of these share |
//!
//! The data path does not involve the driver: a read or a write copies from or to the ring, advances an index
//! and, if the backend may sleep, sends an event.

mod link;
mod listener;
mod progress;
mod rings;
mod session;
mod socket;
mod state;
mod stream;

pub use listener::Listener;
pub use stream::{Connection, Stream};
pub use xensock_stream::{ReadHalf, WriteHalf};

use crate::wire::{Dialect, Extensions, Options};
use alloc::rc::Rc;
use core::net::{Ipv4Addr, SocketAddr};
use edge_nal::{Readable, TcpAccept, TcpBind, TcpConnect};
use embassy_time::Duration;
use embedded_io_async::ErrorType;
use state::Core;
use xen::frontend;
use xen::xenstore::Store;
use xen::{Errno, Machine};

/// How a frontend behaves.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The protocol, as the device's folder in xenstore says.
    pub dialect: Dialect,
    /// What goes beyond the plain protocol, where the backend has it, too.
    pub extensions: Extensions,
    /// The size of data rings: 2 to this power pages, shared by both directions. A backend that
    /// maps less gets less; without a wish it is the backend's default. A socket's own
    /// [`SocketOption::ReceiveBuffer`](crate::wire::SocketOption) and `SendBuffer` come first.
    pub ring_order: Option<u32>,
    /// How many connections may wait for a listener's `accept`.
    pub backlog: u32,
    /// How long a request may go unanswered, ACCEPT left out. A lost answer must not be waited for
    /// for ever, and a CONNECT may well take two minutes.
    pub answer_within: Duration,
    /// How long a stream that was dropped is kept although the backend takes nothing of what was
    /// written to it.
    pub linger: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            dialect: Dialect::PvCalls,
            extensions: Extensions::all(),
            ring_order: None,
            backlog: 128,
            answer_within: Duration::from_secs(180),
            linger: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// How many pages a connection's data ring has, unless the backend or the socket has another wish.
    pub fn ring_pages(&self) -> usize {
        let orders = self.dialect.orders(self.extensions.contains(Extensions::RESIZE));
        let order = self.ring_order.unwrap_or(self.dialect.default_order());
        let layout = self.dialect.layout(order.clamp(*orders.start(), *orders.end()));
        layout.map_or(0, |layout| layout.pages)
    }
}

/// A handle to a frontend. Clones are handles to the same frontend.
pub struct Frontend<M: Machine + 'static>(Rc<Core<M>>);

impl<M: Machine + 'static> Clone for Frontend<M> {
    fn clone(&self) -> Self {
        Frontend(self.0.clone())
    }
}

impl<M: Machine + 'static> Frontend<M> {
    /// A frontend for the device whose folder in xenstore is `path`, such as `device/pvcalls/0`.
    /// Nothing happens until its driver runs.
    pub fn new(machine: M, store: Store, path: &str, config: Config) -> (Self, Driver<M>) {
        let core = Rc::new(Core::new(machine, config));
        let driver = frontend::Driver::new(core.clone(), store, path);
        (Frontend(core.clone()), Driver { core, driver })
    }

    /// Connects to an address in the backend's network.
    ///
    /// Waits until the device is connected. The error is the backend's ([`Errno::ECONNREFUSED`] and
    /// others), [`Errno::ENOMEM`] or [`Errno::ENOSPC`] if there is no memory, grant or port for another
    /// ring, [`Errno::ETIMEDOUT`] if the backend does not answer, [`Errno::ENETDOWN`] if it went away, or
    /// [`Errno::ENODEV`] if the device was removed.
    ///
    /// A future that is dropped loses nothing: a connection that is made all the same is released.
    pub async fn connect(&self, to: SocketAddr) -> Result<Stream<M>, Errno> {
        self.connect_with(to, Options::new()).await
    }

    /// Connects a socket with these options. [`Errno::EOPNOTSUPP`] if the backend does not support options,
    /// except for those that set the ring's size.
    pub async fn connect_with(&self, to: SocketAddr, options: Options) -> Result<Stream<M>, Errno> {
        self.0.link.run(socket::connect(self.0.clone(), to, options)).await
    }

    /// Listens at an address in the backend's network. Errors are as for
    /// [`connect`](Frontend::connect).
    pub async fn bind(&self, addr: SocketAddr) -> Result<Listener<M>, Errno> {
        self.bind_with(addr, Options::new()).await
    }

    /// Listens with a socket that has these options. Its connections have them too.
    pub async fn bind_with(
        &self,
        addr: SocketAddr,
        options: Options,
    ) -> Result<Listener<M>, Errno> {
        self.0.link.run(listener::bind(self.0.clone(), addr, options)).await
    }

    /// Waits until the device is connected. [`Errno::ENODEV`] after [`shutdown`](Frontend::shutdown), or
    /// the error with which the driver ended.
    pub async fn connected(&self) -> Result<(), Errno> {
        self.0.link.up().await.map(drop)
    }

    /// Must be called in a domain that was restored from a save, which has lost its grants and event
    /// channels. All streams end with [`Errno::ENETDOWN`], the driver connects to the domain's new
    /// backend, and listeners are bound again. Returns when the old session's xenstore requests are
    /// dropped. Xenstore must be [quiesced](Store::quiesce) from before the save until then: the old requests are
    /// not meant for the new device.
    pub async fn resume(&self) {
        frontend::resume(&*self.0).await;
    }

    /// Closes the device in an orderly way: all sockets end with [`Errno::ENODEV`], the backend unmaps the
    /// rings, and all memory goes back to the machine. The driver's future ends then.
    pub async fn shutdown(&self) {
        self.0.shutdown().await;
    }

    /// Frees the pages that are kept for further connections and granted to nobody.
    pub fn trim(&self) {
        self.0.pages.drain();
    }

    /// What was counted so far.
    pub fn statistics(&self) -> Statistics {
        let usage = self.0.pages.usage();
        Statistics {
            notifications_sent: self.0.link.notifications(),
            grants: usage.grants,
            pages: usage.pages,
            quarantined_pages: usage.quarantined_pages,
            parked_rings: self.0.rings.parked() as u64,
            ..*self.0.statistics.borrow()
        }
    }
}

impl<M: Machine> TcpConnect for Frontend<M> {
    type Error = Errno;
    type Socket<'a> = Stream<M>;

    async fn connect(&self, remote: SocketAddr) -> Result<Stream<M>, Errno> {
        Frontend::connect(self, remote).await
    }
}

impl<M: Machine> TcpBind for Frontend<M> {
    type Error = Errno;
    type Accept<'a> = Listener<M>;

    async fn bind(&self, local: SocketAddr) -> Result<Listener<M>, Errno> {
        Frontend::bind(self, local).await
    }
}

impl<M: Machine> TcpAccept for Listener<M> {
    type Error = Errno;
    type Socket<'a> = Stream<M>;

    /// The address is unspecified (`0.0.0.0:0`) if the backend does not report it.
    async fn accept(&self) -> Result<(SocketAddr, Stream<M>), Errno> {
        let stream = Listener::accept(self).await?;
        let peer = stream.peer_addr().unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
        Ok((peer, stream))
    }
}

impl<M: Machine> ErrorType for Listener<M> {
    type Error = Errno;
}

impl<M: Machine> Readable for Listener<M> {
    async fn readable(&mut self) -> Result<(), Errno> {
        Listener::readable(self).await
    }
}

/// The engine of a [`Frontend`]; see [`run`](Driver::run).
///
/// Shut the frontend down before dropping an unfinished driver: the rings of its jobs would be lost to the
/// machine, though never shared with another domain.
pub struct Driver<M: Machine + 'static> {
    core: Rc<Core<M>>,
    driver: frontend::Driver<Core<M>>,
}

impl<M: Machine> Driver<M> {
    /// Connects to the backend, serves the sockets, and connects again when the backend returns.
    ///
    /// Returns [`Errno::ENODEV`] after [`Frontend::shutdown`], or the error that made the device unusable.
    /// All pages are back at the machine then.
    pub async fn run(self) -> Errno {
        self.driver.run().await
    }
}

impl<M: Machine> Drop for Driver<M> {
    fn drop(&mut self) {
        self.core.link.drop_jobs();
    }
}

/// What a frontend has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Streams that were ever connected or accepted.
    pub streams_opened: u64,
    /// Streams that hold a ring now.
    pub streams_open: u64,
    /// Listeners that exist now.
    pub listeners_open: u64,
    /// Bytes taken out of rings.
    pub bytes_in: u64,
    /// Bytes put into rings.
    pub bytes_out: u64,
    /// Events sent to the backend.
    pub notifications_sent: u64,
    /// Live grants.
    pub grants: u64,
    /// Pages taken from the machine and not given back: in use, parked, pooled or in quarantine.
    pub pages: u64,
    /// Pages that the backend still maps although their ring is closed.
    pub quarantined_pages: u64,
    /// Rings that are kept, with their grants and ports, for the next connections.
    pub parked_rings: u64,
}
