//! A client's two pipes to the fake.

use super::FakeStore;
use crate::Errno;
use core::future::poll_fn;
use core::task::Poll;
use embedded_io_async::{ErrorType, Read, Write};

/// The most bytes that a write takes, or a read gives, at once.
const PIECE: usize = 23;

/// What the fake sends to a client. It ends when the client broke the protocol.
pub struct PipeReader {
    pub(super) store: FakeStore,
    pub(super) client: u32,
}

impl ErrorType for PipeReader {
    type Error = Errno;
}

impl Read for PipeReader {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Errno> {
        let len = to.len().min(PIECE);
        poll_fn(|cx| self.store.poll_output(self.client, &mut to[..len], cx)).await
    }
}

/// What a client sends to the fake. Dropping it ends the connection.
pub struct PipeWriter {
    pub(super) store: FakeStore,
    pub(super) client: u32,
}

impl ErrorType for PipeWriter {
    type Error = Errno;
}

impl Write for PipeWriter {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        let piece = &from[..from.len().min(PIECE)];
        // Others run in between, as they would.
        let mut waited = false;
        poll_fn(|cx| {
            if core::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        self.store.input(self.client, piece);
        Ok(piece.len())
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.store.disconnect(self.client);
    }
}
