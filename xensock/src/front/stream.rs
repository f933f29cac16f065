//! A connection: bytes in, bytes out.

use super::release::{Unsent, release};
use super::socket::{Names, Socket};
use crate::ring::{copy_in, copy_out};
use crate::wire::{Call, Extensions, How, SocketOption};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use core::future::poll_fn;
use core::net::SocketAddr;
use core::ops::Range;
use edge_nal::{Close, Readable, TcpShutdown, TcpSplit};
use embedded_io_async::{BufRead, ErrorType, Read, Write};
use xen::Machine;
use xen::{Errno, Shared};

/// The size of the private buffer that `fill_buf` needs, as no reference to shared memory may exist.
const BUFFER: usize = 4096;

/// A connected socket.
///
/// Reading first yields all data that came, then `Ok(0)` at the end of the stream or the error that
/// ended it. A future of `read`, `write` or `fill_buf` that is dropped has done nothing.
///
/// Dropping a stream closes it: the driver lets what was written go out, then releases the socket.
/// `abort` does not wait for that, and resets the connection where the backend has options. Options, names
/// and closing one direction alone (`close(Close::Write)`) are extensions of the protocol: where the
/// backend has not announced them they fail with [`Errno::EOPNOTSUPP`].
pub struct Stream<M: Machine + 'static> {
    socket: Rc<Socket<M>>,
    buffer: Buffer,
    open: bool,
}

/// The reading half of a [`Stream`].
pub struct ReadHalf<'a, M: Machine + 'static> {
    socket: &'a Socket<M>,
    buffer: &'a mut Buffer,
}

/// The writing half of a [`Stream`].
pub struct WriteHalf<'a, M: Machine + 'static> {
    socket: &'a Socket<M>,
}

/// What `fill_buf` has fetched and `consume` not used up. Without memory until it is needed.
#[derive(Default)]
struct Buffer {
    bytes: Box<[u8]>,
    filled: Range<usize>,
}

impl<M: Machine> Stream<M> {
    pub(super) fn new(socket: Rc<Socket<M>>) -> Self {
        Stream { socket, buffer: Buffer::default(), open: true }
    }

    /// Waits for data and reads it where it lies. `read` gets up to two pieces, empty ones at the end
    /// of the stream, and returns how many bytes it is done with, and a value of its own.
    ///
    /// The pieces can change while they are read: copy what must not, then check the copy. What
    /// `fill_buf` has fetched already is not part of them.
    pub async fn read_in_place<R>(
        &mut self,
        mut read: impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<R, Errno> {
        poll_fn(|cx| self.socket.poll_take(cx, &mut read)).await
    }

    /// Waits for room and writes there. `write` gets up to two pieces and returns how many bytes it
    /// has filled, from the first one on, and a value of its own.
    pub async fn write_in_place<R>(
        &mut self,
        mut write: impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<R, Errno> {
        poll_fn(|cx| self.socket.poll_put(cx, &mut write)).await
    }

    /// Changes an option. [`SocketOption::ReceiveBuffer`] and `SendBuffer` choose another size for the
    /// data ring, the least that holds both, and nothing that is in the ring is lost; while the former
    /// ring still has something in it, they fail with [`Errno::EBUSY`]. Values: see [`SocketOption`].
    pub async fn set_option(&mut self, option: SocketOption, value: u32) -> Result<(), Errno> {
        let socket = self.socket.clone();
        self.socket.device.run(async move { socket.set_option(option, value).await }).await
    }

    /// An option's value.
    pub async fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        let socket = self.socket.clone();
        self.socket.device.run(async move { socket.option(option).await }).await
    }

    /// The address of this end, in the backend's network.
    pub async fn local_addr(&self) -> Result<SocketAddr, Errno> {
        if let Some(name) = self.socket.names.get().local {
            return Ok(name);
        }
        self.socket.needs(Extensions::NAMES)?;
        let socket = self.socket.clone();
        let ask = async move {
            let reply = socket.call(Call::LocalName).await?;
            socket.names.set(Names { local: reply.name, ..socket.names.get() });
            reply.name.ok_or(Errno::EPROTO)
        };
        self.socket.device.run(ask).await
    }

    /// The address of the other end: not known of a connection that was accepted from a backend without
    /// names.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket.names.get().peer
    }

    async fn shutdown(&self, how: How) -> Result<(), Errno> {
        self.socket.needs(Extensions::SHUTDOWN)?;
        if how.writes() {
            self.socket.finish();
        }
        let socket = self.socket.clone();
        let call = async move { socket.call(Call::Shutdown { how }).await.map(drop) };
        self.socket.device.run(call).await
    }

    fn reader(&mut self) -> ReadHalf<'_, M> {
        ReadHalf { socket: &self.socket, buffer: &mut self.buffer }
    }

    fn writer(&self) -> WriteHalf<'_, M> {
        WriteHalf { socket: &self.socket }
    }
}

impl<M: Machine> Drop for Stream<M> {
    fn drop(&mut self) {
        if self.open && self.socket.is_open() {
            self.socket.device.spawn(release(self.socket.clone(), Unsent::Drains));
        }
    }
}

impl<M: Machine> ErrorType for ReadHalf<'_, M> {
    type Error = Errno;
}

impl<M: Machine> Read for ReadHalf<'_, M> {
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
        poll_fn(|cx| {
            self.socket.poll_take(cx, |data| {
                let count = copy_out(&data, to);
                (count, count)
            })
        })
        .await
    }
}

impl<M: Machine> BufRead for ReadHalf<'_, M> {
    async fn fill_buf(&mut self) -> Result<&[u8], Errno> {
        if self.buffer.filled.is_empty() {
            if self.buffer.bytes.is_empty() {
                self.buffer.bytes = vec![0; BUFFER].into_boxed_slice();
            }
            self.buffer.filled = 0..0;
            let bytes = &mut self.buffer.bytes;
            let count = poll_fn(|cx| {
                self.socket.poll_take(cx, |data| {
                    let count = copy_out(&data, bytes);
                    (count, count)
                })
            })
            .await?;
            self.buffer.filled = 0..count;
        }
        Ok(&self.buffer.bytes[self.buffer.filled.clone()])
    }

    fn consume(&mut self, count: usize) {
        assert!(count <= self.buffer.filled.len(), "{count} bytes consumed, fewer were there");
        self.buffer.filled.start += count;
    }
}

impl<M: Machine> Readable for ReadHalf<'_, M> {
    async fn readable(&mut self) -> Result<(), Errno> {
        if !self.buffer.filled.is_empty() {
            return Ok(());
        }
        // Taking nothing waits all the same.
        poll_fn(|cx| self.socket.poll_take(cx, |_| (0, ()))).await
    }
}

impl<M: Machine> ErrorType for WriteHalf<'_, M> {
    type Error = Errno;
}

impl<M: Machine> Write for WriteHalf<'_, M> {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        if from.is_empty() {
            return Ok(0);
        }
        poll_fn(|cx| {
            self.socket.poll_put(cx, |room| {
                let count = copy_in(&room, from);
                (count, count)
            })
        })
        .await
    }

    /// There is nothing to flush: what was written is in the ring, and the backend knows.
    async fn flush(&mut self) -> Result<(), Errno> {
        self.socket.check_writable()
    }
}

impl<M: Machine> ErrorType for Stream<M> {
    type Error = Errno;
}

impl<M: Machine> Read for Stream<M> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Errno> {
        self.reader().read(to).await
    }
}

impl<M: Machine> BufRead for Stream<M> {
    async fn fill_buf(&mut self) -> Result<&[u8], Errno> {
        self.reader().fill_buf().await?;
        Ok(&self.buffer.bytes[self.buffer.filled.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.reader().consume(count);
    }
}

impl<M: Machine> Readable for Stream<M> {
    async fn readable(&mut self) -> Result<(), Errno> {
        self.reader().readable().await
    }
}

impl<M: Machine> Write for Stream<M> {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        self.writer().write(from).await
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        self.writer().flush().await
    }
}

impl<M: Machine> TcpSplit for Stream<M> {
    type Read<'a> = ReadHalf<'a, M>;
    type Write<'a> = WriteHalf<'a, M>;

    fn split(&mut self) -> (Self::Read<'_>, Self::Write<'_>) {
        let writer = WriteHalf { socket: &self.socket };
        (ReadHalf { socket: &self.socket, buffer: &mut self.buffer }, writer)
    }
}

impl<M: Machine> TcpShutdown for Stream<M> {
    /// Closes the socket once all that was written has gone out, and waits for that. Closing one
    /// direction does not wait: the other end sees the end of the stream after all that was written.
    async fn close(&mut self, what: Close) -> Result<(), Errno> {
        match what {
            Close::Read => return self.shutdown(How::Read).await,
            Close::Write => return self.shutdown(How::Write).await,
            Close::Both => {}
        }
        if !core::mem::replace(&mut self.open, false) || !self.socket.is_open() {
            return Ok(());
        }
        let released = release(self.socket.clone(), Unsent::Drains);
        let closed = async {
            released.await;
            Ok(())
        };
        self.socket.device.run(closed).await
    }

    /// Closes the socket without waiting: what the backend has not taken yet is lost, and the other end
    /// sees a reset, where the backend has options; elsewhere it may go out later, as the backend likes.
    async fn abort(&mut self) -> Result<(), Errno> {
        if core::mem::replace(&mut self.open, false) && self.socket.is_open() {
            self.socket.device.spawn(release(self.socket.clone(), Unsent::IsLost));
        }
        Ok(())
    }
}
