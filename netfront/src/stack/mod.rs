//! TCP over a network interface of the guest's own, behind the same traits as XenSock's sockets.
//!
//! [`Stack`] is the socket API: [`edge_nal`]'s traits, and the same ones of `embedded-io-async` for streams.
//! Its [`Runner`] moves packets between the interface and [`smoltcp`]'s sockets whenever there are any, and
//! sleeps until the interface, a socket's user or a timer of TCP's has something for it. It never polls.
//!
//! It stands on smoltcp itself. The async crates on top of it have a pool of sockets of a fixed size, no
//! backlog, and a device trait of their own that smoltcp's tracers do not fit.
//!
//! # What is as with XenSock, and what is not
//!
//! Reads, writes, end of stream, half-close, cancellation and dropping are the same. `abort` resets the
//! connection, always. A stream's error is [`Errno::ECONNRESET`] also where Linux knows more. A guest that
//! loses its address loses the connections from it ([`Errno::ENETDOWN`]); listeners stay.
//!
//! Both names of a stream are known at once, always. Of the options there are keep-alive and
//! TCP_NODELAY, as methods that need no answer; buffers have the sizes of [`Config`]. Nothing is shared with dom0:
//! a port is free unless this guest listens at it.

mod addresses;
mod listener;
mod resolve;
mod runner;
mod state;
mod stream;

pub use listener::Listener;
pub use runner::Runner;
pub use smoltcp::wire::{Ipv4Cidr, Ipv6Cidr};
pub use stream::{Connection, Stream};
pub use xensock_stream::{ReadHalf, WriteHalf};

use crate::Nic;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use edge_nal::{TcpBind, TcpConnect};
use embassy_time::Duration;
use smoltcp::phy::Device;
use state::Inner;
use xen::Errno;

/// Where the interface's IPv4 address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv4 {
    /// A DHCP server, which also names the gateway and the DNS servers.
    Dhcp,
    /// The configuration.
    Static {
        /// The address, and how much of it is the network's.
        address: Ipv4Cidr,
        /// The way to other networks.
        gateway: Option<Ipv4Addr>,
    },
}

/// How a stack behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// The IPv4 address.
    pub ipv4: Ipv4,
    /// An IPv6 address beside the link-local one, and the way to other networks.
    pub ipv6: Option<(Ipv6Cidr, Option<Ipv6Addr>)>,
    /// DNS servers; without any, those of the DHCP server.
    pub dns: Vec<IpAddr>,
    /// Bytes that a connection receives before they are read; its window.
    pub receive_buffer: usize,
    /// Bytes that are written to a connection before they are acknowledged.
    pub transmit_buffer: usize,
    /// How many connections may wait for a listener's `accept`; further ones are refused. Each has its buffers
    /// from its first packet on.
    pub backlog: usize,
    /// How long a connection is tried for.
    pub connect_within: Duration,
    /// How long a connection that was dropped is kept although the peer takes nothing.
    pub linger: Duration,
    /// Unlike that of any other boot, if it can be: TCP's sequence numbers and ports depend on it.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            ipv4: Ipv4::Dhcp,
            ipv6: None,
            dns: Vec::new(),
            receive_buffer: 64 << 10,
            transmit_buffer: 64 << 10,
            backlog: 256,
            connect_within: Duration::from_secs(75),
            linger: Duration::from_secs(30),
            seed: 0,
        }
    }
}

impl Config {
    /// The bytes that a connection takes.
    pub fn connection_memory(&self) -> usize {
        self.receive_buffer + self.transmit_buffer + 1024
    }
}

/// A handle to a stack. Clones are handles to the same one.
#[derive(Clone)]
pub struct Stack(Rc<Inner>);

/// How many connections there are, and were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Streams that were ever connected or accepted.
    pub streams_opened: u64,
    /// Streams that exist now.
    pub streams_open: u64,
    /// Bytes read from streams.
    pub bytes_in: u64,
    /// Bytes written to streams.
    pub bytes_out: u64,
}

impl Stack {
    /// A stack over an interface: `device`, and `nic` as its handle. Nothing happens until the runner runs.
    pub fn new<D: Device, N: Nic>(mut device: D, nic: N, config: Config) -> (Self, Runner<D, N>) {
        let inner = Rc::new(Inner::new(&mut device, nic.hardware_address(), config));
        (Stack(inner.clone()), Runner::new(inner, device, nic))
    }

    /// Connects to an address. Waits until there is an address to connect from.
    ///
    /// [`Errno::ECONNREFUSED`] when the peer refuses, [`Errno::ETIMEDOUT`] when nothing answers within the
    /// configured time, [`Errno::ENETUNREACH`] when no way leads there, [`Errno::ENOMEM`] when there is no
    /// memory for another connection.
    pub async fn connect(&self, to: SocketAddr) -> Result<Stream, Errno> {
        stream::connect(&self.0, to).await
    }

    /// Listens at an address, which may be unspecified, and a port: 0 is one that is free.
    /// [`Errno::EADDRINUSE`] when somebody listens there already.
    pub async fn bind(&self, at: SocketAddr) -> Result<Listener, Errno> {
        listener::bind(&self.0, at)
    }

    /// Waits until the interface has the address that its configuration promises.
    pub async fn configured(&self) {
        self.0.changed.until(|| self.0.with(|state| state.has_address(false)).then_some(())).await;
    }

    /// The interface's IPv4 address, if it has one now.
    pub fn ipv4(&self) -> Option<Ipv4Cidr> {
        self.0.with(|state| state.ipv4())
    }

    /// Whether no stream is left, nor one that was dropped and has something to send still.
    pub fn is_quiet(&self) -> bool {
        self.0.counted.open.get() == 0 && self.0.with(|state| state.closing.is_empty())
    }

    /// What was counted.
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
