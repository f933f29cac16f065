//! A listening socket.
//!
//! A listener outlives the backend: it is bound again when the link comes up again, while callers
//! of `accept` continue to wait. ACCEPTs belong to the listener, not to the calls that started
//! them: the next call of `accept` gets the connection.

use super::again::again;
use super::link::{Answer, Session};
use super::progress::Operations;
use super::socket::{Addrs, Kind, Socket, preparations, requested_sizes};
use super::state::{Core, Member};
use super::stream::{Connection, Stream};
use crate::wire::{Call, Extensions, Family, Options, SocketOption};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::net::SocketAddr;
use core::pin::pin;
use embassy_time::{Duration, Timer};
use futures_util::future::{Either, select};
use xen::{Errno, Machine, WaitList};

/// How long the answer to an ACCEPT may take after its listener was released. Some backends never
/// send it.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The most ACCEPTs of a listener at a time. Each of them has a ring.
const MAX_ACCEPTS: usize = 4;

/// A socket that accepts connections. Dropping it closes it.
///
/// # Example
/// ```
/// use embedded_io_async::Write;
/// use xen::{Errno, Machine};
/// use xensock::front::Frontend;
///
/// async fn greet<M: Machine>(frontend: &Frontend<M>) -> Result<(), Errno> {
///     let listener = frontend.bind(([0, 0, 0, 0], 7777).into()).await?;
///     loop {
///         let mut stream = listener.accept().await?;
///         stream.write_all(b"hello\n").await?;
///     }
/// }
/// ```
pub struct Listener<M: Machine + 'static>(Rc<Inner<M>>);

/// What a listener shares with the driver's jobs.
struct Inner<M: Machine + 'static> {
    core: Rc<Core<M>>,
    /// Identifies the listener among the members of the core. Its socket has another number in each
    /// session.
    member: u64,
    /// The requested address, and the bound address once it is known.
    addr: Cell<SocketAddr>,
    options: RefCell<Options>,
    state: Cell<State>,
    /// Connections and errors for the next callers of `accept`.
    accepted: RefCell<VecDeque<Result<Stream<M>, Errno>>>,
    /// Woken when `accepted`, `state` or `poll` changes.
    changed: WaitList,
    /// Woken when `state` becomes `Closed { released: true }`. A list of its own: an ACCEPT in
    /// progress must not take a wake from a caller of `accept`.
    released: WaitList,
    /// Calls of `accept` that wait.
    waiting: Operations,
    /// ACCEPTs in progress.
    accepting: Operations,
    /// The most ACCEPTs that the backend takes at a time.
    max_accepts: Cell<usize>,
    poll: Cell<Poll>,
}

/// The state of a listener.
#[derive(Clone, Copy)]
enum State {
    /// Not bound.
    Unbound,
    /// A job is binding the listener again.
    Binding,
    /// Bound in a session, which may be over, as the socket with this number.
    Listening(Session, u64),
    /// Binding again failed. The next caller gets the error.
    Failed(Errno),
    /// The listener was dropped; whether the backend has answered its RELEASE.
    Closed { released: bool },
}

/// The state of a listener's POLL.
#[derive(Clone, Copy)]
enum Poll {
    Idle,
    Running,
    /// Answered. The next caller of `readable` gets the result.
    Done(Result<(), Errno>),
}

impl<M: Machine> Listener<M> {
    /// Waits for a connection. Any number of calls may wait at a time. Dropping a call loses no
    /// connection.
    ///
    /// If the backend disconnects, the call continues to wait: the listener is bound again when the
    /// backend returns. If that fails repeatedly, one call gets the error, and the next call tries
    /// again. [`Errno::ENODEV`]: the device was shut down.
    pub async fn accept(&self) -> Result<Stream<M>, Errno> {
        let inner = &self.0;
        let _waiting = inner.waiting.begin();
        let next = || {
            if let Some(result) = inner.accepted.borrow_mut().pop_front() {
                return Some(result);
            }
            if let Err(error) = inner.listening()? {
                return Some(Err(error));
            }
            while inner.accepting.count() < inner.waiting.count().min(inner.max_accepts.get()) {
                inner.core.link.spawn(accept_all(inner.clone()));
            }
            None
        };
        inner.changed.until(next).await
    }

    /// Waits until a connection can be accepted, without allocating a ring for it. Errors are as
    /// for [`accept`](Listener::accept).
    pub async fn readable(&self) -> Result<(), Errno> {
        let inner = &self.0;
        let next = || {
            if !inner.accepted.borrow().is_empty() {
                return Some(Ok(()));
            }
            if let Poll::Done(result) = inner.poll.get() {
                inner.poll.set(Poll::Idle);
                return Some(result);
            }
            if let Err(error) = inner.listening()? {
                return Some(Err(error));
            }
            // An ACCEPT in progress would take the connection.
            if inner.accepting.count() == 0 && matches!(inner.poll.get(), Poll::Idle) {
                inner.poll.set(Poll::Running);
                inner.core.link.spawn(poll(inner.clone()));
            }
            None
        };
        inner.changed.until(next).await
    }

    /// The bound address or, if the backend does not report addresses, the requested one.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.addr.get()
    }

    /// Changes an option. Connections that are accepted later have it too.
    pub async fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        let inner = self.0.clone();
        let set = async move {
            if !option.is_ring_size() {
                inner.call(Call::SetOption { option, value }, Extensions::OPTIONS).await?;
            }
            inner.options.borrow_mut().set(option, value);
            Ok(())
        };
        self.0.core.link.run(set).await
    }

    /// An option's value. [`Errno::ENOTCONN`] for the size of a buffer if it was never set.
    pub async fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        if option.is_ring_size() {
            return self.0.options.borrow().get(option).ok_or(Errno::ENOTCONN);
        }
        Ok(self.0.call(Call::GetOption { option }, Extensions::OPTIONS).await?.value)
    }
}

impl<M: Machine> Drop for Listener<M> {
    fn drop(&mut self) {
        let inner = self.0.clone();
        inner.core.unregister(inner.member);
        inner.core.statistics.borrow_mut().listeners_open -= 1;
        // Dropping the streams closes them.
        drop(inner.accepted.take());
        let state = inner.state.replace(State::Closed { released: false });
        let State::Listening(session, id) = state else { return };
        let unbinding = inner.core.unbinding.begin();
        self.0.core.link.spawn(async move {
            let released = release(&inner.core, &session, id).await;
            drop(unbinding);
            // Without an answer, the backend may still map the ring of an ACCEPT.
            if !matches!(released, Err(Errno::ETIMEDOUT)) {
                inner.state.set(State::Closed { released: true });
                inner.released.wake_all();
            }
        });
    }
}

impl<M: Machine> Member for Inner<M> {
    /// Binds the listener again.
    fn link_up(self: Rc<Self>) {
        let is_idle = match self.state.get() {
            State::Listening(session, _) => !self.core.link.is_in(&session),
            State::Unbound | State::Failed(_) => true,
            State::Binding | State::Closed { .. } => false,
        };
        if is_idle && self.core.link.session().is_some() {
            self.state.set(State::Binding);
            self.core.link.spawn(bind_again(self.clone()));
        }
    }

    fn link_lost(&self, _: Errno) {
        self.changed.wake_all();
    }
}

impl<M: Machine> Inner<M> {
    /// Returns `Some(Ok)` if the listener is bound in the present session, an error if binding has
    /// failed or the device has ended. Otherwise starts to bind the listener again if the link is
    /// up.
    fn listening(self: &Rc<Self>) -> Option<Result<(), Errno>> {
        if let Some(error) = self.core.link.lifecycle.ended() {
            return Some(Err(error));
        }
        match self.state.get() {
            State::Listening(session, _) if self.core.link.is_in(&session) => Some(Ok(())),
            State::Failed(error) => {
                self.state.set(State::Unbound);
                Some(Err(error))
            }
            _ => {
                self.clone().link_up();
                None
            }
        }
    }

    fn is_closed(&self) -> bool {
        matches!(self.state.get(), State::Closed { .. })
    }

    async fn call(&self, call: Call, extension: Extensions) -> Answer {
        self.core.link.check()?;
        let State::Listening(session, id) = self.state.get() else { return Err(Errno::ENETDOWN) };
        if !session.protocol.has(extension) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.core.link.call(&session, id, call).await
    }

    /// Opens a socket, binds it and listens. Returns its number.
    async fn listen(&self, session: &Session) -> Result<u64, Errno> {
        let core = &self.core;
        let (id, addr) = (core.new_id(), self.addr.get());
        // All requests are sent at once. If one fails, those after it fail too.
        let mut calls =
            preparations(session, Kind::Stream, Family::of(addr), &self.options.borrow());
        calls.extend([Call::Bind { addr }, Call::Listen { backlog: core.config.backlog }]);
        match core.link.call_all(session, id, calls).await {
            Ok(reply) => {
                self.addr.set(reply.addr.unwrap_or(addr));
                Ok(id)
            }
            Err(error) => {
                let _ = release(core, session, id).await;
                Err(error)
            }
        }
    }
}

/// Binds a listener again in the present session: a job.
async fn bind_again<M: Machine>(inner: Rc<Inner<M>>) {
    let listen = async |session: &Session| Ok((*session, inner.listen(session).await?));
    let is_closed = || inner.is_closed();
    let state = match again(&inner.core.link, "listening on", &inner.addr, is_closed, listen).await
    {
        Some(Ok((session, id))) => State::Listening(session, id),
        Some(Err(error)) => State::Failed(error),
        None => State::Unbound,
    };
    if inner.is_closed() {
        // The listener was dropped while it was bound. Nothing else knows this socket.
        if let State::Listening(session, id) = state {
            let _ = release(&inner.core, &session, id).await;
        }
        return;
    }
    inner.state.set(state);
    if let State::Unbound = state {
        // Another session may have started.
        inner.clone().link_up();
    }
    inner.changed.wake_all();
}

/// Accepts connections while callers wait for them: a job.
fn accept_all<M: Machine>(inner: Rc<Inner<M>>) -> impl Future<Output = ()> {
    let accepting = inner.accepting.begin();
    async move {
        while let State::Listening(session, id) = inner.state.get() {
            let result = accept(&inner, &session, id).await;
            if inner.is_closed() {
                // Dropping a stream closes it.
                return;
            }
            match result {
                // The session is over. The calls wait for the next one.
                Err(Errno::ENETDOWN) => break,
                // The backend takes only one ACCEPT of a socket at a time.
                Err(Errno::EINTR) if inner.accepting.count() > 1 => {
                    inner.max_accepts.set(1);
                    break;
                }
                result => inner.accepted.borrow_mut().push_back(result),
            }
            inner.changed.wake_one();
            let unserved = inner.waiting.count().saturating_sub(inner.accepted.borrow().len());
            if unserved < inner.accepting.count() {
                break;
            }
        }
        drop(accepting);
        // A call of `readable` may have waited for this.
        inner.changed.wake_all();
    }
}

async fn accept<M: Machine>(
    inner: &Inner<M>,
    session: &Session,
    id: u64,
) -> Result<Stream<M>, Errno> {
    let core = &inner.core;
    let sizes = requested_sizes(&inner.options.borrow());
    let (ring, offer) = core.open_ring(session, Kind::Stream, sizes).await?;
    let new = core.new_id();
    let answer = pin!(core.link.call(session, id, Call::Accept { new, ring: offer }));
    let given_up = pin!(async {
        let is_released = || match inner.state.get() {
            State::Closed { released: true } => Some(()),
            _ => None,
        };
        inner.released.until(is_released).await;
        Timer::after(LAST_ANSWER_TIMEOUT).await;
    });
    let result = match select(answer, given_up).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err(Errno::ECONNABORTED),
    };
    match result {
        Ok(reply) => {
            let addrs = Addrs { local: None, peer: reply.addr };
            let socket = Socket::new(core, new, *session, Kind::Stream, ring, addrs, sizes);
            Ok(Stream::new(Connection::new(socket)))
        }
        Err(error) => {
            core.rings.close(ring);
            Err(error)
        }
    }
}

/// Waits for a connection without accepting it: a job.
async fn poll<M: Machine>(inner: Rc<Inner<M>>) {
    let mut poll = Poll::Idle;
    if let State::Listening(session, id) = inner.state.get() {
        match inner.core.link.call(&session, id, Call::Poll).await {
            Err(Errno::ENETDOWN) => {}
            result => poll = Poll::Done(result.map(drop)),
        }
    }
    inner.poll.set(poll);
    inner.changed.wake_all();
}

/// Opens a socket, binds it and listens.
pub(super) async fn bind<M: Machine>(
    core: Rc<Core<M>>,
    addr: SocketAddr,
    options: Options,
) -> Result<Listener<M>, Errno> {
    let session = core.link.up().await?;
    // A listener that was just dropped may have had the same address.
    core.unbinding.finished().await;
    let inner = Rc::new(Inner {
        member: core.new_id(),
        addr: Cell::new(addr),
        options: RefCell::new(options),
        state: Cell::new(State::Unbound),
        accepted: RefCell::default(),
        changed: WaitList::default(),
        released: WaitList::default(),
        waiting: Operations::default(),
        accepting: Operations::default(),
        max_accepts: Cell::new(MAX_ACCEPTS),
        poll: Cell::new(Poll::Idle),
        core,
    });
    let id = inner.listen(&session).await?;
    inner.state.set(State::Listening(session, id));
    inner.core.statistics.borrow_mut().listeners_open += 1;
    inner.core.register(inner.member, &inner);
    Ok(Listener(inner))
}

async fn release<M: Machine>(core: &Core<M>, session: &Session, id: u64) -> Answer {
    let answer = core.link.call(session, id, Call::Release { reuse: false }).await;
    match answer {
        // A backend that has disconnected has closed the socket too.
        Ok(_) | Err(Errno::ENETDOWN) => {}
        Err(error) => log::warn!("releasing listener {id} failed: {error}"),
    }
    answer
}
