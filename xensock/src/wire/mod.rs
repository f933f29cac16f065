//! Requests and responses as plain Rust values, and the dialects that put them on a ring.
//!
//! The rest of the crate speaks in [`Request`]s, [`Response`]s and [`Layout`]s. What they look like in
//! shared memory (numbers of commands, sizes of slots, places of indexes, names of xenstore nodes) is
//! a [`Dialect`]'s affair, and each dialect is one file. A dialect never touches a command ring
//! itself: it decodes private copies, so that what was checked cannot change afterwards.

mod address;
mod dialect;
mod layout;
pub mod pvcalls;

pub(crate) use dialect::RING_HEADER;
pub use dialect::{Dialect, MAX_SLOT, Offer, Slots};
pub use layout::{Layout, Region, Way};
pub use pvcalls::PVCALLS;

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
    /// A number that the dialect does not know.
    Unknown(u32),
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
    /// [`Command::Socket`]: an IPv4 stream socket, the only kind there is.
    Socket,
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
}

impl Call {
    /// The command of this call.
    pub fn command(&self) -> Command {
        match self {
            Call::Socket => Command::Socket,
            Call::Connect { .. } => Command::Connect,
            Call::Release { .. } => Command::Release,
            Call::Bind { .. } => Command::Bind,
            Call::Listen { .. } => Command::Listen,
            Call::Accept { .. } => Command::Accept,
            Call::Poll => Command::Poll,
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
}

impl Request {
    /// The response to this request.
    pub fn answer(&self, result: Result<u32, Errno>) -> Response {
        Response { id: self.id, command: self.call.command(), socket: self.socket, result }
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
        }
    }
}
