//! The frontend: sockets for a guest.
//!
//! [`Frontend`] opens [`Stream`]s, [`Listener`]s and [`Datagrams`]. Its [`Driver`] is a future that
//! must be polled beside them. All are for one thread. The traits are those of `edge-nal` and
//! `embedded-io-async`, so programs for those traits run over it unchanged.
//!
//! | file | purpose |
//! |---|---|
//! | `socket` | a socket with a ring: its requests and its data path |
//! | `stream` | a connection over it |
//! | `datagrams` | a datagram socket over it |
//! | `listener` | a listening socket |
//! | `again` | binds listeners and datagram sockets again in the next session |
//! | `socket/sizing` | the size of a connection's ring |
//! | `rings` | the data rings of sockets |
//! | `link` | requests on the command ring; the driver completes those of dropped callers |
//! | `session` | negotiation with a backend |
//! | `state` | what all of these share |
//!
//! The data path does not involve the driver: a read or a write copies from or to the ring,
//! advances an index and, if the backend may sleep, sends an event.

mod again;
mod config;
mod datagrams;
mod link;
mod listener;
mod progress;
mod rings;
mod session;
mod socket;
mod state;
mod stream;

pub use config::{Config, Statistics};
pub use datagrams::{Datagrams, UdpSocket};
pub use listener::Listener;
pub use stream::{Connection, Stream};
pub use xensock_stream::{ReadHalf, WriteHalf};

use crate::wire::Options;
use alloc::rc::Rc;
use core::net::{Ipv4Addr, SocketAddr};
use edge_nal::{Readable, TcpAccept, TcpBind, TcpConnect, UdpBind, UdpConnect};
use embedded_io_async::ErrorType;
use state::Core;
use xen::xenstore::Store;
use xen::{Errno, Machine, frontend};

/// A handle to a frontend. Clones are handles to the same frontend.
///
/// # Example
/// A guest, its backend and a server in one process:
/// ```
/// use edge_nal::{Close, TcpShutdown};
/// use embedded_io_async::Write;
/// # use futures_executor::{LocalPool, LocalSpawner};
/// use futures_util::{future::join, task::LocalSpawnExt};
/// use xen::testing::{FakeStore, World};
/// use xensock::front::{Config, Frontend};
/// use xensock::testing::{FakeDom0, FakeNet, backend};
/// use xensock::wire::Dialect;
/// # use xen::{DomId, Errno, xenstore};
///
/// let (front, back) = ("/local/domain/7/device/pvcalls/0", "/local/domain/0/backend/pvcalls/7/0");
/// let (world, fake, net) = (World::new(), FakeStore::new(), FakeNet::new());
/// let mut pool = LocalPool::new();
/// # for domain in [DomId(0), DomId(7)] {
/// #     fake.add_domain(domain);
/// # }
/// # let connect = |domain, spawner: &LocalSpawner| {
/// #     let (reader, writer) = fake.connect(domain);
/// #     let (store, driver) = xenstore::connect(reader, writer);
/// #     spawner.spawn_local(async move { drop(driver.run().await) }).unwrap();
/// #     store
/// # };
/// # let spawner = pool.spawner();
/// fake.add_device((front, DomId(7)), (back, DomId(0)));
/// let (guest_store, dom0_store) = (connect(DomId(7), &spawner), connect(DomId(0), &spawner));
/// let dom0 = FakeDom0::new(&world, DomId(0), net.clone());
/// spawner.spawn_local(async move {
///     let protocol = Dialect::PvCalls.into();
///     backend(&dom0, &dom0_store, back, protocol, Default::default()).await;
/// }).unwrap();
///
/// let machine = world.machine(DomId(7));
/// let (frontend, driver) = Frontend::new(machine, guest_store, front, Config::default());
/// let addr = ([127, 0, 0, 1], 80).into();
/// let server = net.listen(addr)?;
/// let exchange = async {
///     let mut stream = frontend.connect(addr).await?;
///     stream.write_all(b"hello").await?;
///     stream.close(Close::Both).await?;
///     let received = server.accept().await.read_to_end().await?;
///     frontend.shutdown().await;
///     Ok::<_, Errno>(received)
/// };
/// let (ended, received) = pool.run_until(join(driver.run(), exchange));
/// assert_eq!((ended, received), (Errno::ENODEV, Ok(b"hello".to_vec())));
/// world.assert_clean();
/// # Ok::<(), Errno>(())
/// ```
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
    /// Waits until the device is connected. Returns the backend's error ([`Errno::ECONNREFUSED`]
    /// and others), [`Errno::ENOMEM`] or [`Errno::ENOSPC`] if there is no memory, grant or port for
    /// another ring, [`Errno::ETIMEDOUT`] if the backend does not answer, [`Errno::ENETDOWN`] if
    /// the session ends, or [`Errno::ENODEV`] if the device was removed.
    ///
    /// Dropping the future leaks nothing: a connection that the backend still makes is released.
    pub async fn connect(&self, to: SocketAddr) -> Result<Stream<M>, Errno> {
        self.connect_with(to, Options::new()).await
    }

    /// Connects a socket with these options. [`Errno::EOPNOTSUPP`] if the backend does not support
    /// options, except for those that set the ring's size.
    pub async fn connect_with(&self, to: SocketAddr, options: Options) -> Result<Stream<M>, Errno> {
        self.0.link.run(stream::connect(self.0.clone(), to, options)).await
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

    /// Opens a datagram socket and binds it to an address in the backend's network. An unspecified
    /// address means all addresses, and port 0 a free port.
    ///
    /// [`Errno::EOPNOTSUPP`] if the backend has no datagram sockets, which are an extension of the
    /// protocol: Linux's backend has none, and neither has `xensockd --plain`. Other errors are as
    /// for [`connect`](Frontend::connect).
    ///
    /// A socket's ring keeps its size. If the options do not choose another and the memory is
    /// there, each direction of the ring has room for the longest datagram of IPv4. A socket takes
    /// 65 pages then, of [`Config::ring_budget`], and a smaller ring if that is more than half of
    /// what is left there; [`UdpSocket::longest`] is what it can send. The rings of closed sockets
    /// are kept for the next ones, so a socket for a single exchange costs few requests and no new
    /// pages.
    pub async fn bind_udp(&self, local: SocketAddr) -> Result<Datagrams<M>, Errno> {
        self.bind_udp_with(local, Options::new()).await
    }

    /// Opens and binds a datagram socket with these options. [`SocketOption::ReceiveBuffer`] and
    /// `SendBuffer` choose the size of its ring.
    ///
    /// [`SocketOption::ReceiveBuffer`]: crate::wire::SocketOption::ReceiveBuffer
    pub async fn bind_udp_with(
        &self,
        local: SocketAddr,
        options: Options,
    ) -> Result<Datagrams<M>, Errno> {
        self.0.link.run(datagrams::open(self.0.clone(), local, None, options)).await
    }

    /// Opens a datagram socket that sends to one peer and receives from no other, and binds it to
    /// a local address as [`bind_udp`](Frontend::bind_udp) does. [`Errno::EAFNOSUPPORT`] if the
    /// addresses are of different families.
    pub async fn connect_udp(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<Datagrams<M>, Errno> {
        self.connect_udp_with(local, remote, Options::new()).await
    }

    /// Opens and connects a datagram socket with these options.
    pub async fn connect_udp_with(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        options: Options,
    ) -> Result<Datagrams<M>, Errno> {
        self.0.link.run(datagrams::open(self.0.clone(), local, Some(remote), options)).await
    }

    /// Waits until the device is connected. [`Errno::ENODEV`] after
    /// [`shutdown`](Frontend::shutdown), or the error with which the driver ended.
    pub async fn connected(&self) -> Result<(), Errno> {
        self.0.link.up().await.map(drop)
    }

    /// Must be called in a domain that was restored from a save: it has lost its grants and event
    /// channels. All streams end with [`Errno::ENETDOWN`], the driver connects to the domain's new
    /// backend, and listeners are bound again. Returns when the old session's xenstore requests are
    /// dropped. Xenstore must be [quiesced](Store::quiesce) from before the save until then, as the
    /// old requests are not for the new device.
    pub async fn resume(&self) {
        frontend::resume(&*self.0).await;
    }

    /// Closes the device in an orderly way: all sockets end with [`Errno::ENODEV`], the backend
    /// unmaps the rings, and all memory goes back to the machine. The driver's future ends then.
    pub async fn shutdown(&self) {
        self.0.shutdown().await;
    }

    /// Frees the pages that are kept for further connections and granted to nobody, and shrinks
    /// rings that have grown.
    pub fn trim(&self) {
        self.0.pages.drain();
        self.0.elastic.shrink(true);
    }

    /// The number of pages of a new connection's data ring: for the present backend or, before
    /// there is one, for a backend with all extensions.
    pub fn ring_pages(&self) -> usize {
        let session = self.0.link.session();
        let layout = session.map(|session| session.protocol.layout(session.ring_order));
        layout.and_then(Result::ok).map_or(self.0.config.ring_pages(), |layout| layout.pages)
    }

    /// The counters.
    pub fn statistics(&self) -> Statistics {
        let usage = self.0.pages.usage();
        Statistics {
            notifications_sent: self.0.link.notifications.get(),
            grants: usage.grants,
            pages: usage.pages,
            quarantined_pages: usage.quarantined_pages,
            parked_rings: self.0.rings.parked() as u64,
            ring_pages: self.0.rings.ring_pages() as u64,
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

impl<M: Machine> UdpBind for Frontend<M> {
    type Error = Errno;
    type Socket<'a> = Datagrams<M>;

    async fn bind(&self, local: SocketAddr) -> Result<Datagrams<M>, Errno> {
        self.bind_udp(local).await
    }
}

impl<M: Machine> UdpConnect for Frontend<M> {
    type Error = Errno;
    type Socket<'a> = Datagrams<M>;

    async fn connect(&self, local: SocketAddr, remote: SocketAddr) -> Result<Datagrams<M>, Errno> {
        self.connect_udp(local, remote).await
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
/// Shut the frontend down before dropping an unfinished driver: otherwise the rings of its jobs
/// leak. They are never reused, so no other domain can see them.
pub struct Driver<M: Machine + 'static> {
    core: Rc<Core<M>>,
    driver: frontend::Driver<Core<M>>,
}

impl<M: Machine> Driver<M> {
    /// Connects to the backend, serves the sockets, and connects again when the backend returns.
    ///
    /// Returns [`Errno::ENODEV`] after [`Frontend::shutdown`], or the error that made the device
    /// unusable. All pages are back at the machine then.
    pub async fn run(self) -> Errno {
        self.driver.run().await
    }
}

impl<M: Machine> Drop for Driver<M> {
    fn drop(&mut self) {
        self.core.link.drop_jobs();
    }
}
