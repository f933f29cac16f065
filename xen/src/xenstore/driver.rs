//! Moves a connection's messages between its handles and the byte stream.

use super::connection::Connection;
use super::{Store, wire};
use crate::Errno;
use alloc::rc::Rc;
use alloc::vec;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use embedded_io_async::{Error, ErrorKind, Read, ReadExactError, Write};
use futures_util::future::{Either, select};

/// After this many messages without a pause the driver lets other tasks run.
const BURST: usize = 32;

/// Makes a client of the xenstored at the other end of a byte stream.
///
/// Requests are sent while the driver runs.
pub fn connect<R: Read, W: Write>(reader: R, writer: W) -> (Store, Driver<R, W>) {
    let connection = Rc::new(Connection::default());
    (Store::new(connection.clone()), Driver { connection, generation: 0, reader, writer })
}

impl Store {
    /// Connects to another xenstored, which does not know this connection, as in a restored domain.
    ///
    /// All handles stay valid. Watches are registered again, and so fire. Open transactions fail
    /// with [`Errno::EAGAIN`] when they are used, requests without replies with
    /// [`Errno::ECONNRESET`]. Unsent requests are sent once they are [released](Store::release).
    /// The former driver ends, and no longer uses its stream.
    pub fn reconnect<R: Read, W: Write>(&self, reader: R, writer: W) -> Driver<R, W> {
        let connection = self.connection().clone();
        let generation = connection.reset();
        Driver { connection, generation, reader, writer }
    }
}

/// Reads and writes the bytes of a connection; see [`connect`].
///
/// Dropping it (or the future of [`run`](Driver::run)) fails all requests with [`Errno::EPIPE`].
#[derive(Debug)]
pub struct Driver<R, W> {
    connection: Rc<Connection>,
    generation: u32,
    reader: R,
    writer: W,
}

impl<R: Read, W: Write> Driver<R, W> {
    /// Runs the connection until its transport fails, and returns the error.
    ///
    /// [`Errno::EPIPE`]: the stream ended. [`Errno::EPROTO`]: the bytes are not a xenstore message,
    /// so the next message cannot be found either. Requests then fail with the same error, and
    /// watches do not fire. [`Errno::ECONNRESET`]: [`Store::reconnect`] has made another driver.
    pub async fn run(mut self) -> Errno {
        let Driver { connection, generation, reader, writer } = &mut self;
        let error = {
            // Polled first: requests of a later generation must not be written to this stream.
            let superseded = pin!(poll_fn(|cx| connection.poll_superseded(*generation, cx)));
            let sending = pin!(send(connection, writer));
            let receiving = pin!(receive(connection, reader));
            match select(superseded, select(sending, receiving)).await {
                Either::Left(_) => return Errno::ECONNRESET,
                Either::Right((Either::Left((error, _)) | Either::Right((error, _)), _)) => error,
            }
        };
        connection.fail(*generation, error);
        error
    }
}

impl<R, W> Drop for Driver<R, W> {
    fn drop(&mut self) {
        self.connection.fail(self.generation, Errno::EPIPE);
    }
}

async fn send<W: Write>(connection: &Connection, writer: &mut W) -> Errno {
    loop {
        let message = poll_fn(|cx| connection.poll_unsent(cx)).await;
        let mut rest = &message[..];
        while !rest.is_empty() {
            match writer.write(rest).await {
                Ok(0) => return Errno::EPIPE,
                Ok(written) => rest = &rest[written..],
                Err(error) => return transport_error(&error),
            }
        }
        if connection.is_sent()
            && let Err(error) = writer.flush().await
        {
            return transport_error(&error);
        }
    }
}

async fn receive<R: Read>(connection: &Connection, reader: &mut R) -> Errno {
    loop {
        for _ in 0..BURST {
            if let Err(error) = receive_one(connection, reader).await {
                return error;
            }
        }
        pause().await;
    }
}

async fn receive_one<R: Read>(connection: &Connection, reader: &mut R) -> Result<(), Errno> {
    let mut head = [0; wire::HEADER_LEN];
    fill(reader, &mut head).await?;
    let header = wire::Header::decode(&head).inspect_err(|_| {
        log::error!("xenstored sent {head:02x?}, which is not the header of a message");
    })?;
    let mut payload = vec![0; header.len];
    fill(reader, &mut payload).await?;
    connection.receive(header, payload);
    Ok(())
}

async fn fill<R: Read>(reader: &mut R, to: &mut [u8]) -> Result<(), Errno> {
    reader.read_exact(to).await.map_err(|error| match error {
        ReadExactError::UnexpectedEof => Errno::EPIPE,
        ReadExactError::Other(error) => transport_error(&error),
    })
}

fn transport_error(error: &impl Error) -> Errno {
    match error.kind() {
        ErrorKind::BrokenPipe => Errno::EPIPE,
        ErrorKind::ConnectionReset => Errno::ECONNRESET,
        ErrorKind::InvalidData => Errno::EPROTO,
        ErrorKind::PermissionDenied => Errno::EACCES,
        ErrorKind::OutOfMemory => Errno::ENOMEM,
        _ => Errno::EIO,
    }
}

/// Lets other ready tasks run first.
async fn pause() {
    let mut paused = false;
    poll_fn(|cx| {
        if paused {
            return Poll::Ready(());
        }
        paused = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
