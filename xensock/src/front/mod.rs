//! The frontend: sockets for a guest.
//!
//! [`Frontend`] opens [`Stream`]s and [`Listener`]s; its [`Driver`] is a future that somebody must
//! poll. Both are for one thread. The traits are `edge-nal`'s and `embedded-io-async`'s, so what is
//! written for those runs over it unchanged.
//!
//! What an application does in one call can take several requests, and each of them must be seen to
//! its end whether or not the application still waits. So the driver carries such work out as jobs of
//! its own, and a future that is dropped at any point loses nothing: a stream that nobody fetches is
//! released like one that was dropped.
//!
//! The data path goes by without the driver: a read or a write copies from or to the ring, advances
//! an index and sends an event.

mod calls;
mod counters;
mod device;
mod driver;
mod listener;
#[allow(unsafe_code, reason = "pages are given back to the machine here")]
mod memory;
mod nal;
mod release;
mod session;
mod socket;
mod stream;

pub use counters::Statistics;
pub use driver::Driver;
pub use listener::Listener;
pub use stream::{Connection, Stream};
pub use xensock_stream::{ReadHalf, WriteHalf};

use crate::wire::{Dialect, Extensions, Options};
use alloc::rc::Rc;
use alloc::string::ToString;
use core::net::SocketAddr;
use device::Device;
use embassy_time::Duration;
use xen::Errno;
use xen::Machine;
use xen::xenstore::Store;

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

/// A handle to a frontend device. Clones are handles to the same device.
pub struct Frontend<M: Machine + 'static>(Rc<Device<M>>);

impl<M: Machine + 'static> Clone for Frontend<M> {
    fn clone(&self) -> Self {
        Frontend(self.0.clone())
    }
}

impl<M: Machine + 'static> Frontend<M> {
    /// A frontend for the device whose folder in xenstore is `path`, such as `device/pvcalls/0`.
    /// Nothing happens until its driver runs.
    pub fn new(machine: M, store: Store, path: &str, config: Config) -> (Self, Driver<M>) {
        let device = Rc::new(Device::new(machine, config));
        (Frontend(device.clone()), Driver::new(device, store, path.to_string()))
    }

    /// Connects to an address in the backend's network.
    ///
    /// Waits until the device is connected. The error is the backend's ([`Errno::ECONNREFUSED`] and its
    /// like), [`Errno::ENOMEM`] or [`Errno::ENOSPC`] when there is no memory, grant or port for another
    /// ring, [`Errno::ETIMEDOUT`] when the backend does not answer, [`Errno::ENETDOWN`] when it went
    /// away, [`Errno::ENODEV`] when there is no device (any more).
    pub async fn connect(&self, to: SocketAddr) -> Result<Stream<M>, Errno> {
        self.connect_with(to, Options::new()).await
    }

    /// Connects a socket with these options. [`Errno::EOPNOTSUPP`] when the backend has no options, but
    /// for those of the ring's size.
    pub async fn connect_with(&self, to: SocketAddr, options: Options) -> Result<Stream<M>, Errno> {
        let device = self.0.clone();
        self.0.run(async move { socket::connect(&device, to, &options).await }).await
    }

    /// Listens at an address in the backend's network. Errors are as for
    /// [`connect`](Frontend::connect).
    pub async fn bind(&self, at: SocketAddr) -> Result<Listener<M>, Errno> {
        self.bind_with(at, Options::new()).await
    }

    /// Listens with a socket that has these options, and so have its connections.
    pub async fn bind_with(&self, at: SocketAddr, options: Options) -> Result<Listener<M>, Errno> {
        let device = self.0.clone();
        self.0.run(async move { listener::bind(&device, at, options).await }).await
    }

    /// Waits until the device is connected. [`Errno::ENODEV`] after [`shutdown`](Frontend::shutdown), and
    /// what the driver has ended with.
    pub async fn connected(&self) -> Result<(), Errno> {
        self.0.attached().await.map(drop)
    }

    /// To be called in a domain that was restored from a save, where all grants and event channels of
    /// before are lost: all sockets end with [`Errno::ENETDOWN`], the driver connects to the domain's new
    /// backend, and listeners listen again. Returns when nothing of before can be asked of xenstore
    /// any more. Xenstore must be [held](Store::hold) from before the save until then: what was asked
    /// before is not meant for the new device.
    pub async fn resume(&self) {
        self.0.resume().await;
    }

    /// Closes the device in an orderly way: all sockets end with [`Errno::ENODEV`], the backend lets go
    /// of what it has mapped, and all memory goes back to the machine. The driver's future ends then.
    pub async fn shutdown(&self) {
        self.0.shutdown().await;
    }

    /// Gives the machine the pages that are kept for further connections and shared with nobody.
    pub fn trim(&self) {
        self.0.memory.drain_pool();
    }

    /// What was counted so far.
    pub fn statistics(&self) -> Statistics {
        self.0.counters.read()
    }
}
