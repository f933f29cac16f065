//! Endpoints: one end of one connection at a time.

use crate::LocalBuffer;
use crate::address::{Address, Place};
use crate::connection::{Connection, Memory, Submitted, Ticket};
use crate::driver::{self, Client};
use crate::life::Publication;
use crate::node::Resource;
use crate::quota::Quota;
use crate::slots::Answer;
use crate::time::Quiet;
use crate::transport::{Link, Transport};
use crate::wire::ABANDONED;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::{Future, poll_fn};
use xen::{Errno, Flag, WaitList};

/// Why the transport did not carry something out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// There is no connection, or it ended before the answer came. The other end may have handled
    /// what was submitted, or not; it never handles it later.
    Disconnected,
    /// The other end is not ready to receive so much at once. Nothing was sent.
    TooLong,
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TransportError::Disconnected => "not connected",
            TransportError::TooLong => "longer than the other end's quota",
        })
    }
}

impl core::error::Error for TransportError {}

/// What happens at an endpoint, in this order: `Appear (Connect Disconnect)* Disappear`, over and
/// over, with messages and transactions between `Connect` and `Disconnect`.
#[derive(Debug)]
pub enum Event {
    /// The other end is there.
    Appear,
    /// The ends are connected. From now on, the client can submit.
    Connect,
    /// A message came.
    Message(Received),
    /// A transaction came.
    Transaction(Incoming),
    /// The connection has ended. Everything submitted is complete.
    Disconnect(Disconnect),
    /// The other end is gone.
    Disappear,
}

/// One end of a connection that comes and goes. Clones are the same end.
#[derive(Clone)]
pub struct Endpoint(Rc<Core>);

/// The events of an endpoint. Dropping it destroys the endpoint.
pub struct Events(Rc<Core>);

/// What the handles of an endpoint share.
struct Core {
    quota: Quota,
    memory: RefCell<Memory>,
    connection: RefCell<Option<Rc<Connection>>>,
    /// Where the other end of the latest connection is.
    place: Cell<Option<Place>>,
    /// The events to come. The quota bounds their number.
    events: RefCell<VecDeque<Event>>,
    /// The client, which waits for an event.
    client: WaitList,
    /// The driver, which waits until events were taken.
    taken: WaitList,
    destroyed: Flag,
    /// No more events come, or nobody takes them.
    closed: Cell<bool>,
    quiet: Quiet,
}

impl Endpoint {
    /// Creates an endpoint, which neither fails nor waits.
    ///
    /// The future drives the endpoint: poll it until it ends, which it does after
    /// [`destroy`](Endpoint::destroy), with the resource for another endpoint.
    pub fn create<T: Transport>(
        resource: Resource<T>,
        address: Address,
    ) -> (Endpoint, Events, impl Future<Output = Resource<T>>) {
        let Resource { node, quota, memory, reserve } = resource;
        // Besides what was received: how a connection ended and the next one began.
        let events = usize::from(quota.messages) + usize::from(quota.transactions) + 4;
        let core = Rc::new(Core {
            quota,
            memory: RefCell::new(memory),
            connection: RefCell::default(),
            place: Cell::new(None),
            events: RefCell::new(VecDeque::with_capacity(events)),
            client: WaitList::default(),
            taken: WaitList::default(),
            destroyed: Flag::default(),
            closed: Cell::new(false),
            quiet: Quiet::default(),
        });
        let driven = core.clone();
        let drive = async move {
            let reserve = driver::drive(&node, &address, reserve, &*driven).await;
            driven.closed.set(true);
            driven.client.wake_all();
            let memory = driven.memory.take();
            Resource { node, quota, memory, reserve }
        };
        (Endpoint(core.clone()), Events(core), drive)
    }

    /// Sends a message. Waits until the other end is done with it: this may be longer than it takes
    /// to deliver it. If the future is dropped, the message is sent all the same, or not at all.
    pub async fn message(&self, body: impl Into<LocalBuffer>) -> Result<(), TransportError> {
        self.submit(Submitted::Message, body.into()).await.map(drop)
    }

    /// Sends a message if the other end has a free slot for it now, and `None` otherwise. The
    /// future waits like that of [`message`](Endpoint::message).
    pub fn try_message(
        &self,
        body: LocalBuffer,
    ) -> Option<impl Future<Output = Result<(), TransportError>> + use<>> {
        let ticket = match self.0.connection() {
            Err(error) => Err(error),
            Ok(connection) if body.len() > connection.peer().message as usize => {
                Err(TransportError::TooLong)
            }
            Ok(connection) => Ok(connection.try_slot(Submitted::Message)?),
        };
        if let Ok(ticket) = &ticket {
            ticket.send(body);
        }
        Some(async move { answered(ticket?).await.map(drop) })
    }

    /// Sends the parameters of a transaction, and waits for its status.
    pub async fn transaction(
        &self,
        parameters: impl Into<LocalBuffer>,
    ) -> Result<Response, TransportError> {
        self.submit(Submitted::Request, parameters.into()).await
    }

    async fn submit(&self, kind: Submitted, body: LocalBuffer) -> Result<Response, TransportError> {
        let connection = self.0.connection()?;
        let limit = match kind {
            Submitted::Message => connection.peer().message,
            Submitted::Request => connection.peer().parameters,
        };
        if body.len() > limit as usize {
            return Err(TransportError::TooLong);
        }
        let ticket = connection.slot(kind).await.ok_or(TransportError::Disconnected)?;
        ticket.send(body);
        answered(ticket).await
    }

    /// What the other end is ready to receive, while there is a connection.
    pub fn peer_quota(&self) -> Option<Quota> {
        self.0.connection().ok().map(|connection| *connection.peer())
    }

    /// Where the other end of the latest connection is. `None` if there has been none.
    pub fn peer_place(&self) -> Option<Place> {
        self.0.place.get()
    }

    /// Leaves the connection, if there is one, and ends the endpoint for good.
    pub fn destroy(&self) {
        self.0.destroy();
    }
}

/// Waits for the answer to a submission.
async fn answered(ticket: Ticket) -> Result<Response, TransportError> {
    let answer = poll_fn(|cx| ticket.poll(cx)).await.ok_or(TransportError::Disconnected)?;
    Ok(Response { answer, _ticket: ticket })
}

impl Events {
    /// Waits for the next event. `None` after the endpoint has ended.
    pub async fn next(&mut self) -> Option<Event> {
        let core = &self.0;
        let event = core
            .client
            .until(|| match core.events.borrow_mut().pop_front() {
                Some(event) => Some(Some(event)),
                None => core.closed.get().then_some(None),
            })
            .await;
        core.taken.wake_all();
        event
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.0.closed.set(true);
        // What the queue has is finished unread.
        drop(self.0.events.take());
        self.0.taken.wake_all();
        self.0.destroy();
    }
}

impl Core {
    fn connection(&self) -> Result<Rc<Connection>, TransportError> {
        self.connection.borrow().clone().ok_or(TransportError::Disconnected)
    }

    fn destroy(&self) {
        self.destroyed.raise();
    }

    fn push(&self, event: Event) {
        if self.closed.get() {
            return;
        }
        self.events.borrow_mut().push_back(event);
        self.client.wake_one();
    }

    /// Adds an event when there is room for it. There always is, unless an other end that comes and
    /// goes is faster than the client.
    async fn push_later(&self, event: Event) {
        let is_full = || self.events.borrow().len() == self.events.borrow().capacity();
        self.taken.until(|| (!is_full() || self.destroyed.is_raised()).then_some(())).await;
        self.push(event);
    }
}

impl Client for Core {
    fn quota(&self) -> Quota {
        self.quota
    }

    fn quiet(&self) -> &Quiet {
        &self.quiet
    }

    fn is_destroyed(&self) -> bool {
        self.destroyed.is_raised()
    }

    async fn destroyed(&self) {
        self.destroyed.raised().await;
    }

    async fn appear(&self, _place: Place) {
        self.push_later(Event::Appear).await;
    }

    fn connect(&self, other: &Publication, place: Place, _instance: u32) {
        self.place.set(Some(place));
        let connection = Connection::new(&self.quota, self.memory.take(), other);
        *self.connection.borrow_mut() = Some(Rc::new(connection));
        self.push(Event::Connect);
    }

    async fn carry<L: Link>(&self, link: &mut L) -> Errno {
        let connection = self.connection.borrow().clone();
        let connection = connection.expect("`connect` has made it");
        connection.carry(link, |event| self.push(event)).await
    }

    async fn disconnect(&self) {
        let connection = self.connection.borrow_mut().take();
        let connection = connection.expect("`connect` has made it");
        connection.end();
        let returned = Rc::new(Flag::default());
        self.push(Event::Disconnect(Disconnect(returned.clone())));
        returned.raised().await;
        *self.memory.borrow_mut() = connection.all_finished().await;
    }

    async fn disappear(&self) {
        self.push_later(Event::Disappear).await;
    }
}

/// The end of a connection. Dropping it says that the client is through with that: then, and when
/// everything that was received is finished, the next event can come.
pub struct Disconnect(Rc<Flag>);

impl fmt::Debug for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disconnect")
    }
}

impl Drop for Disconnect {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// A received message. Dropping it finishes it: the sender is told, and may send another one.
pub struct Received {
    connection: Rc<Connection>,
    slot: u16,
    body: LocalBuffer,
}

impl Received {
    pub(crate) fn new(connection: Rc<Connection>, slot: u16, body: LocalBuffer) -> Self {
        Received { connection, slot, body }
    }

    /// The message.
    pub fn body(&self) -> &LocalBuffer {
        &self.body
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.connection.finish(Submitted::Message, self.slot, 0, None);
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Received({} bytes)", self.body.len())
    }
}

/// A received transaction. Dropping it abandons it: the initiator gets [`ABANDONED`].
pub struct Incoming {
    connection: Rc<Connection>,
    slot: u16,
    parameters: LocalBuffer,
    /// The error and status of [`complete`](Incoming::complete).
    answer: (u32, Option<LocalBuffer>),
}

impl Incoming {
    pub(crate) fn new(connection: Rc<Connection>, slot: u16, parameters: LocalBuffer) -> Self {
        Incoming { connection, slot, parameters, answer: (ABANDONED, None) }
    }

    /// The transaction's parameters.
    pub fn parameters(&self) -> &LocalBuffer {
        &self.parameters
    }

    /// The most bytes of a status that the initiator is ready to receive.
    pub fn status_limit(&self) -> usize {
        self.connection.peer().status as usize
    }

    /// Completes the transaction. The meaning of `error` is the application's; 0 is success.
    ///
    /// If the status is longer than the initiator is ready to receive, the transaction is abandoned
    /// and the error is [`TransportError::TooLong`].
    pub fn complete(
        mut self,
        error: u32,
        status: impl Into<LocalBuffer>,
    ) -> Result<(), TransportError> {
        let status = status.into();
        if status.len() > self.status_limit() {
            return Err(TransportError::TooLong);
        }
        self.answer = (error, Some(status));
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let (error, status) = core::mem::take(&mut self.answer);
        self.connection.finish(Submitted::Request, self.slot, error, status);
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incoming({} bytes)", self.parameters.len())
    }
}

/// The answer to a transaction. Its slot is free for another transaction when it is dropped.
pub struct Response {
    answer: Answer,
    _ticket: Ticket,
}

impl Response {
    /// The application's error code: 0 is success, [`ABANDONED`] means that the other end has not
    /// completed the transaction.
    pub fn error(&self) -> u32 {
        self.answer.code
    }

    /// The status.
    pub fn status(&self) -> LocalBuffer {
        self.answer.status.clone().unwrap_or_else(|| LocalBuffer::new(0))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({}, {} bytes)", self.error(), self.status().len())
    }
}
