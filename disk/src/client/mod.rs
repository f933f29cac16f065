//! A client's end: blocks that are somewhere else.

mod connect;

use crate::blocks::Blocks;
use crate::neighbours::Neighbour;
use crate::protocol::{BLOCK, Failure, MAX_BLOCKS, Request, SIZE, Span};
use alloc::rc::Rc;
use core::cell::Cell;
use embassy_time::{Duration, Timer};
use futures_util::stream::{self, TryStreamExt};
use idc::transport::Transport;
use idc::wire::ABANDONED;
use idc::{Endpoint, LocalBuffer, Node, Rights, TransportError};
use xen::WaitList;

/// How long a client rests whose request the server has given up.
const REST: Duration = Duration::from_millis(100);

/// How often the server may say that it does not reach this end's buffer.
const UNREACHABLE: u32 = 3;

/// A disk that another end serves. Dropping it leaves that end.
///
/// Reading and writing take as long as it takes to have a connection and an answer; whoever does
/// not want to wait drops the future. The node's buffers must be
/// [served](Node::serve_buffers) meanwhile.
///
/// A write that has returned was carried out. When the connection ends, nobody knows whether
/// the server has done what was in flight, so this end repeats it. Each attempt is carried out at
/// most once, and never after a later one: each has a registration of its own, which ends with the
/// attempt, and the [server](crate::server) orders what has the same blocks. So the blocks may have
/// been written twice, with the same bytes, and with no other write of this end's in between. The
/// writes of other clients may come in between, as with any disk that several write to at the same
/// time.
pub struct Disk<T: Transport> {
    node: Node<T>,
    endpoint: Endpoint,
    connection: Rc<Connection>,
}

/// Which connection there is.
struct Connection {
    /// Its number, from 1, and whether it still stands.
    now: Cell<(u64, bool)>,
    waiting: WaitList,
    server: Rc<Neighbour>,
}

impl Connection {
    fn new(server: Rc<Neighbour>) -> Self {
        Connection { now: Cell::new((0, false)), waiting: WaitList::default(), server }
    }

    fn begin(&self) {
        self.now.set((self.now.get().0 + 1, true));
        self.server.connect();
        self.waiting.wake_all();
    }

    fn end(&self) {
        self.now.set((self.now.get().0, false));
        self.server.disconnect();
    }

    /// Waits for a connection after this one, and returns its number.
    async fn after(&self, former: u64) -> u64 {
        let newer = || match self.now.get() {
            (number, true) if number > former => Some(number),
            _ => None,
        };
        self.waiting.until(newer).await
    }
}

impl<T: Transport> Drop for Disk<T> {
    fn drop(&mut self) {
        self.endpoint.destroy();
    }
}

impl<T: Transport> Disk<T> {
    /// Waits until there is a connection.
    pub async fn connected(&self) {
        self.connection.after(0).await;
    }

    /// Has the server do something with a buffer, to which it gets this right. Repeats it until
    /// there is an answer.
    async fn ask(
        &self,
        buffer: Option<(&LocalBuffer, Rights)>,
        request: impl Fn(Option<idc::RemoteBuffer>) -> Request,
    ) -> Result<LocalBuffer, Failure> {
        let server = &self.connection.server;
        let (mut lost, mut unreachable) = (0, 0);
        loop {
            let number = self.connection.after(lost).await;
            // The registration ends with the attempt.
            let registration = match buffer {
                Some((buffer, rights)) => {
                    Some(self.node.register(buffer, rights).map_err(|_| Failure::Failed)?)
                }
                None => None,
            };
            let reference = registration.as_ref().map(|registration| registration.reference());
            let answer = self.endpoint.transaction(request(reference).to_bytes()).await;
            drop(registration);
            let (code, status) = match answer {
                Ok(response) => (response.error(), response.status()),
                Err(TransportError::Disconnected) => {
                    lost = number;
                    continue;
                }
                // It is not a server of disks.
                Err(TransportError::TooLong) => return Err(Failure::Malformed),
            };
            if code == 0 {
                server.count(|counts| counts.transactions += 1);
                return Ok(status);
            }
            server.count(|counts| counts.failures += 1);
            match Failure::from_code(code) {
                _ if code == ABANDONED => Timer::after(REST).await,
                Failure::Unreachable if unreachable + 1 < UNREACHABLE => {
                    unreachable += 1;
                    Timer::after(REST).await;
                }
                failure => return Err(failure),
            }
        }
    }

    /// Does something with blocks, in pieces of which each is one request.
    async fn each(
        &self,
        first: u64,
        buffer: &LocalBuffer,
        one: impl AsyncFn(Span, &LocalBuffer) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let piece = MAX_BLOCKS as usize * BLOCK;
        let starts = (0..buffer.len()).step_by(piece).map(Ok);
        let one = &one;
        // More than the server's quota wait in the endpoint.
        stream::iter(starts)
            .try_for_each_concurrent(Some(AT_A_TIME), |start| async move {
                let end = buffer.len().min(start + piece);
                let count = ((end - start) / BLOCK) as u32;
                let span = Span { first: first + (start / BLOCK) as u64, count };
                one(span, &buffer.slice(start..end)).await
            })
            .await
    }
}

/// The most requests that a long read or write is cut into at a time.
const AT_A_TIME: usize = 4;

impl<T: Transport> Blocks for Disk<T> {
    async fn size(&self) -> Result<u64, Failure> {
        let status = self.ask(None, |_| Request::Size).await?;
        if status.len() != SIZE {
            return Err(Failure::Malformed);
        }
        let mut bytes = [0; SIZE];
        status.read(0, &mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    async fn read(&self, first: u64, into: &LocalBuffer) -> Result<u32, Failure> {
        self.each(first, into, async |span, piece| {
            let buffer = Some((piece, Rights::WRITE));
            self.ask(buffer, |to| Request::Read(span, to.expect("registered"))).await?;
            self.connection.server.count(|counts| counts.read += piece.len() as u64);
            Ok(())
        })
        .await?;
        Ok(0)
    }

    async fn write(&self, first: u64, from: &LocalBuffer) -> Result<(), Failure> {
        self.each(first, from, async |span, piece| {
            let buffer = Some((piece, Rights::READ));
            self.ask(buffer, |from| Request::Write(span, from.expect("registered"))).await?;
            self.connection.server.count(|counts| counts.written += piece.len() as u64);
            Ok(())
        })
        .await
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.ask(None, |_| Request::Flush).await.map(drop)
    }
}
