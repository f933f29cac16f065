//! What a backend needs of the domain it runs in: foreign pages, event channels, real sockets.

use crate::wire::{Options, Shutdown, SocketOption};
use alloc::sync::Arc;
use core::future::Future;
use core::net::SocketAddr;
use core::task::{Context, Poll};
use core::time::Duration;
use xen::Signal;
use xen::{DomId, Errno, GrantRef, Port, Shared};

/// Pages of a guest, mapped one after the other. Dropping it unmaps them.
pub trait Mapping {
    /// All of the bytes.
    fn shared(&self) -> Shared<'_>;
}

/// A bound event channel. Dropping it unbinds it.
pub trait Channel {
    /// Sends an event to the guest.
    fn notify(&self);
}

/// A socket of the operating system's.
pub trait Socket {
    /// Changes an option. [`Errno::ENOPROTOOPT`] where there is none like it.
    ///
    /// [`SocketOption::Linger`] of 0 means that closing resets the connection; any other value takes
    /// that back.
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno>;

    /// An option's value.
    fn option(&self, option: SocketOption) -> Result<u32, Errno>;

    /// The socket's own address.
    fn local_addr(&self) -> Result<SocketAddr, Errno>;
}

/// A connected socket. Dropping it closes it.
///
/// Both directions may be waited for at once, by two tasks. Each call takes the (up to two) pieces of a
/// ring that hold data or room, and copies straight from or to them.
pub trait Stream: Socket {
    /// Receives into `room`: how many bytes came, 0 at the end of the stream.
    fn poll_recv(&self, cx: &mut Context<'_>, room: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>>;

    /// Sends from `data`: how many bytes went, at least one.
    fn poll_send(&self, cx: &mut Context<'_>, data: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>>;

    /// Closes one direction, or both.
    fn shutdown(&self, how: Shutdown) -> Result<(), Errno>;

    /// The address of the other end.
    fn peer_addr(&self) -> Result<SocketAddr, Errno>;
}

/// The backend's domain.
///
/// Implemented by `xensockd` with device files and sockets, and by the in-process fake (`testing`).
pub trait Host {
    /// Mapped pages.
    type Mapping: Mapping;
    /// A bound event channel.
    type Channel: Channel;
    /// A connected socket.
    type Stream: Stream;
    /// A socket that was bound, and perhaps listens. Dropping it closes it.
    type Listener: Socket;

    /// Waits for a while: the engine's only notion of time.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()>;

    /// Maps pages that `guest` granted, in the order of `refs`, for reading and writing.
    fn map(&self, guest: DomId, refs: &[GrantRef]) -> Result<Self::Mapping, Errno>;

    /// Binds to an event channel that `guest` offers. Events raise `signal`.
    fn bind_port(
        &self,
        guest: DomId,
        port: Port,
        signal: Arc<Signal>,
    ) -> Result<Self::Channel, Errno>;

    /// Opens a socket with these options and connects it.
    fn connect(
        &self,
        guest: DomId,
        to: SocketAddr,
        options: &Options,
    ) -> impl Future<Output = Result<Self::Stream, Errno>>;

    /// Opens a socket with these options and binds it to an address. A port of 0 lets the system choose.
    fn bind(
        &self,
        guest: DomId,
        at: SocketAddr,
        options: &Options,
    ) -> Result<Self::Listener, Errno>;

    /// Starts to listen.
    fn listen(&self, socket: &Self::Listener, backlog: u32) -> Result<(), Errno>;

    /// Waits until a connection is there to be accepted, and leaves it there (PV Calls' POLL).
    fn poll_acceptable(
        &self,
        cx: &mut Context<'_>,
        socket: &Self::Listener,
    ) -> Poll<Result<(), Errno>>;

    /// Accepts a connection.
    fn poll_accept(
        &self,
        cx: &mut Context<'_>,
        socket: &Self::Listener,
    ) -> Poll<Result<Self::Stream, Errno>>;
}
