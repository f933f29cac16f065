//! Serves blocks to clients, each through an endpoint and a courier of its own.
//!
//! A client that loses its connection repeats what was in flight, so the server makes sure that the
//! former attempts have no late effect:
//!
//! - Accesses to the same blocks have an order, and a WRITE has its place in it before it fetches
//!   the bytes from the client's buffer.
//! - A client that gives an attempt up unregisters its buffer. Then this attempt either had the
//!   bytes already, and what the client asks next of these blocks waits for it, or it fails.
//!
//! A client can make others wait for the blocks that it writes, but not longer than a transfer may
//! take, and only clients that may write can do that. It can also have the server connect with
//! whatever place its references name.

use crate::blocks::Blocks;
use crate::neighbours::{Neighbour, Neighbours, Role};
use crate::protocol::{Failure, Request, Span, server_quota};
use crate::ranges::{Access, Ranges};
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::pending;
use core::pin::pin;
use embassy_time::{Duration, with_timeout};
use futures_util::future::{Either, join, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use idc::transport::Transport;
use idc::{
    Address, Courier, Endpoint, Event, Events, Incoming, LocalBuffer, Node, Place, Quota,
    RemoteBuffer, Resource, TransferError,
};
use xen::{Errno, WaitList};

/// How often a transfer is begun if its connection ends.
const TRANSFERS: u32 = 3;

/// How long a client may take to connect after it has appeared.
const GREETING: Duration = Duration::from_secs(10);

/// How many clients a server has.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most clients at a time.
    pub clients: usize,
    /// The most transactions of a client's at a time.
    pub transactions: u16,
    /// How long a client's buffer may take to send or receive the blocks of one request.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { clients: 8, transactions: 4, patience: Duration::from_secs(15) }
    }
}

/// What a client takes: an endpoint, and a courier for its buffers.
type Resources<T> = (Resource<T>, Resource<T>);

struct Server<'b, B> {
    address: &'b Address,
    blocks: &'b B,
    neighbours: &'b Neighbours,
    patience: Duration,
    ranges: Ranges,
    /// How many endpoints wait for a client.
    waiting: Cell<usize>,
    /// Woken when a client has taken one.
    taken: WaitList,
}

/// Serves blocks as long as it is polled: to any client that visits if the address is `any/NAME`,
/// and otherwise to one. Fails at once if there is not enough memory for all clients.
///
/// The node's own buffers are of no use here; its clients' must be served by them.
pub async fn serve<T: Transport, B: Blocks>(
    node: &Node<T>,
    address: &Address,
    blocks: &B,
    limits: Limits,
    neighbours: &Neighbours,
) -> Errno {
    let (ranges, waiting, taken) = Default::default();
    let patience = limits.patience;
    let server = Server { address, blocks, neighbours, patience, ranges, waiting, taken };
    let clients = if address.place == Place::Anyone { limits.clients.max(1) } else { 1 };
    let resources = || -> Result<Resources<T>, Errno> {
        let endpoint = node.resource(server_quota(limits.transactions))?;
        Ok((endpoint, node.resource(Quota::default())?))
    };
    let mut spare = match (0..clients).map(|_| resources()).collect::<Result<Vec<_>, _>>() {
        Ok(spare) => spare,
        Err(error) => return error,
    };
    let mut visits = FuturesUnordered::new();
    loop {
        if server.waiting.get() == 0
            && let Some(resources) = spare.pop()
        {
            server.waiting.set(1);
            visits.push(server.visit(resources));
        }
        let is_spare = !spare.is_empty();
        let can_add = || (server.waiting.get() == 0 && is_spare).then_some(());
        let taken = pin!(server.taken.until(can_add));
        if let Either::Right((Some(resources), _)) = select(taken, visits.next()).await {
            spare.push(resources);
        }
    }
}

impl<B: Blocks> Server<'_, B> {
    /// Waits for a client, and serves it until it disappears.
    async fn visit<T: Transport>(&self, (resource, courier): Resources<T>) -> Resources<T> {
        let (endpoint, mut events, drive) = Endpoint::create(resource, self.address.clone());
        let waits = Cell::new(true);
        let talk = async {
            let mut courier = courier;
            let mut appeared = false;
            loop {
                let next = if appeared {
                    with_timeout(GREETING, events.next()).await
                } else {
                    Ok(events.next().await)
                };
                match next {
                    Ok(Some(Event::Appear)) => {
                        appeared = true;
                        self.take(&waits);
                    }
                    Ok(Some(Event::Connect)) => {
                        courier = self.converse(&endpoint, &mut events, courier).await;
                    }
                    Ok(Some(Event::Disappear)) | Err(_) => {
                        // Another endpoint waits for the next client.
                        appeared = false;
                        endpoint.destroy();
                    }
                    Ok(None) => return courier,
                    Ok(Some(Event::Message(_) | Event::Transaction(_) | Event::Disconnect(_))) => {}
                }
            }
        };
        let resources = join(drive, talk).await;
        self.take(&waits);
        resources
    }

    /// Notes that an endpoint does not wait for a client any more.
    fn take(&self, waits: &Cell<bool>) {
        if waits.replace(false) {
            self.waiting.set(self.waiting.get() - 1);
            self.taken.wake_all();
        }
    }

    /// Serves a client until it disconnects.
    async fn converse<T: Transport>(
        &self,
        endpoint: &Endpoint,
        events: &mut Events,
        resource: Resource<T>,
    ) -> Resource<T> {
        let place = endpoint.peer_place().unwrap_or(Place::Anyone);
        let client = self.neighbours.connected(place.to_string(), Role::Client);
        let (courier, drive) = Courier::create(resource);
        let talk = async {
            let courier = Shared::new(courier);
            let answerer = Answerer { server: self, courier, client: &client };
            let mut answers = FuturesUnordered::new();
            let disconnect = loop {
                let answered = async {
                    if answers.next().await.is_none() {
                        pending().await
                    }
                };
                let event = match select(pin!(events.next()), pin!(answered)).await {
                    Either::Left((event, _)) => event,
                    Either::Right(((), _)) => continue,
                };
                match event {
                    Some(Event::Transaction(incoming)) => answers.push(answerer.answer(incoming)),
                    Some(Event::Disconnect(disconnect)) => break Some(disconnect),
                    None => break None,
                    Some(_) => {}
                }
            };
            client.disconnect();
            // What the client has asked is of no use any more, and the courier may be in the middle
            // of it.
            drop(answers);
            drop(answerer);
            drop(disconnect);
        };
        join(drive, talk).await.0
    }
}

/// Answers a client's transactions.
struct Answerer<'s, 'b, B> {
    server: &'s Server<'b, B>,
    courier: Shared,
    client: &'s Rc<Neighbour>,
}

impl<B: Blocks> Answerer<'_, '_, B> {
    async fn answer(&self, incoming: Incoming) {
        let mut counted = Counted { client: self.client, succeeded: false };
        let result = match Request::from_bytes(&incoming.parameters().to_vec()) {
            Ok(Request::Size) => {
                self.server.blocks.size().await.map(|size| size.to_le_bytes()[..].into())
            }
            Ok(Request::Read(span, to)) => self.read(span, &to).await.map(|()| LocalBuffer::new(0)),
            Ok(Request::Write(span, from)) => {
                self.write(span, &from).await.map(|()| LocalBuffer::new(0))
            }
            Ok(Request::Flush) => self.server.blocks.flush().await.map(|()| LocalBuffer::new(0)),
            Err(failure) => Err(failure),
        };
        let (code, status) = match result {
            Ok(status) => (0, status),
            Err(failure) => (failure as u32, LocalBuffer::new(0)),
        };
        // A client without room for the status is told that the transaction is abandoned.
        counted.succeeded = incoming.complete(code, status).is_ok() && code == 0;
    }

    async fn read(&self, span: Span, to: &RemoteBuffer) -> Result<(), Failure> {
        let buffer = memory(span)?;
        let hits = {
            let _use = self.server.ranges.access(span, Access::Read).await;
            self.server.blocks.read(span.first, &buffer).await?
        };
        self.client.count(|counts| {
            counts.hits += u64::from(hits);
            counts.misses += u64::from(span.count - hits);
        });
        self.transfer(async |courier| courier.send(to, 0, &buffer).await).await?;
        self.client.count(|counts| counts.read += span.bytes() as u64);
        Ok(())
    }

    async fn write(&self, span: Span, from: &RemoteBuffer) -> Result<(), Failure> {
        let buffer = memory(span)?;
        let _use = self.server.ranges.access(span, Access::Write).await;
        self.transfer(async |courier| courier.receive(from, 0, &buffer).await).await?;
        self.server.blocks.write(span.first, &buffer).await?;
        self.client.count(|counts| counts.written += span.bytes() as u64);
        Ok(())
    }

    /// Moves bytes from or to a client's buffer.
    async fn transfer(
        &self,
        carry: impl AsyncFn(&mut Courier) -> Result<(), TransferError>,
    ) -> Result<(), Failure> {
        let mut courier = self.courier.take().await;
        let attempts = async {
            for _ in 1..TRANSFERS {
                match carry(courier.get()).await {
                    Err(TransferError::Disconnected) => {}
                    result => return result,
                }
            }
            carry(courier.get()).await
        };
        match with_timeout(self.server.patience, attempts).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(TransferError::OutOfRange | TransferError::Forbidden)) => {
                Err(Failure::Malformed)
            }
            failed => {
                log::debug!("{}: its buffer: {failed:?}", self.client.address);
                Err(Failure::Unreachable)
            }
        }
    }
}

/// The memory for these blocks.
fn memory(span: Span) -> Result<LocalBuffer, Failure> {
    LocalBuffer::try_new(span.bytes()).map_err(|_| Failure::Failed)
}

/// Counts a transaction when it ends.
struct Counted<'c> {
    client: &'c Neighbour,
    succeeded: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.client.count(|counts| match self.succeeded {
            true => counts.transactions += 1,
            false => counts.failures += 1,
        });
    }
}

/// A courier for several tasks, one at a time.
struct Shared {
    courier: RefCell<Option<Courier>>,
    waiting: WaitList,
}

/// A courier in use.
struct Taken<'s> {
    shared: &'s Shared,
    courier: Option<Courier>,
}

impl Shared {
    fn new(courier: Courier) -> Self {
        Shared { courier: RefCell::new(Some(courier)), waiting: WaitList::default() }
    }

    async fn take(&self) -> Taken<'_> {
        let courier = self.waiting.until(|| self.courier.borrow_mut().take()).await;
        Taken { shared: self, courier: Some(courier) }
    }
}

impl Taken<'_> {
    fn get(&mut self) -> &mut Courier {
        self.courier.as_mut().expect("it is here until it is dropped")
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.shared.courier.borrow_mut() = self.courier.take();
        self.shared.waiting.wake_one();
    }
}
