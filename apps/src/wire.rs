//! A socket with a read buffer, a time limit and counters.
//!
//! All memory is allocated when the connection begins, or by [`Wire::enlarge`].

use crate::Context;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::fmt;
use edge_nal::{Close, TcpShutdown};
use embassy_time::{Duration, Instant, with_deadline};
use embedded_io_async::{Read, Write};
use thiserror::Error;

/// How long to wait for the peer's end of stream after the connection was closed.
const LINGER: Duration = Duration::from_secs(2);

/// The most bytes that are read and dropped after the connection was closed.
const LINGER_BYTES: usize = 1 << 20;

/// Why a connection failed.
#[derive(Debug, Error)]
pub enum WireError {
    /// The socket failed.
    #[error("{0}")]
    Io(String),
    /// The time limit has passed.
    #[error("the peer did nothing for too long")]
    TimedOut,
    /// Memory is short.
    #[error("there is not enough memory for the connection")]
    NoMemory,
}

impl WireError {
    /// Keeps a socket's error as text.
    pub fn io(error: impl fmt::Display) -> WireError {
        WireError::Io(error.to_string())
    }
}

/// The time limit of a connection. Progress extends it.
#[derive(Debug)]
pub struct Deadline {
    idle: Option<Duration>,
    due: Option<Instant>,
}

impl Deadline {
    /// A limit of `idle` from now on; `None` is no limit.
    pub fn new(idle: Option<core::time::Duration>) -> Deadline {
        let idle = idle.map(|idle| Duration::from_micros(idle.as_micros() as u64));
        let mut deadline = Deadline { idle, due: None };
        deadline.extend();
        deadline
    }

    /// Restarts the limit, after progress.
    pub fn extend(&mut self) {
        self.due = self.idle.map(|idle| Instant::now() + idle);
    }

    /// Sets the limit to `limit` from now on, or to the idle limit if that is shorter.
    pub fn shorten(&mut self, limit: Duration) {
        let limit = self.idle.map_or(limit, |idle| idle.min(limit));
        self.due = Some(Instant::now() + limit);
    }

    /// Waits for `work`, at most until the limit.
    pub async fn guard<T, E: fmt::Display>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, WireError> {
        let result = match self.due {
            Some(due) => with_deadline(due, work).await.map_err(|_| WireError::TimedOut)?,
            None => work.await,
        };
        result.map_err(WireError::io)
    }
}

/// A socket with a read buffer.
pub struct Wire<'c, S> {
    socket: S,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    unflushed: bool,
    unread: bool,
    /// The time limit of each read and write.
    pub deadline: Deadline,
    context: &'c Context,
}

impl<'c, S> Wire<'c, S>
where
    S: Read + Write + TcpShutdown,
{
    /// Allocates a buffer of `size` bytes for the socket. If memory is short, the socket closes.
    pub fn new(
        socket: S,
        size: usize,
        deadline: Deadline,
        context: &'c Context,
    ) -> Result<Self, WireError> {
        let buffer = context.buffer(size).ok_or(WireError::NoMemory)?;
        Ok(Wire {
            socket,
            buffer,
            start: 0,
            end: 0,
            unflushed: false,
            unread: false,
            deadline,
            context,
        })
    }

    /// The bytes that were read and are not consumed yet.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether [`fill`](Self::fill) has no room.
    pub fn is_full(&self) -> bool {
        self.end - self.start == self.buffer.len()
    }

    /// Enlarges the buffer to `size` bytes if memory allows. Buffered bytes stay.
    pub fn enlarge(&mut self, size: usize) {
        if size > self.buffer.len()
            && let Some(mut buffer) = self.context.buffer(size)
        {
            buffer[self.start..self.end].copy_from_slice(self.buffered());
            self.buffer = buffer;
        }
    }

    /// Removes the first `count` buffered bytes.
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads at least one byte and appends it to the buffered ones. 0 means that the peer has
    /// ended its stream, or that the buffer is full.
    pub async fn fill(&mut self) -> Result<usize, WireError> {
        if self.unflushed {
            self.flush().await?;
        }
        if self.end == self.buffer.len() && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = &mut self.buffer[self.end..];
        if room.is_empty() {
            return Ok(0);
        }
        let read = self.deadline.guard(self.socket.read(room)).await?;
        let read = read.min(self.buffer.len() - self.end);
        self.end += read;
        self.context.counters.bytes_in.add(read);
        Ok(read)
    }

    /// Writes all of `data`. The stack may hold back the last bytes until [`flush`](Self::flush) or
    /// [`fill`](Self::fill).
    pub async fn write_all(&mut self, mut data: &[u8]) -> Result<(), WireError> {
        self.unflushed |= !data.is_empty();
        while !data.is_empty() {
            self.deadline.extend();
            let written = self.deadline.guard(self.socket.write(data)).await?;
            self.context.counters.bytes_out.add(written.min(data.len()));
            data = match data.get(written..) {
                Some(rest) if written > 0 => rest,
                _ => return Err(WireError::io("the socket takes no bytes")),
            };
        }
        Ok(())
    }

    /// Sends the bytes that were held back.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        self.unflushed = false;
        self.deadline.guard(self.socket.flush()).await
    }

    /// Writes all buffered bytes and removes them.
    pub async fn echo(&mut self) -> Result<(), WireError> {
        // Taken out of `self`, because `write_all` borrows both.
        let buffer = core::mem::take(&mut self.buffer);
        let result = self.write_all(&buffer[self.start..self.end]).await;
        self.buffer = buffer;
        (self.start, self.end) = (0, 0);
        result
    }

    /// Notes that the peer may be sending bytes that will not be read.
    pub fn leave_unread(&mut self) {
        self.unread = true;
    }

    /// Ends the connection so that the peer gets all that was written. Sends the end of stream,
    /// then waits a little for the peer's: closing with unread bytes sends a reset, which can
    /// make the peer drop what it has not read yet.
    pub async fn close(mut self) -> Result<(), WireError> {
        self.flush().await?;
        self.deadline.shorten(LINGER);
        let half_closed = match self.deadline.guard(self.socket.close(Close::Write)).await {
            Err(WireError::TimedOut) => return Err(WireError::TimedOut),
            closed => closed.is_ok(),
        };
        // Not every stack can close one direction. Dropping the socket closes both, and only then
        // does the peer see the end: so drop at once, unless a reset would do harm.
        if !half_closed && !self.unread {
            return Ok(());
        }
        let mut drained = 0;
        while drained < LINGER_BYTES {
            match self.deadline.guard(self.socket.read(&mut self.buffer)).await {
                Ok(read) if read > 0 => drained += read,
                _ => break,
            }
        }
        Ok(())
    }
}
