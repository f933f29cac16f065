//! TCP and UDP over the guest's own network interface, with the same traits as XenSock's sockets.
//!
//! [`Stack`] is the socket API: [`edge_nal`]'s traits, and those of `embedded-io-async` for
//! streams. Its [`Runner`] moves packets between the interface and [`smoltcp`]'s sockets. It never
//! polls: it sleeps until the interface, an application or a timer of TCP wakes it.
//!
//! It uses smoltcp itself. The async crates on top of smoltcp have a pool of sockets of a fixed
//! size, no backlog, and a device trait of their own, which smoltcp's tracers do not implement.
//!
//! # Example
//!
//! Two ends of a connection in one stack, over smoltcp's loopback device:
//!
//! ```
//! use core::task::Waker;
//! use embedded_io_async::{Read, Write};
//! use futures_util::future::{join, select};
//! use netfront::smoltcp::phy::{Loopback, Medium};
//! use netfront::smoltcp::wire::EthernetAddress;
//! use netfront::stack::{Config, Ipv4, Ipv4Cidr, Stack};
//! use netfront::{Link, Nic};
//! use std::net::{Ipv4Addr, SocketAddr};
//! use std::pin::pin;
//!
//! /// A handle to the loopback device, which is always ready.
//! struct Always;
//!
//! impl Nic for Always {
//!     fn hardware_address(&self) -> EthernetAddress {
//!         EthernetAddress([2, 0, 0, 0, 0, 1])
//!     }
//!
//!     fn link(&self) -> Link {
//!         Link::Up(1)
//!     }
//!
//!     fn register(&self, waker: &Waker) {
//!         waker.wake_by_ref();
//!     }
//!
//!     fn flush(&self) {}
//! }
//!
//! let address = Ipv4Cidr::new(Ipv4Addr::LOCALHOST, 8);
//! let config = Config { ipv4: Ipv4::Static { address, gateway: None }, ..Config::default() };
//! let (stack, runner) = Stack::new(Loopback::new(Medium::Ethernet), Always, config);
//! let work = async {
//!     let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 7));
//!     let listener = stack.bind(server).await?;
//!     let (client, accepted) = join(stack.connect(server), listener.accept()).await;
//!     let (mut client, mut accepted) = (client?, accepted?);
//!     client.write_all(b"hello").await?;
//!     let mut bytes = [0; 16];
//!     let count = accepted.read(&mut bytes).await?;
//!     assert_eq!(&bytes[..count], b"hello");
//!     Ok::<(), xen::Errno>(())
//! };
//! futures_executor::block_on(select(pin!(work), pin!(runner.run())));
//! ```
//!
//! # Compared with XenSock
//!
//! Reads, writes, end of stream, half-close, cancellation and dropping are the same. Differences:
//!
//! - `abort` always resets the connection.
//! - A broken connection's error is [`Errno::ECONNRESET`] where Linux may report others.
//! - A guest that loses its address loses the connections from it ([`Errno::ENETDOWN`]); listeners
//!   stay.
//! - The addresses of a stream's ends are known at once.
//! - The only options are keep-alive and TCP_NODELAY; [`Config`] has the buffers' sizes.
//! - Ports are not shared with dom0: a port is free unless this guest listens at it.
//! - Datagrams are not fragmented, nor put together: the interface's MTU limits them. None reaches
//!   the guest itself, whether by its own address or by multicast.

mod addresses;
mod backlog;
mod config;
mod datagrams;
mod icmp;
mod listener;
mod neighbours;
mod port;
mod runner;
mod state;
mod stream;

pub use config::{Config, Ipv4};
pub use datagrams::{Datagrams, UdpSocket};
pub use listener::Listener;
pub use runner::Runner;
pub use smoltcp::wire::{Ipv4Cidr, Ipv6Cidr};
pub use state::Statistics;
pub use stream::{Connection, Stream};
pub use xensock_stream::{Group, ReadHalf, WriteHalf};

use crate::Nic;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use edge_nal::{TcpBind, TcpConnect};
use smoltcp::phy::Device;
use state::Inner;
use xen::Errno;

/// A handle to a stack. Clones are handles to the same one.
#[derive(Clone)]
pub struct Stack(Rc<Inner>);

impl Stack {
    /// A stack over an interface, `device`, whose handle is `nic`. Does nothing until the runner
    /// runs.
    pub fn new<D: Device, N: Nic>(mut device: D, nic: N, config: Config) -> (Self, Runner<D, N>) {
        let inner = Rc::new(Inner::new(&mut device, nic.hardware_address(), config));
        (Stack(inner.clone()), Runner::new(inner, device, nic))
    }

    /// Connects to an address. Waits until the interface has an address.
    ///
    /// # Errors
    ///
    /// [`Errno::ECONNREFUSED`] if the peer refuses, [`Errno::ETIMEDOUT`] if nothing answers within
    /// [`Config::connect_within`], [`Errno::ENETUNREACH`] without a route, [`Errno::ENOMEM`]
    /// without memory for the buffers.
    pub async fn connect(&self, remote: SocketAddr) -> Result<Stream, Errno> {
        stream::connect(&self.0, remote).await
    }

    /// Listens at an address, which may be unspecified. Port 0 chooses a free port.
    ///
    /// # Errors
    ///
    /// [`Errno::EADDRINUSE`] if a listener of this stack has the address, [`Errno::EADDRNOTAVAIL`]
    /// if it is not the interface's, [`Errno::ENOMEM`] without memory for the buffers.
    pub async fn bind(&self, local: SocketAddr) -> Result<Listener, Errno> {
        listener::bind(&self.0, local)
    }

    /// Binds a socket of datagrams to an address, which may be unspecified. Port 0 chooses a free
    /// port.
    ///
    /// # Errors
    ///
    /// [`Errno::EADDRINUSE`] if a socket of this stack has the address, [`Errno::EADDRNOTAVAIL`] if
    /// it is not the interface's, [`Errno::ENOMEM`] without memory for the buffers.
    pub async fn bind_udp(&self, local: SocketAddr) -> Result<Datagrams, Errno> {
        datagrams::bind(&self.0, local)
    }

    /// Binds a socket of datagrams that sends to one peer and receives from no other. Waits until
    /// the interface has an address, as its own does not change then.
    ///
    /// # Errors
    ///
    /// Those of [`bind_udp`](Self::bind_udp), [`Errno::EAFNOSUPPORT`] if the addresses are of
    /// different families, [`Errno::ENETUNREACH`] without a route, [`Errno::ETIMEDOUT`] without an
    /// address within [`Config::connect_within`].
    pub async fn connect_udp(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<Datagrams, Errno> {
        datagrams::connect(&self.0, local, remote).await
    }

    /// Waits until the interface has an IPv4 address.
    pub async fn configured(&self) {
        self.0.changed.until(|| self.0.with(|state| state.has_address(false)).then_some(())).await;
    }

    /// The interface's current IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Cidr> {
        self.0.with(|state| state.addresses.ipv4())
    }

    /// The DNS servers of the configuration or of the DHCP server.
    pub fn dns_servers(&self) -> Vec<IpAddr> {
        self.0.with(|state| state.addresses.dns_servers().to_vec())
    }

    /// Whether no stream exists and all data of dropped ones was sent.
    pub fn is_quiet(&self) -> bool {
        self.0.statistics().streams_open == 0 && self.0.with(|state| state.is_quiet())
    }

    /// Counts of connections and bytes so far.
    pub fn statistics(&self) -> Statistics {
        self.0.statistics()
    }
}

impl TcpConnect for Stack {
    type Error = Errno;
    type Socket<'a> = Stream;

    async fn connect(&self, remote: SocketAddr) -> Result<Stream, Errno> {
        Stack::connect(self, remote).await
    }
}

impl TcpBind for Stack {
    type Error = Errno;
    type Accept<'a> = Listener;

    async fn bind(&self, local: SocketAddr) -> Result<Listener, Errno> {
        Stack::bind(self, local).await
    }
}
