//! Requests and responses as plain Rust values, and the dialects that put them on a ring.
//!
//! The rest of the crate speaks in [`Request`]s, [`Response`]s and [`Layout`]s. What they look like in
//! shared memory (numbers of commands, sizes of slots, places of indexes, names of xenstore nodes) is
//! a [`Dialect`]'s affair, and each dialect is one file; a [`Protocol`] is a dialect with the
//! [`Extensions`] that the ends have agreed on. Neither touches a command ring itself: they decode
//! private copies, so that what was checked cannot change afterwards.

mod address;
mod dialect;
pub mod draft1;
mod extensions;
mod layout;
mod options;
mod protocol;
pub mod pvcalls;
mod slot;

pub use address::Family;
pub(crate) use dialect::RING_HEADER;
pub use dialect::{Dialect, MAX_SLOT, Offer, Slots};
pub use draft1::XENSOCK;
pub use extensions::Extensions;
pub use layout::{EventIndexes, Layout, Region, Way};
pub use options::{Options, SocketOption};
pub use protocol::Protocol;
pub use pvcalls::PVCALLS;

/// The dialects that there are, the one to be preferred first.
pub fn dialects() -> [&'static dyn Dialect; 2] {
    [PVCALLS, XENSOCK]
}

use alloc::boxed::Box;
use core::net::SocketAddr;
use xen::{Errno, GrantRef, Port};

/// A command's name, of whatever number in a dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Creates a socket. Not every dialect has it: in some, CONNECT and BIND create.
    Socket,
    /// Connects a socket and opens its data ring.
    Connect,
    /// Closes a socket and its data ring.
    Release,
    /// Gives a socket its own address.
    Bind,
    /// Makes a bound socket listen.
    Listen,
    /// Waits for a connection and opens its data ring.
    Accept,
    /// Waits until a connection could be accepted.
    Poll,
    /// Changes an option of a socket ([`Extensions::OPTIONS`]).
    SetOption,
    /// Asks for an option of a socket ([`Extensions::OPTIONS`]).
    GetOption,
    /// Closes one direction of a connection, or both ([`Extensions::SHUTDOWN`]).
    Shutdown,
    /// Asks for a socket's own address ([`Extensions::NAMES`]).
    LocalName,
    /// Asks for the address of a connection's other end ([`Extensions::NAMES`]).
    PeerName,
    /// Offers another data ring for an open connection ([`Extensions::RESIZE`]).
    Resize,
    /// A number that the dialect does not know.
    Unknown(u32),
}

/// Which directions of a connection are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum How {
    /// Nothing more is received (`SHUT_RD`).
    Read = 0,
    /// Nothing more is sent, after what is in the ring (`SHUT_WR`).
    Write = 1,
    /// Both (`SHUT_RDWR`).
    Both = 2,
}

impl How {
    /// By the number on the wire.
    pub fn from_number(number: u32) -> Result<How, Errno> {
        [How::Read, How::Write, How::Both].get(number as usize).copied().ok_or(Errno::EINVAL)
    }

    /// Whether the receiving direction is closed.
    pub fn reads(self) -> bool {
        self != How::Write
    }

    /// Whether the sending direction is closed.
    pub fn writes(self) -> bool {
        self != How::Read
    }
}

/// Which pages a data ring is made of, as the request that opens it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingGrants {
    /// The indexes page, which itself names the data pages ([`Dialect::read_ring`]).
    Indexes(GrantRef),
    /// All pages of the region, in order.
    Region(Box<[GrantRef]>),
}

/// A data ring offered by a frontend.
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
    /// [`Command::Socket`]: a stream socket, the only kind there is.
    Socket {
        /// The kind of its addresses.
        family: Family,
    },
    /// [`Command::Connect`].
    Connect {
        /// Where to.
        addr: SocketAddr,
        /// Reserved by the dialects: 0.
        flags: u32,
        /// The ring for the connection's data.
        ring: RingOffer,
    },
    /// [`Command::Release`].
    Release {
        /// Whether the frontend will use the same pages and port again, so that a backend may keep
        /// them mapped.
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
        /// The frontend's name for the socket of the connection.
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
    /// [`Command::GetOption`]: the value is the response's.
    GetOption {
        /// The option.
        option: SocketOption,
    },
    /// [`Command::Shutdown`].
    Shutdown {
        /// What is closed.
        how: How,
    },
    /// [`Command::LocalName`]: the name is the response's.
    LocalName,
    /// [`Command::PeerName`]: the name is the response's.
    PeerName,
    /// [`Command::Resize`]: the event channel stays.
    Resize {
        /// The pages of the new ring.
        grants: RingGrants,
    },
}

impl Call {
    /// The command of this call.
    pub fn command(&self) -> Command {
        match self {
            Call::Socket { .. } => Command::Socket,
            Call::Connect { .. } => Command::Connect,
            Call::Release { .. } => Command::Release,
            Call::Bind { .. } => Command::Bind,
            Call::Listen { .. } => Command::Listen,
            Call::Accept { .. } => Command::Accept,
            Call::Poll => Command::Poll,
            Call::SetOption { .. } => Command::SetOption,
            Call::GetOption { .. } => Command::GetOption,
            Call::Shutdown { .. } => Command::Shutdown,
            Call::LocalName => Command::LocalName,
            Call::PeerName => Command::PeerName,
            Call::Resize { .. } => Command::Resize,
        }
    }
}

/// What a frontend asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The frontend's number of this request, echoed in its response.
    pub id: u32,
    /// The frontend's name for the socket.
    pub socket: u64,
    /// What to do with it.
    pub call: Call,
}

/// What a backend answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request's number.
    pub id: u32,
    /// The request's command.
    pub command: Command,
    /// The request's socket (of an ACCEPT: the listening one).
    pub socket: u64,
    /// What came of it. No command of the plain dialects has a value other than 0.
    pub result: Result<u32, Errno>,
    /// With [`Extensions::NAMES`]: the socket's own address in the response to CONNECT, BIND and
    /// GETSOCKNAME, the other end's in that to ACCEPT and GETPEERNAME.
    pub name: Option<SocketAddr>,
}

impl Response {
    /// `ret` on the wire.
    fn ret(&self) -> i32 {
        match self.result {
            Ok(value) => i32::try_from(value).unwrap_or(i32::MAX),
            Err(error) => error.negated(),
        }
    }

    fn result_of(ret: i32) -> Result<u32, Errno> {
        Errno::check(ret.into()).map(|value| value as u32)
    }
}

impl Request {
    /// The response to this request.
    pub fn answer(&self, result: Result<u32, Errno>) -> Response {
        let (id, command) = (self.id, self.call.command());
        Response { id, command, socket: self.socket, result, name: None }
    }
}

/// A request that cannot be carried out as it stands, with what an answer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The request's number.
    pub id: u32,
    /// The request's command.
    pub command: Command,
    /// The request's socket.
    pub socket: u64,
    /// What is wrong: [`Errno::ENOTSUP`] for an unknown command, [`Errno::EAFNOSUPPORT`] for an
    /// address of another family, [`Errno::EINVAL`] for the rest.
    pub error: Errno,
}

impl Malformed {
    /// The response that refuses the request.
    pub fn answer(&self) -> Response {
        Response {
            id: self.id,
            command: self.command,
            socket: self.socket,
            result: Err(self.error),
            name: None,
        }
    }
}
