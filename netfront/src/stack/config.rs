//! The configuration of a stack.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use embassy_time::Duration;
use smoltcp::socket::tcp;
use smoltcp::wire::{Ipv4Cidr, Ipv6Cidr};
use xen::Errno;

/// The source of the interface's IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv4 {
    /// A DHCP server, which also provides the gateway and the DNS servers.
    Dhcp,
    /// The configuration.
    Static {
        /// The address and the network's prefix length.
        address: Ipv4Cidr,
        /// The default gateway.
        gateway: Option<Ipv4Addr>,
    },
}

/// The configuration of a stack.
#[derive(Clone, Debug)]
pub struct Config {
    /// The IPv4 address.
    pub ipv4: Ipv4,
    /// An IPv6 address besides the link-local one, and the default gateway.
    pub ipv6: Option<(Ipv6Cidr, Option<Ipv6Addr>)>,
    /// DNS servers. If empty, those of the DHCP server are used.
    pub dns: Vec<IpAddr>,
    /// Bytes that a connection buffers until they are read: its window.
    pub receive_buffer: usize,
    /// Bytes that a connection buffers until they are acknowledged.
    pub transmit_buffer: usize,
    /// How many connections may wait for a listener's `accept`; further ones are refused. Each has
    /// its buffers from its first packet on.
    pub backlog: usize,
    /// The time limit of `connect`.
    pub connect_within: Duration,
    /// How long a connection that was dropped may take to send what was written.
    pub linger: Duration,
    /// Bytes of datagrams that a socket buffers until they are received. Further ones are lost.
    pub datagram_receive_buffer: usize,
    /// Bytes of datagrams that a socket buffers until they are sent, for each neighbour that does
    /// not answer and for all others.
    pub datagram_transmit_buffer: usize,
    /// The source of TCP's sequence numbers and ports. It should differ from boot to boot.
    pub seed: u64,
    /// A source of unpredictable numbers for ports. Without one, ports follow each other.
    pub random: Option<fn() -> u64>,
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
            datagram_receive_buffer: 64 << 10,
            datagram_transmit_buffer: 32 << 10,
            seed: 0,
            random: None,
        }
    }
}

impl Config {
    /// The memory that a connection needs, in bytes.
    pub fn connection_memory(&self) -> usize {
        self.receive_buffer + self.transmit_buffer + 1024
    }

    /// A socket with buffers of the configured sizes.
    pub(super) fn socket(&self) -> Result<tcp::Socket<'static>, Errno> {
        let buffer = |len: usize| {
            let mut buffer = Vec::new();
            buffer.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
            buffer.resize(len, 0);
            Ok(tcp::SocketBuffer::new(buffer))
        };
        let mut socket =
            tcp::Socket::new(buffer(self.receive_buffer)?, buffer(self.transmit_buffer)?);
        // Small writes are sent at once.
        socket.set_nagle_enabled(false);
        socket.set_congestion_control(tcp::CongestionControl::Reno);
        Ok(socket)
    }
}
