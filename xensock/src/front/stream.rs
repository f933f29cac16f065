//! A stream: how it is connected, and its operations.

use super::socket::{Addrs, Kind, Socket, preparations, requested_sizes};
use super::state::Core;
use crate::ring::{copy_in, copy_out};
use crate::wire::{Call, Extensions, Family, Options, Shutdown, SocketOption};
use alloc::rc::Rc;
use core::future::poll_fn;
use core::net::SocketAddr;
use core::task::{Context, Poll};
use edge_nal::Close;
use xen::{Errno, Machine, Shared};
use xensock_stream::PollSocket;

/// A connected stream. Besides the traits it has the operations of [`Connection`].
pub type Stream<M> = xensock_stream::Stream<Connection<M>>;

/// The socket of a [`Stream`].
///
/// Dropping it closes the socket: the driver waits until the backend has taken all that was
/// written, then releases the socket. `abort` does not wait for that, and resets the connection if
/// the backend has options. Options, addresses and closing one direction (`close(Close::Write)`)
/// are extensions of the protocol: they fail with [`Errno::EOPNOTSUPP`] if the backend has not
/// announced them.
pub struct Connection<M: Machine + 'static> {
    socket: Rc<Socket<M>>,
}

/// Opens a socket and connects it.
pub(super) async fn connect<M: Machine>(
    core: Rc<Core<M>>,
    to: SocketAddr,
    options: Options,
) -> Result<Stream<M>, Errno> {
    let session = core.link.up().await?;
    let kind = Kind::Stream;
    let calls = preparations(&session, kind, Family::of(to), &options);
    let connect = |ring| Call::Connect { addr: to, flags: 0, ring };
    let sizes = requested_sizes(&options);
    let socket = Socket::open(&core, session, kind, sizes, Some(to), calls, connect).await?;
    Ok(Stream::new(Connection::new(socket)))
}

impl<M: Machine> Connection<M> {
    pub(super) fn new(socket: Rc<Socket<M>>) -> Self {
        Connection { socket }
    }

    /// Waits for data and reads it in place. `read` gets up to two pieces, empty ones at the end of
    /// the stream, and returns how many bytes it consumed and a value of its own.
    ///
    /// The backend can change the pieces while they are read: copy bytes before checking them.
    /// The pieces do not have bytes that `fill_buf` has already fetched.
    pub async fn read_in_place<R>(
        &mut self,
        mut read: impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<R, Errno> {
        poll_fn(|cx| self.socket.poll_take(cx, &mut read)).await
    }

    /// Waits for room and writes in place. `write` gets up to two pieces and returns how many bytes
    /// it has filled, from the first one on, and a value of its own.
    pub async fn write_in_place<R>(
        &mut self,
        mut write: impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<R, Errno> {
        poll_fn(|cx| self.socket.poll_put(cx, 1, &mut write)).await
    }

    /// Changes an option; see [`SocketOption`] for the values. [`SocketOption::ReceiveBuffer`] and
    /// `SendBuffer` change the size of the data ring to the smallest that holds both. No data is
    /// lost, and the size no longer changes by itself. They fail with [`Errno::EBUSY`] while the
    /// previous ring is not empty.
    pub async fn set_option(&mut self, option: SocketOption, value: u32) -> Result<(), Errno> {
        let socket = self.socket.clone();
        self.socket.core.link.run(async move { socket.set_option(option, value).await }).await
    }

    /// An option's value.
    pub async fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        self.socket.option(option).await
    }

    /// The address of this end, in the backend's network.
    pub async fn local_addr(&self) -> Result<SocketAddr, Errno> {
        if let Some(addr) = self.socket.addrs.get().local {
            return Ok(addr);
        }
        self.socket.needs(Extensions::NAMES)?;
        let reply = self.socket.call(Call::LocalAddr).await?;
        self.socket.addrs.set(Addrs { local: reply.addr, ..self.socket.addrs.get() });
        reply.addr.ok_or(Errno::EPROTO)
    }

    /// The address of the other end. Unknown for a connection that was accepted from a backend that
    /// does not report addresses.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket.addrs.get().peer
    }

    async fn shutdown(&self, how: Shutdown) -> Result<(), Errno> {
        self.socket.needs(Extensions::SHUTDOWN)?;
        if how.writes() {
            self.socket.shut_down_writing();
        }
        self.socket.call(Call::Shutdown { how }).await.map(drop)
    }
}

impl<M: Machine> Drop for Connection<M> {
    fn drop(&mut self) {
        self.socket.start_closing(false);
    }
}

impl<M: Machine> PollSocket for Connection<M> {
    type Error = Errno;

    fn poll_read(&self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<Result<usize, Errno>> {
        self.socket.poll_take(cx, |data| {
            let count = copy_out(&data, to);
            (count, count)
        })
    }

    fn poll_write(&self, cx: &mut Context<'_>, from: &[u8]) -> Poll<Result<usize, Errno>> {
        self.socket.poll_put(cx, 1, |room| {
            let count = copy_in(&room, from);
            (count, count)
        })
    }

    fn check_writable(&self) -> Result<(), Errno> {
        self.socket.check_writable()
    }

    /// Closes the socket and waits until the backend has taken all that was written. Closing one
    /// direction does not wait: the peer sees the end of the stream after all that was written.
    async fn close(&self, what: Close) -> Result<(), Errno> {
        match what {
            Close::Read => self.shutdown(Shutdown::Read).await,
            Close::Write => self.shutdown(Shutdown::Write).await,
            Close::Both => self.socket.close().await,
        }
    }

    /// Closes the socket without waiting. Bytes that the backend has not taken are lost and the
    /// peer sees a reset, if the backend has options; otherwise the backend may still send them.
    async fn abort(&self) -> Result<(), Errno> {
        self.socket.start_closing(true);
        Ok(())
    }
}
