//! Connected streams.

use super::state::Inner;
use alloc::rc::Rc;
use core::cell::Cell;
use core::future::poll_fn;
use core::net::SocketAddr;
use core::task::{Context, Poll};
use edge_nal::Close;
use embassy_time::{Duration, Instant, with_timeout};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use xen::Errno;
use xensock_stream::PollSocket;

/// A connected stream; its own operations are those of [`Connection`].
///
/// ```
/// use edge_nal::{Close, TcpShutdown};
/// use embedded_io_async::{Read, Write};
/// use netfront::stack::Stream;
///
/// /// Sends a request, then reads the answer up to the end of the stream.
/// async fn ask(stream: &mut Stream, request: &[u8]) -> Result<Vec<u8>, xen::Errno> {
///     stream.write_all(request).await?;
///     stream.close(Close::Write).await?;
///     let (mut answer, mut some) = (Vec::new(), [0; 512]);
///     loop {
///         match stream.read(&mut some).await? {
///             0 => return Ok(answer),
///             count => answer.extend(&some[..count]),
///         }
///     }
/// }
/// ```
pub type Stream = xensock_stream::Stream<Connection>;

/// The socket of a [`Stream`].
///
/// Dropping it closes the socket: what was written is sent first, for at most the stack's `linger`.
pub struct Connection {
    inner: Rc<Inner>,
    socket: SocketHandle,
    /// Why this guest ended the connection. The stack sets it when the address is lost.
    error: Rc<Cell<Option<Errno>>>,
    read_shutdown: Cell<bool>,
}

/// Connects to an address.
pub(super) async fn connect(inner: &Rc<Inner>, remote: SocketAddr) -> Result<Stream, Errno> {
    let connecting = async {
        let ready = || inner.with(|state| state.has_address(remote.is_ipv6())).then_some(());
        inner.changed.until(ready).await;
        let socket = inner.config.socket()?;
        let handle = inner.with(|state| {
            let port = state.free_tcp_port(&inner.config)?;
            let handle = state.sockets.add(socket);
            let context = state.interface.context();
            let socket: &mut tcp::Socket<'_> = state.sockets.get_mut(handle);
            socket.connect(context, remote, port).map_err(|error| {
                state.sockets.remove(handle);
                match error {
                    tcp::ConnectError::Unaddressable if remote.port() == 0 => Errno::EADDRNOTAVAIL,
                    tcp::ConnectError::Unaddressable => Errno::ENETUNREACH,
                    tcp::ConnectError::InvalidState => Errno::EINVAL,
                }
            })?;
            Ok(handle)
        })?;
        // Closes the socket if this future is dropped.
        let connection = Connection::new(inner, handle);
        inner.kick();
        poll_fn(|cx| connection.poll_connected(cx)).await?;
        Ok(Stream::new(connection))
    };
    with_timeout(inner.config.connect_within, connecting).await.unwrap_or(Err(Errno::ETIMEDOUT))
}

impl Connection {
    pub(super) fn new(inner: &Rc<Inner>, socket: SocketHandle) -> Self {
        inner.count(|statistics| {
            statistics.streams_opened += 1;
            statistics.streams_open += 1;
        });
        let error = Rc::<Cell<_>>::default();
        inner.with(|state| state.streams.push((socket, error.clone())));
        Connection { inner: inner.clone(), socket, error, read_shutdown: Cell::new(false) }
    }

    /// The address of this end.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.with(|socket| socket.local_endpoint()).map(SocketAddr::from)
    }

    /// The address of the other end.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.with(|socket| socket.remote_endpoint()).map(SocketAddr::from)
    }

    /// Enables TCP keep-alive with this interval, or disables it. The connection ends if the peer
    /// answers nothing for five intervals.
    pub fn set_keep_alive(&mut self, interval: Option<Duration>) {
        let interval = interval.map(|time| smoltcp::time::Duration::from_micros(time.as_micros()));
        self.with(|socket| {
            socket.set_keep_alive(interval);
            socket.set_timeout(interval.map(|time| time * 5));
        });
        self.inner.kick();
    }

    /// Disables Nagle's algorithm, which is the default, or enables it: then small writes are
    /// collected.
    pub fn set_nodelay(&mut self, nodelay: bool) {
        self.with(|socket| socket.set_nagle_enabled(!nodelay));
    }

    fn with<T>(&self, work: impl FnOnce(&mut tcp::Socket<'static>) -> T) -> T {
        self.inner.with(|state| work(state.tcp(self.socket)))
    }

    fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        self.with(|socket| match socket.state() {
            tcp::State::Closed => Poll::Ready(Err(self.error.get().unwrap_or(Errno::ECONNREFUSED))),
            tcp::State::SynSent | tcp::State::SynReceived | tcp::State::Listen => {
                socket.register_send_waker(cx.waker());
                Poll::Pending
            }
            _ => Poll::Ready(Ok(())),
        })
    }

    /// Waits until the peer has acknowledged the end of the stream.
    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|socket| match socket.state() {
            tcp::State::Closed | tcp::State::FinWait2 | tcp::State::TimeWait => Poll::Ready(()),
            _ => {
                socket.register_send_waker(cx.waker());
                Poll::Pending
            }
        })
    }

    fn write_error(&self, socket: &tcp::Socket<'_>) -> Errno {
        self.error.get().unwrap_or(match socket.state() {
            tcp::State::Closed => Errno::ECONNRESET,
            // This end has shut its writing direction down.
            _ => Errno::EPIPE,
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.inner.count(|statistics| statistics.streams_open -= 1);
        let until = Instant::now() + self.inner.config.linger;
        self.inner.with(|state| {
            state.streams.retain(|(socket, _)| *socket != self.socket);
            state.tcp(self.socket).close();
            state.retire(self.socket, until);
        });
        self.inner.kick();
    }
}

impl PollSocket for Connection {
    type Error = Errno;

    fn poll_read(&self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<Result<usize, Errno>> {
        if self.read_shutdown.get() {
            return Poll::Ready(Ok(0));
        }
        let result = self.with(|socket| {
            if !socket.can_recv() && socket.may_recv() {
                socket.register_recv_waker(cx.waker());
                return Poll::Pending;
            }
            Poll::Ready(match socket.recv_slice(to) {
                Err(tcp::RecvError::Finished) => Ok(0),
                result => result.map_err(|_| self.error.get().unwrap_or(Errno::ECONNRESET)),
            })
        });
        if let Poll::Ready(Ok(count @ 1..)) = result {
            self.inner.count(|statistics| statistics.bytes_in += count as u64);
            // The window has grown: the runner may have to announce that.
            self.inner.kick();
        }
        result
    }

    fn poll_write(&self, cx: &mut Context<'_>, from: &[u8]) -> Poll<Result<usize, Errno>> {
        let result = self.with(|socket| {
            if !socket.may_send() {
                return Poll::Ready(Err(self.write_error(socket)));
            }
            if !socket.can_send() {
                socket.register_send_waker(cx.waker());
                return Poll::Pending;
            }
            Poll::Ready(socket.send_slice(from).map_err(|_| Errno::EPIPE))
        });
        if let Poll::Ready(Ok(count)) = result {
            self.inner.count(|statistics| statistics.bytes_out += count as u64);
            self.inner.kick();
        }
        result
    }

    fn check_writable(&self) -> Result<(), Errno> {
        self.with(|socket| if socket.may_send() { Ok(()) } else { Err(self.write_error(socket)) })
    }

    /// Closes the socket and waits until the peer has acknowledged all that was written, for at
    /// most the stack's `linger`. Closing one direction does not wait: the peer sees the end of the
    /// stream after all that was written.
    async fn close(&self, what: Close) -> Result<(), Errno> {
        if let Close::Read | Close::Both = what {
            self.read_shutdown.set(true);
        }
        if let Close::Read = what {
            return Ok(());
        }
        self.with(|socket| socket.close());
        self.inner.kick();
        if let Close::Both = what {
            let closed = poll_fn(|cx| self.poll_closed(cx));
            let _ = with_timeout(self.inner.config.linger, closed).await;
        }
        Ok(())
    }

    /// Resets the connection: what was not acknowledged is lost.
    async fn abort(&self) -> Result<(), Errno> {
        self.error.set(Some(Errno::ECONNABORTED));
        self.with(|socket| socket.abort());
        self.inner.kick();
        Ok(())
    }
}
