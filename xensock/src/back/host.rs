//! The backend's domain, as the engine uses it: other domains' memory and events, real sockets.

use crate::wire::{Options, Shutdown, SocketOption};
use alloc::rc::Weak;
use core::future::Future;
use core::net::SocketAddr;
use core::task::{Context, Poll};
use core::time::Duration;
use xen::{DomId, Errno, GrantRef, Neighbour, Shared};

/// The limits of a guest, over all of its devices.
///
/// ```
/// use xensock::back::Limits;
///
/// let limits = Limits { sockets: 16, ..Limits::default() };
/// assert_eq!(limits.max_ring_order, 9);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most sockets at a time, including listening ones and those being opened or closed.
    pub sockets: usize,
    /// The most pages of data rings mapped at a time. A guest's own limit of grants does not bound
    /// this: it can offer one page many times.
    pub pages: usize,
    /// The largest order of a data ring, which has two to that power pages. Plain draft 1, whose
    /// only order is 6, is exempt.
    pub max_ring_order: u32,
    /// The connections that are opened per second. Beyond that a CONNECT fails and an ACCEPT waits.
    pub connections_per_second: Option<u32>,
    /// The bytes per second that are received for the guest.
    pub bytes_in_per_second: Option<u64>,
    /// The bytes per second that the guest sends.
    pub bytes_out_per_second: Option<u64>,
    /// How long a released socket may send the bytes left in its ring without progress. It is
    /// closed after four times this long in any case.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sockets: 1024,
            pages: 32768,
            max_ring_order: 9,
            connections_per_second: None,
            bytes_in_per_second: None,
            bytes_out_per_second: None,
            linger: Duration::from_secs(30),
        }
    }
}

/// A limit that a guest has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::sockets`].
    Sockets,
    /// [`Limits::pages`].
    Pages,
    /// [`Limits::connections_per_second`].
    Connections,
}

/// A socket of the host's operating system. Dropping it closes it.
pub trait Socket {
    /// Sets an option. [`Errno::ENOPROTOOPT`] if the host does not have it.
    ///
    /// [`SocketOption::Linger`] of 0 means that closing resets the connection; any other value
    /// means that it does not.
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno>;

    /// Returns an option's value.
    fn option(&self, option: SocketOption) -> Result<u32, Errno>;

    /// Returns the socket's own address.
    fn local_addr(&self) -> Result<SocketAddr, Errno>;
}

/// A connected socket.
///
/// Two tasks may wait for the two directions at once. Each call takes the (up to two) pieces of a
/// ring that hold data or room, and copies straight from or to them.
pub trait Stream: Socket {
    /// Receives into `room`. Returns the number of bytes received, 0 at the end of the stream.
    fn poll_recv(&self, cx: &mut Context<'_>, room: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>>;

    /// Sends from `data`. Returns the number of bytes sent, at least one.
    fn poll_send(&self, cx: &mut Context<'_>, data: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>>;

    /// Closes one direction, or both.
    fn shutdown(&self, how: Shutdown) -> Result<(), Errno>;

    /// Returns the peer's address.
    fn peer_addr(&self) -> Result<SocketAddr, Errno>;

    /// Reports the connection's data ring, which has replaced an earlier one.
    fn set_ring(&self, _ring: Weak<dyn Ring>) {}
}

/// A data ring, for the host to look at.
pub trait Ring {
    /// How much of it is used now.
    fn usage(&self) -> RingUsage;
}

/// The bytes of a data ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingUsage {
    /// The size of the buffer for the guest to read from.
    pub in_size: u32,
    /// What the guest has not read yet.
    pub in_used: u32,
    /// The size of the buffer for the guest to write to.
    pub out_size: u32,
    /// What the backend has not sent yet.
    pub out_used: u32,
}

/// A bound socket, which may listen. At most one task waits for its connections.
pub trait Listener: Socket {
    /// The socket of a connection.
    type Stream: Stream;

    /// Starts to listen, or changes the backlog.
    fn listen(&self, backlog: u32) -> Result<(), Errno>;

    /// Waits until a connection can be accepted, and does not accept it (PV Calls' POLL).
    fn poll_acceptable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>>;

    /// Accepts a connection.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Self::Stream, Errno>>;
}

/// Opens sockets of the host's operating system.
pub trait Network {
    /// A connected socket.
    type Stream: Stream;
    /// A bound socket.
    type Listener: Listener<Stream = Self::Stream>;

    /// Opens a socket with these options and connects it, on behalf of `guest`.
    fn connect(
        &self,
        guest: DomId,
        to: SocketAddr,
        options: &Options,
    ) -> impl Future<Output = Result<Self::Stream, Errno>>;

    /// Opens a socket with these options and binds it, on behalf of `guest`. Port 0 lets the system
    /// choose a port.
    fn bind(
        &self,
        guest: DomId,
        to: SocketAddr,
        options: &Options,
    ) -> Result<Self::Listener, Errno>;
}

/// The backend's domain.
///
/// `xensockd` implements it with device files and sockets, and `xensock::testing` in memory.
pub trait Host: Neighbour + 'static {
    /// The host's sockets.
    type Network: Network;

    /// The host's sockets.
    fn network(&self) -> &Self::Network;

    /// Waits for this long.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()>;

    /// The time since any moment that stays the same. Read only for limits by the second.
    fn now(&self) -> Duration;

    /// Reports that a request failed because the guest has reached a limit.
    fn limited(&self, _guest: DomId, _limit: Limit) {}

    /// Copies the first bytes of a page that `guest` granted to private memory, at most a page.
    fn copy(&self, guest: DomId, page: GrantRef, to: &mut [u8]) -> Result<(), Errno>;
}

/// A host's connected sockets.
pub(super) type StreamOf<H> = <<H as Host>::Network as Network>::Stream;

/// A host's bound sockets.
pub(super) type ListenerOf<H> = <<H as Host>::Network as Network>::Listener;
