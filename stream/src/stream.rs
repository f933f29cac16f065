//! Connected sockets: bytes in order.

use alloc::boxed::Box;
use alloc::vec;
use core::future::poll_fn;
use core::ops::{Deref, DerefMut, Range};
use core::task::{Context, Poll};
use edge_nal::{Close, Readable, TcpShutdown, TcpSplit};
use embedded_io_async::{BufRead, Error, ErrorType, Read, Write};

/// The bytes that `fill_buf` fetches at once.
const BUFFER_SIZE: usize = 4096;

/// A connected socket.
pub trait PollSocket {
    /// Why an operation fails.
    type Error: Error;

    /// Waits for data and copies as much as fits. With an empty `to` it waits and takes nothing.
    ///
    /// Returns 0 at the end of the stream. An error comes after all data before it.
    fn poll_read(&self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<Result<usize, Self::Error>>;

    /// Waits for room and copies as much as fits. `from` is not empty.
    fn poll_write(&self, cx: &mut Context<'_>, from: &[u8]) -> Poll<Result<usize, Self::Error>>;

    /// The error that a write would return now.
    fn check_writable(&self) -> Result<(), Self::Error>;

    /// Closes one direction or both, as [`TcpShutdown::close`] does.
    fn close(&self, what: Close) -> impl Future<Output = Result<(), Self::Error>>;

    /// Closes the socket and discards unsent data, as [`TcpShutdown::abort`] does.
    fn abort(&self) -> impl Future<Output = Result<(), Self::Error>>;
}

/// A socket with the traits of async I/O. The socket's own methods are reached through [`Deref`].
///
/// Reading yields all data, then `Ok(0)` at the end of the stream or the error that ended it.
/// Dropping a future of `read`, `write` or `fill_buf` before it completes has no effect on the
/// stream.
#[derive(Debug)]
pub struct Stream<S> {
    socket: S,
    buffer: Buffer,
}

/// The reading half of a [`Stream`].
#[derive(Debug)]
pub struct ReadHalf<'a, S> {
    socket: &'a S,
    buffer: &'a mut Buffer,
}

/// The writing half of a [`Stream`].
#[derive(Debug)]
pub struct WriteHalf<'a, S> {
    socket: &'a S,
}

/// Bytes that `fill_buf` has fetched and `consume` has not used up. Allocated by the first
/// `fill_buf`.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Box<[u8]>,
    filled: Range<usize>,
}

impl Buffer {
    fn filled(&self) -> &[u8] {
        &self.bytes[self.filled.clone()]
    }

    fn consume(&mut self, count: usize) {
        assert!(count <= self.filled.len(), "{count} bytes consumed of {}", self.filled.len());
        self.filled.start += count;
    }

    async fn fill<S: PollSocket>(&mut self, socket: &S) -> Result<&[u8], S::Error> {
        if self.filled.is_empty() {
            if self.bytes.is_empty() {
                self.bytes = vec![0; BUFFER_SIZE].into_boxed_slice();
            }
            self.filled = 0..poll_fn(|cx| socket.poll_read(cx, &mut self.bytes)).await?;
        }
        Ok(self.filled())
    }
}

impl<S: PollSocket> Stream<S> {
    /// A stream over a connected socket.
    pub fn new(socket: S) -> Self {
        Stream { socket, buffer: Buffer::default() }
    }
}

impl<S> Stream<S> {
    /// The same stream over what `wrap` makes of the socket.
    pub fn map<T: PollSocket>(self, wrap: impl FnOnce(S) -> T) -> Stream<T> {
        Stream { socket: wrap(self.socket), buffer: self.buffer }
    }
}

impl<S> Deref for Stream<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.socket
    }
}

impl<S> DerefMut for Stream<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.socket
    }
}

impl<S: PollSocket> ErrorType for ReadHalf<'_, S> {
    type Error = S::Error;
}

impl<S: PollSocket> Read for ReadHalf<'_, S> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, S::Error> {
        if to.is_empty() {
            return Ok(0);
        }
        let filled = self.buffer.filled();
        if filled.is_empty() {
            return poll_fn(|cx| self.socket.poll_read(cx, to)).await;
        }
        let count = filled.len().min(to.len());
        to[..count].copy_from_slice(&filled[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<S: PollSocket> BufRead for ReadHalf<'_, S> {
    async fn fill_buf(&mut self) -> Result<&[u8], S::Error> {
        self.buffer.fill(self.socket).await
    }

    fn consume(&mut self, count: usize) {
        self.buffer.consume(count);
    }
}

impl<S: PollSocket> Readable for ReadHalf<'_, S> {
    async fn readable(&mut self) -> Result<(), S::Error> {
        if self.buffer.filled.is_empty() {
            poll_fn(|cx| self.socket.poll_read(cx, &mut [])).await?;
        }
        Ok(())
    }
}

impl<S: PollSocket> ErrorType for WriteHalf<'_, S> {
    type Error = S::Error;
}

impl<S: PollSocket> Write for WriteHalf<'_, S> {
    async fn write(&mut self, from: &[u8]) -> Result<usize, S::Error> {
        if from.is_empty() {
            return Ok(0);
        }
        poll_fn(|cx| self.socket.poll_write(cx, from)).await
    }

    /// Does not wait: writes are not buffered here.
    async fn flush(&mut self) -> Result<(), S::Error> {
        self.socket.check_writable()
    }
}

impl<S: PollSocket> ErrorType for Stream<S> {
    type Error = S::Error;
}

impl<S: PollSocket> Read for Stream<S> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, S::Error> {
        self.split().0.read(to).await
    }
}

impl<S: PollSocket> BufRead for Stream<S> {
    async fn fill_buf(&mut self) -> Result<&[u8], S::Error> {
        self.buffer.fill(&self.socket).await
    }

    fn consume(&mut self, count: usize) {
        self.buffer.consume(count);
    }
}

impl<S: PollSocket> Readable for Stream<S> {
    async fn readable(&mut self) -> Result<(), S::Error> {
        self.split().0.readable().await
    }
}

impl<S: PollSocket> Write for Stream<S> {
    async fn write(&mut self, from: &[u8]) -> Result<usize, S::Error> {
        self.split().1.write(from).await
    }

    /// As [`WriteHalf::flush`].
    async fn flush(&mut self) -> Result<(), S::Error> {
        self.socket.check_writable()
    }
}

impl<S: PollSocket> TcpSplit for Stream<S> {
    type Read<'a>
        = ReadHalf<'a, S>
    where
        S: 'a;
    type Write<'a>
        = WriteHalf<'a, S>
    where
        S: 'a;

    fn split(&mut self) -> (ReadHalf<'_, S>, WriteHalf<'_, S>) {
        let Stream { socket, buffer } = self;
        (ReadHalf { socket, buffer }, WriteHalf { socket })
    }
}

impl<S: PollSocket> TcpShutdown for Stream<S> {
    async fn close(&mut self, what: Close) -> Result<(), S::Error> {
        self.socket.close(what).await
    }

    async fn abort(&mut self) -> Result<(), S::Error> {
        self.socket.abort().await
    }
}
