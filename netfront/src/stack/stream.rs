//! A connection: bytes in, bytes out.

use super::state::Inner;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use core::cell::Cell;
use core::future::poll_fn;
use core::net::SocketAddr;
use core::ops::Range;
use core::task::{Context, Poll};
use edge_nal::{Close, Readable, TcpShutdown, TcpSplit};
use embassy_time::{Duration, Instant, with_timeout};
use embedded_io_async::{BufRead, ErrorType, Read, Write};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use xen::Errno;

/// The size of the buffer that `fill_buf` needs.
const BUFFER: usize = 4096;

/// A connected socket.
///
/// Reading first yields all data that came, then `Ok(0)` at the end of the stream or the error that
/// ended it. A future of `read`, `write` or `fill_buf` that is dropped has done nothing.
///
/// Dropping a stream closes it: what was written goes out first, for as long as the stack's `linger` says.
pub struct Stream {
    open: Rc<Open>,
    buffer: Buffer,
}

/// What the stack knows of a stream.
pub(super) struct Open {
    inner: Rc<Inner>,
    pub(super) socket: SocketHandle,
    /// What has ended it, if the stack did.
    pub(super) error: Cell<Option<Errno>>,
    closed: Cell<bool>,
    /// Its reading half is shut down.
    deaf: Cell<bool>,
}

/// The reading half of a [`Stream`].
pub struct ReadHalf<'a> {
    open: &'a Open,
    buffer: &'a mut Buffer,
}

/// The writing half of a [`Stream`].
pub struct WriteHalf<'a> {
    open: &'a Open,
}

/// What `fill_buf` has fetched and `consume` not used up. Without memory until it is needed.
#[derive(Default)]
struct Buffer {
    bytes: Box<[u8]>,
    filled: Range<usize>,
}

/// Connects to an address.
pub(super) async fn connect(inner: &Rc<Inner>, to: SocketAddr) -> Result<Stream, Errno> {
    let connecting = async {
        let ready = || inner.with(|state| state.has_address(to.is_ipv6())).then_some(());
        inner.changed.until(ready).await;
        let socket = inner.socket()?;
        let handle = inner.with(|state| {
            let port = state.free_port()?;
            let handle = state.sockets.add(socket);
            let context = state.interface.context();
            let socket: &mut tcp::Socket<'_> = state.sockets.get_mut(handle);
            socket.connect(context, to, port).map_err(|error| {
                state.sockets.remove(handle);
                match error {
                    tcp::ConnectError::Unaddressable if to.port() == 0 => Errno::EADDRNOTAVAIL,
                    tcp::ConnectError::Unaddressable => Errno::ENETUNREACH,
                    tcp::ConnectError::InvalidState => Errno::EINVAL,
                }
            })?;
            Ok(handle)
        })?;
        // Given back, and the connection with it, if the future is dropped.
        let stream = Stream::new(inner, handle);
        inner.kick();
        poll_fn(|cx| stream.open.poll_connected(cx)).await?;
        Ok(stream)
    };
    with_timeout(inner.config.connect_within, connecting).await.unwrap_or(Err(Errno::ETIMEDOUT))
}

impl Open {
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

    /// Waits for data and has it read: `read` says how many bytes it has taken. Without any at the end of
    /// the stream.
    fn poll_take<R>(
        &self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Poll<Result<R, Errno>> {
        if self.deaf.get() {
            return Poll::Ready(Ok(read(&[]).1));
        }
        let (taken, result) = self.with(|socket| {
            if socket.can_recv() {
                let taken = socket.recv(|bytes| {
                    let (count, value) = read(bytes);
                    (count, (count, value))
                });
                return match taken {
                    Ok((count, value)) => (count, Poll::Ready(Ok(value))),
                    Err(_) => (0, Poll::Ready(Err(Errno::ECONNRESET))),
                };
            }
            if socket.may_recv() {
                socket.register_recv_waker(cx.waker());
                return (0, Poll::Pending);
            }
            let ended = matches!(socket.peek(1), Err(tcp::RecvError::Finished));
            let error = self.error.get().unwrap_or(Errno::ECONNRESET);
            (0, Poll::Ready(if ended { Ok(read(&[]).1) } else { Err(error) }))
        });
        if taken > 0 {
            self.inner.counted.bytes_in.add(taken);
            // The peer may have to hear of the room.
            self.inner.kick();
        }
        result
    }

    fn poll_put(&self, cx: &mut Context<'_>, from: &[u8]) -> Poll<Result<usize, Errno>> {
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
            self.inner.counted.bytes_out.add(count);
            self.inner.kick();
        }
        result
    }

    fn write_error(&self, socket: &tcp::Socket<'_>) -> Errno {
        match (self.error.get(), socket.state()) {
            (Some(error), _) => error,
            // This end is shut down.
            (None, state) if state != tcp::State::Closed || self.closed.get() => Errno::EPIPE,
            (None, _) => Errno::ECONNRESET,
        }
    }

    /// Whether the peer has acknowledged the end of the stream.
    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|socket| match socket.state() {
            tcp::State::Closed | tcp::State::FinWait2 | tcp::State::TimeWait => Poll::Ready(()),
            _ => {
                socket.register_send_waker(cx.waker());
                Poll::Pending
            }
        })
    }

    /// Gives the socket up, at the latest after this time.
    fn retire(&self, linger: Duration) {
        if !self.closed.replace(true) {
            self.inner.counted.open.sub(1);
        }
        self.inner.with(|state| {
            state.tcp(self.socket).close();
            state.retire(self.socket, Instant::now() + linger);
        });
        self.inner.kick();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.retire(self.inner.config.linger);
    }
}

impl Stream {
    pub(super) fn new(inner: &Rc<Inner>, socket: SocketHandle) -> Stream {
        inner.counted.opened.add(1);
        inner.counted.open.add(1);
        let open = Rc::new(Open {
            inner: inner.clone(),
            socket,
            error: Cell::new(None),
            closed: Cell::new(false),
            deaf: Cell::new(false),
        });
        inner.with(|state| state.streams.push(Rc::downgrade(&open)));
        Stream { open, buffer: Buffer::default() }
    }

    /// The address of this end.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.open.with(|socket| socket.local_endpoint()).map(SocketAddr::from)
    }

    /// The address of the other end.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.open.with(|socket| socket.remote_endpoint()).map(SocketAddr::from)
    }

    /// Has the peer asked, after this time without a sign of it, whether it is there still; not at all
    /// without a time.
    pub fn set_keep_alive(&mut self, interval: Option<Duration>) {
        let interval = interval.map(|time| smoltcp::time::Duration::from_micros(time.as_micros()));
        self.open.with(|socket| {
            socket.set_keep_alive(interval);
            // Several questions may be lost before the connection is.
            socket.set_timeout(interval.map(|time| time * 5));
        });
        self.open.inner.kick();
    }

    /// Whether what is written leaves at once, as it does at first, or small pieces wait for each other.
    pub fn set_nodelay(&mut self, nodelay: bool) {
        self.open.with(|socket| socket.set_nagle_enabled(!nodelay));
    }

    fn reader(&mut self) -> ReadHalf<'_> {
        ReadHalf { open: &self.open, buffer: &mut self.buffer }
    }

    fn writer(&self) -> WriteHalf<'_> {
        WriteHalf { open: &self.open }
    }
}

impl ErrorType for ReadHalf<'_> {
    type Error = Errno;
}

impl Read for ReadHalf<'_> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Errno> {
        if to.is_empty() {
            return Ok(0);
        }
        let filled = &self.buffer.bytes[self.buffer.filled.clone()];
        if !filled.is_empty() {
            let count = filled.len().min(to.len());
            to[..count].copy_from_slice(&filled[..count]);
            self.buffer.filled.start += count;
            return Ok(count);
        }
        poll_fn(|cx| self.open.poll_take(cx, |bytes| copy(bytes, to))).await
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> (usize, usize) {
    let count = from.len().min(to.len());
    to[..count].copy_from_slice(&from[..count]);
    (count, count)
}

impl BufRead for ReadHalf<'_> {
    async fn fill_buf(&mut self) -> Result<&[u8], Errno> {
        if self.buffer.filled.is_empty() {
            if self.buffer.bytes.is_empty() {
                self.buffer.bytes = vec![0; BUFFER].into_boxed_slice();
            }
            self.buffer.filled = 0..0;
            let bytes = &mut self.buffer.bytes;
            let count = poll_fn(|cx| self.open.poll_take(cx, |from| copy(from, bytes))).await?;
            self.buffer.filled = 0..count;
        }
        Ok(&self.buffer.bytes[self.buffer.filled.clone()])
    }

    fn consume(&mut self, count: usize) {
        assert!(count <= self.buffer.filled.len(), "{count} bytes consumed, fewer were there");
        self.buffer.filled.start += count;
    }
}

impl Readable for ReadHalf<'_> {
    async fn readable(&mut self) -> Result<(), Errno> {
        if !self.buffer.filled.is_empty() {
            return Ok(());
        }
        // Taking nothing waits all the same.
        poll_fn(|cx| self.open.poll_take(cx, |_| (0, ()))).await
    }
}

impl ErrorType for WriteHalf<'_> {
    type Error = Errno;
}

impl Write for WriteHalf<'_> {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        if from.is_empty() {
            return Ok(0);
        }
        poll_fn(|cx| self.open.poll_put(cx, from)).await
    }

    /// There is nothing to flush: what was written leaves as soon as the peer has room.
    async fn flush(&mut self) -> Result<(), Errno> {
        let open = self.open;
        open.with(|socket| if socket.may_send() { Ok(()) } else { Err(open.write_error(socket)) })
    }
}

impl ErrorType for Stream {
    type Error = Errno;
}

impl Read for Stream {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Errno> {
        self.reader().read(to).await
    }
}

impl BufRead for Stream {
    async fn fill_buf(&mut self) -> Result<&[u8], Errno> {
        self.reader().fill_buf().await?;
        Ok(&self.buffer.bytes[self.buffer.filled.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.reader().consume(count);
    }
}

impl Readable for Stream {
    async fn readable(&mut self) -> Result<(), Errno> {
        self.reader().readable().await
    }
}

impl Write for Stream {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        self.writer().write(from).await
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        self.writer().flush().await
    }
}

impl TcpSplit for Stream {
    type Read<'a> = ReadHalf<'a>;
    type Write<'a> = WriteHalf<'a>;

    fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        let writer = WriteHalf { open: &self.open };
        (ReadHalf { open: &self.open, buffer: &mut self.buffer }, writer)
    }
}

impl TcpShutdown for Stream {
    /// Closes the socket, and waits until the peer has all that was written, or the stack's `linger` is over.
    /// Closing one direction does not wait: the other end sees the end of the stream after all that was
    /// written.
    async fn close(&mut self, what: Close) -> Result<(), Errno> {
        if let Close::Read | Close::Both = what {
            self.open.deaf.set(true);
        }
        if let Close::Read = what {
            return Ok(());
        }
        self.open.with(|socket| socket.close());
        self.open.inner.kick();
        if let Close::Both = what {
            let closed = poll_fn(|cx| self.open.poll_closed(cx));
            let _ = with_timeout(self.open.inner.config.linger, closed).await;
        }
        Ok(())
    }

    /// Resets the connection: what was not acknowledged is lost.
    async fn abort(&mut self) -> Result<(), Errno> {
        self.open.error.set(Some(Errno::ECONNABORTED));
        self.open.with(|socket| socket.abort());
        self.open.inner.kick();
        Ok(())
    }
}
