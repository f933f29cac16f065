//! The backend's domain, as the engine uses it: other domains' memory and events, real sockets.

use crate::ring::{copy_in, len, split_at};
use crate::wire::{Family, Group, Options, RECORD_HEADER, Record, Shutdown, SocketOption};
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
    /// The most connections that wait to be accepted, over all listening sockets. A LISTEN gets
    /// what is left of it; each listening socket may have one more in any case.
    pub backlog: usize,
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
            backlog: 4096,
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

/// A socket of datagrams, which is bound and may be connected to one peer. One task uses it.
///
/// The payloads go straight from and to a ring, whose records are the protocol's.
pub trait Datagrams: Socket {
    /// Connects to a peer: datagrams go to it alone, and come from it alone. After an error the
    /// socket is as it was.
    fn connect(&self, peer: SocketAddr) -> Result<(), Errno>;

    /// Receives datagrams into records ([`Record`](crate::wire::Record)) at the start of `room`, or
    /// waits for one. A datagram that has no room is kept, not lost, and `room` may get it later;
    /// one that is longer than [`Quota::longest`] is dropped and counted. An error ends the socket.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        room: [Shared<'_>; 2],
        quota: &Quota,
    ) -> Poll<Result<Received, Errno>>;

    /// Sends the first of `batch`, which has at least one datagram, or waits until that is
    /// possible. An error ends the socket; that of a datagram is in [`Sent::error`].
    fn poll_send(&self, cx: &mut Context<'_>, batch: &[Outgoing<'_>]) -> Poll<Result<Sent, Errno>>;

    /// Makes the socket a member of a group. [`Errno::EADDRINUSE`] if it is one.
    fn join(&self, group: Group) -> Result<(), Errno>;

    /// Ends a membership. [`Errno::EADDRNOTAVAIL`] if there is none.
    fn leave(&self, group: Group) -> Result<(), Errno>;

    /// Reports the socket's data ring.
    fn set_ring(&self, _ring: Weak<dyn Ring>) {}
}

/// How much a call may receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The most datagrams, at least one.
    pub datagrams: usize,
    /// No further datagram once so many bytes were received.
    pub bytes: usize,
    /// The longest payload that the ring can have when it is empty.
    pub longest: usize,
}

/// What a call received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The datagrams.
    pub datagrams: usize,
    /// The bytes of their payloads.
    pub bytes: usize,
    /// The bytes of their records, which are whole.
    pub used: usize,
    /// How much room the next call needs, if more than a record without a payload.
    pub wanted: usize,
    /// How many datagrams the system and this socket have dropped so far, which wraps.
    pub dropped: u32,
    /// An error of an earlier datagram, which has come back from the network.
    pub error: Option<Errno>,
}

impl Received {
    /// Puts a datagram into `room`, behind the records that are there. Returns false, and notes how
    /// much room is wanted, if it does not fit.
    pub fn put(&mut self, room: [Shared<'_>; 2], from: SocketAddr, payload: &[u8]) -> bool {
        let record = Record::new(payload.len(), Some(from));
        let (size, rest) = (record.size as usize, split_at(room, self.used).1);
        if len(&rest) < size {
            self.wanted = size;
            return false;
        }
        record.put(&rest);
        copy_in(&split_at(rest, RECORD_HEADER).1, payload);
        self.datagrams += 1;
        self.bytes += payload.len();
        self.used += size;
        true
    }
}

/// A datagram to send.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// The destination, unless the socket is connected.
    pub to: Option<SocketAddr>,
    /// The payload, which the guest may still change.
    pub payload: [Shared<'a>; 2],
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// How many datagrams, from the first one on, are done with.
    pub datagrams: usize,
    /// An error: of the only one of them, which was not sent, or on a connected socket of an
    /// earlier one.
    pub error: Option<Errno>,
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
    /// A socket of datagrams.
    type Datagrams: Datagrams;

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

    /// Opens a socket of datagrams with these options, on behalf of `guest`, and binds it: to
    /// `local`, whose port 0 lets the system choose one, or else to any port of an unspecified
    /// address.
    fn datagrams(
        &self,
        guest: DomId,
        family: Family,
        local: Option<SocketAddr>,
        options: &Options,
    ) -> Result<Self::Datagrams, Errno>;
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

/// A host's sockets of datagrams.
pub(super) type DatagramsOf<H> = <<H as Host>::Network as Network>::Datagrams;

/// A host's bound sockets.
pub(super) type ListenerOf<H> = <<H as Host>::Network as Network>::Listener;
