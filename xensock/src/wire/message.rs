//! Requests and responses as plain Rust values, the same for every dialect.

use super::field::Family;
use super::options::SocketOption;
use alloc::boxed::Box;
use core::net::SocketAddr;
use xen::{Errno, GrantRef, Port};
use xensock_stream::Group;

/// A command. Its number depends on the dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Creates a socket. In draft 1, whose CONNECT and BIND create a stream socket, it is only for
    /// datagram sockets.
    Socket,
    /// Connects a socket and opens its data ring.
    Connect,
    /// Closes a socket and its data ring.
    Release,
    /// Binds a socket to an address.
    Bind,
    /// Makes a bound socket listen.
    Listen,
    /// Waits for a connection and opens its data ring.
    Accept,
    /// Waits until a connection can be accepted.
    Poll,
    /// Sets a socket option ([`Extensions::OPTIONS`](super::Extensions::OPTIONS)).
    SetOption,
    /// Reads a socket option ([`Extensions::OPTIONS`](super::Extensions::OPTIONS)).
    GetOption,
    /// Closes one or both directions of a connection
    /// ([`Extensions::SHUTDOWN`](super::Extensions::SHUTDOWN)).
    Shutdown,
    /// Reads a socket's own address ([`Extensions::NAMES`](super::Extensions::NAMES)).
    LocalAddr,
    /// Reads the address of a connection's peer ([`Extensions::NAMES`](super::Extensions::NAMES)).
    PeerAddr,
    /// Replaces the data ring of an open connection
    /// ([`Extensions::RESIZE`](super::Extensions::RESIZE)).
    Resize,
    /// Opens the data ring of a datagram socket
    /// ([`Extensions::DATAGRAM`](super::Extensions::DATAGRAM)).
    Open,
    /// Makes a datagram socket a member of a multicast group
    /// ([`Extensions::DATAGRAM`](super::Extensions::DATAGRAM)).
    Join,
    /// Ends a membership ([`Extensions::DATAGRAM`](super::Extensions::DATAGRAM)).
    Leave,
    /// A number that the dialect does not define.
    Unknown(u32),
}

/// Which directions of a connection to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Shutdown {
    /// Stop receiving (`SHUT_RD`).
    Read = 0,
    /// Stop sending once the ring is empty (`SHUT_WR`).
    Write = 1,
    /// Both (`SHUT_RDWR`).
    Both = 2,
}

impl Shutdown {
    /// Decodes the number on the wire. [`Errno::EINVAL`] if it is none of the three.
    pub fn from_number(number: u32) -> Result<Shutdown, Errno> {
        let all = [Shutdown::Read, Shutdown::Write, Shutdown::Both];
        all.get(number as usize).copied().ok_or(Errno::EINVAL)
    }

    /// Whether the receiving direction is closed.
    pub fn reads(self) -> bool {
        self != Shutdown::Write
    }

    /// Whether the sending direction is closed.
    pub fn writes(self) -> bool {
        self != Shutdown::Read
    }
}

/// The grant references by which a request offers a data ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingGrants {
    /// The indexes page, which itself lists the data pages
    /// ([`Dialect::read_ring`](super::Dialect::read_ring)).
    Indexes(GrantRef),
    /// All pages of the ring, in order.
    Region(Box<[GrantRef]>),
}

/// A data ring that a frontend offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingOffer {
    /// Its pages.
    pub grants: RingGrants,
    /// The frontend's port of its event channel.
    pub port: Port,
}

/// A socket call with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Command::Socket`] of type `SOCK_STREAM`.
    Socket {
        /// The family of its addresses.
        family: Family,
    },
    /// [`Command::Socket`] of type `SOCK_DGRAM`.
    DatagramSocket {
        /// The family of its addresses.
        family: Family,
    },
    /// [`Command::Connect`].
    Connect {
        /// The address of the peer.
        addr: SocketAddr,
        /// Reserved by both dialects: 0.
        flags: u32,
        /// The ring for the connection's data.
        ring: RingOffer,
    },
    /// [`Command::Release`].
    Release {
        /// Whether the frontend will offer the same pages and port again, so that a backend may
        /// keep them mapped.
        reuse: bool,
    },
    /// [`Command::Bind`].
    Bind {
        /// The socket's own address.
        addr: SocketAddr,
    },
    /// [`Command::Listen`].
    Listen {
        /// How many connections may wait to be accepted.
        backlog: u32,
    },
    /// [`Command::Accept`].
    Accept {
        /// The frontend's id for the socket of the new connection.
        new: u64,
        /// The ring for the connection's data.
        ring: RingOffer,
    },
    /// [`Command::Poll`].
    Poll,
    /// [`Command::SetOption`].
    SetOption {
        /// The option.
        option: SocketOption,
        /// Its new value.
        value: u32,
    },
    /// [`Command::GetOption`]: the value is the response's result.
    GetOption {
        /// The option.
        option: SocketOption,
    },
    /// [`Command::Shutdown`].
    Shutdown {
        /// The directions to close.
        how: Shutdown,
    },
    /// [`Command::LocalAddr`].
    LocalAddr,
    /// [`Command::PeerAddr`].
    PeerAddr,
    /// [`Command::Resize`]: the event channel stays the same.
    Resize {
        /// The pages of the new ring.
        grants: RingGrants,
    },
    /// [`Command::Open`].
    Open {
        /// The only peer of a connected socket.
        peer: Option<SocketAddr>,
        /// The ring for the socket's records.
        ring: RingOffer,
    },
    /// [`Command::Join`].
    Join(Group),
    /// [`Command::Leave`].
    Leave(Group),
}

impl Call {
    /// The command of this call.
    pub fn command(&self) -> Command {
        match self {
            Call::Socket { .. } | Call::DatagramSocket { .. } => Command::Socket,
            Call::Connect { .. } => Command::Connect,
            Call::Release { .. } => Command::Release,
            Call::Bind { .. } => Command::Bind,
            Call::Listen { .. } => Command::Listen,
            Call::Accept { .. } => Command::Accept,
            Call::Poll => Command::Poll,
            Call::SetOption { .. } => Command::SetOption,
            Call::GetOption { .. } => Command::GetOption,
            Call::Shutdown { .. } => Command::Shutdown,
            Call::LocalAddr => Command::LocalAddr,
            Call::PeerAddr => Command::PeerAddr,
            Call::Resize { .. } => Command::Resize,
            Call::Open { .. } => Command::Open,
            Call::Join(_) => Command::Join,
            Call::Leave(_) => Command::Leave,
        }
    }
}

/// A request of a frontend.
///
/// ```
/// use xensock::wire::{Call, Dialect, Protocol, Request};
///
/// let protocol = Protocol::from(Dialect::PvCalls);
/// let request = Request { id: 1, socket: 7, call: Call::Listen { backlog: 16 } };
/// let mut slot = vec![0; protocol.slots().request];
/// protocol.encode_request(&request, &mut slot)?;
/// assert_eq!(slot[4..8], 4u32.to_le_bytes(), "the number of LISTEN");
/// assert_eq!(protocol.decode_request(&slot), Ok(request));
/// # Ok::<(), xen::Errno>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The frontend's number of this request, repeated in its response.
    pub id: u32,
    /// The frontend's id of the socket.
    pub socket: u64,
    /// What to do with the socket.
    pub call: Call,
}

/// A response of a backend.
///
/// ```
/// use xen::Errno;
/// use xensock::wire::{Call, Dialect, Protocol, Request};
///
/// let protocol = Protocol::from(Dialect::PvCalls);
/// let request = Request { id: 1, socket: 7, call: Call::Poll };
/// let response = request.answer(Err(Errno::ECONNABORTED));
/// let mut slot = vec![0; protocol.slots().response];
/// protocol.encode_response(&response, &mut slot);
/// assert_eq!(protocol.decode_response(&slot), response);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request's number.
    pub id: u32,
    /// The request's command.
    pub command: Command,
    /// The request's socket.
    pub socket: u64,
    /// The result. No command of the plain dialects has a value other than 0.
    pub result: Result<u32, Errno>,
    /// With [`Extensions::NAMES`](super::Extensions::NAMES): the socket's own address in the
    /// response to CONNECT, OPEN, BIND and GETSOCKNAME, the peer's in that to ACCEPT and
    /// GETPEERNAME.
    pub addr: Option<SocketAddr>,
}

/// The part of a request that its response repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The request's number.
    pub id: u32,
    /// The request's command.
    pub command: Command,
    /// The request's socket.
    pub socket: u64,
}

impl Header {
    /// The response to the request, without an address.
    pub fn answer(self, result: Result<u32, Errno>) -> Response {
        let Header { id, command, socket } = self;
        Response { id, command, socket, result, addr: None }
    }
}

impl Request {
    /// The part that the response repeats.
    pub fn header(&self) -> Header {
        Header { id: self.id, command: self.call.command(), socket: self.socket }
    }

    /// The response to this request, without an address.
    pub fn answer(&self, result: Result<u32, Errno>) -> Response {
        self.header().answer(result)
    }
}

/// A request that a backend must refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The part that the response repeats.
    pub header: Header,
    /// The reason: [`Errno::ENOTSUP`] for an unknown command, [`Errno::EAFNOSUPPORT`] for an
    /// address of another family, [`Errno::ENOPROTOOPT`] for an unknown option, otherwise
    /// [`Errno::EINVAL`].
    pub error: Errno,
}

impl Malformed {
    /// The response that refuses the request.
    pub fn answer(&self) -> Response {
        self.header.answer(Err(self.error))
    }
}
