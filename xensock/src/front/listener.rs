//! A listening socket.
//!
//! It outlives the backend: whenever the link comes up again the driver makes it listen again, and who
//! waits in `accept` meanwhile goes on waiting. ACCEPTs belong to the listener, not to the calls that
//! started them: whoever calls `accept` next gets the connection.

use super::calls::Answer;
use super::device::{Attachment, Device};
use super::socket::{Names, Socket, make, preparations};
use super::stream::{Connection, Stream};
use crate::wire::{Call, Extensions, Family, Options, SocketOption};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::net::SocketAddr;
use core::pin::pin;
use embassy_time::{Duration, Timer};
use futures_util::future::{Either, select};
use xen::Errno;
use xen::Machine;
use xen::WaitList;

/// How long the answer to an ACCEPT may take after its listener was released. Some backends never
/// send it.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// The most ACCEPTs of a listener at a time, each of which has a ring.
const ACCEPTS: usize = 4;

/// How often listening again is tried, and the pauses between: about half a minute in all. The address
/// may still be another's, or in use by connections that are being closed.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_AT_MOST: Duration = Duration::from_secs(5);

/// A socket that takes connections. Dropping it closes it.
pub struct Listener<M: Machine + 'static>(Rc<Passive<M>>);

pub(super) struct Passive<M: Machine + 'static> {
    device: Rc<Device<M>>,
    /// The address that was asked for; once it is known, the one that was given.
    addr: Cell<SocketAddr>,
    options: RefCell<Options>,
    place: Cell<Place>,
    /// Connections, or errors, that nobody has fetched yet.
    accepted: RefCell<VecDeque<Result<Stream<M>, Errno>>>,
    /// Told when there is one, and when the place changes.
    waiters: WaitList,
    /// How many calls of `accept` wait.
    calls: Cell<usize>,
    /// How many ACCEPTs are under way, and how many may be.
    accepting: Cell<usize>,
    accepts: Cell<usize>,
    /// Whether a POLL is under way, and what one has said.
    polling: Cell<bool>,
    polled: Cell<Option<Result<(), Errno>>>,
    /// Whether a job makes it listen again.
    returning: Cell<bool>,
    /// Whether the listener was dropped.
    closed: Cell<bool>,
    /// Whether the backend has answered the listener's RELEASE.
    released: Cell<bool>,
    /// Told then.
    given_up: WaitList,
}

/// Where a listener is.
#[derive(Clone, Copy)]
enum Place {
    /// It listens, under this name.
    Listening(Attachment, u64),
    /// It could not be made to listen again, which nobody was told yet.
    Failed(Errno),
    /// It does not listen.
    Nowhere,
}

/// Counts a call of `accept` while it waits.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn new(calls: &'a Cell<usize>) -> Self {
        calls.set(calls.get() + 1);
        Counted(calls)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<M: Machine> Listener<M> {
    /// Waits for a connection. Calls may wait side by side; a call that is dropped loses nothing.
    ///
    /// When the backend goes away the call goes on waiting: the listener is made to listen again when the
    /// backend is back. If that fails in spite of some tries, one call gets the error, and the next one
    /// has it tried again. [`Errno::ENODEV`]: the device was shut down.
    pub async fn accept(&self) -> Result<Stream<M>, Errno> {
        let passive = &self.0;
        let _waits = Counted::new(&passive.calls);
        let next = || {
            if let Some(result) = passive.accepted.borrow_mut().pop_front() {
                return Some(result);
            }
            if let Err(error) = passive.here()? {
                return Some(Err(error));
            }
            while passive.accepting.get() < passive.calls.get().min(passive.accepts.get()) {
                passive.accepting.set(passive.accepting.get() + 1);
                passive.device.spawn(accept_all(passive.clone()));
            }
            None
        };
        passive.waiters.until(next).await
    }

    /// Waits until a connection is there to be accepted, without a ring for it. Errors are as for
    /// [`accept`](Listener::accept).
    pub async fn readable(&self) -> Result<(), Errno> {
        let passive = &self.0;
        let next = || {
            if !passive.accepted.borrow().is_empty() {
                return Some(Ok(()));
            }
            if let Some(result) = passive.polled.take() {
                return Some(result);
            }
            if let Err(error) = passive.here()? {
                return Some(Err(error));
            }
            // An ACCEPT under way will take the connection.
            if passive.accepting.get() == 0 && !passive.polling.replace(true) {
                passive.device.spawn(poll(passive.clone()));
            }
            None
        };
        passive.waiters.until(next).await
    }

    /// The address that it is bound to: where the backend does not tell names, the one that was asked
    /// for.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.addr.get()
    }

    /// Changes an option, which connections that are accepted from then on have, too.
    pub async fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        let passive = self.0.clone();
        let set = async move {
            if !option.is_ring_size() {
                passive.call(Call::SetOption { option, value }, Extensions::OPTIONS).await?;
            }
            passive.options.borrow_mut().set(option, value);
            Ok(())
        };
        self.0.device.run(set).await
    }

    /// An option's value. [`Errno::ENOTCONN`] for a buffer's size that was never set.
    pub async fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        let passive = self.0.clone();
        let get = async move {
            if option.is_ring_size() {
                return passive.options.borrow().get(option).ok_or(Errno::ENOTCONN);
            }
            Ok(passive.call(Call::GetOption { option }, Extensions::OPTIONS).await?.value)
        };
        self.0.device.run(get).await
    }
}

impl<M: Machine> Drop for Listener<M> {
    fn drop(&mut self) {
        let passive = self.0.clone();
        passive.closed.set(true);
        passive.device.counters.listeners_open.sub(1);
        // Streams that nobody fetched are closed by being dropped.
        drop(passive.accepted.take());
        let Place::Listening(at, name) = passive.place.replace(Place::Nowhere) else { return };
        let unbinding = &self.0.device.unbinding;
        unbinding.set(unbinding.get() + 1);
        self.0.device.spawn(async move {
            let device = &passive.device;
            let released = release(device, &at, name).await;
            device.unbinding.set(device.unbinding.get() - 1);
            device.unbound.wake_all();
            // Before it has answered, the backend may still come to map the ring of an ACCEPT.
            if !matches!(released, Err(Errno::ETIMEDOUT)) {
                passive.released.set(true);
                passive.given_up.wake_all();
            }
        });
    }
}

impl<M: Machine> Passive<M> {
    /// `Some` when the listener listens; an error when it never will, or did not succeed to. Sees to it
    /// that it is made to listen again, if need be.
    fn here(self: &Rc<Self>) -> Option<Result<(), Errno>> {
        if let Some(error) = self.device.down() {
            return Some(Err(error));
        }
        match self.place.get() {
            Place::Listening(at, _) if self.device.is_in_session(at.session) => Some(Ok(())),
            Place::Failed(error) => {
                self.place.set(Place::Nowhere);
                Some(Err(error))
            }
            _ => {
                self.return_to_link();
                None
            }
        }
    }

    /// Has the listener listen again, where the link is up and it does not.
    pub(super) fn return_to_link(self: &Rc<Self>) {
        let listens = match self.place.get() {
            Place::Listening(at, _) => self.device.is_in_session(at.session),
            _ => false,
        };
        if !listens && self.device.is_up() && !self.returning.replace(true) {
            self.device.spawn(listen_again(self.clone()));
        }
    }

    /// Has those who wait look again.
    pub(super) fn wake(&self) {
        self.waiters.wake_all();
    }

    async fn call(&self, call: Call, extension: Extensions) -> Answer {
        let Place::Listening(at, name) = self.place.get() else { return Err(Errno::ENETDOWN) };
        if !at.protocol.has(extension) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.device.call(at.session, name, call).await
    }

    /// Opens a socket, binds it and listens.
    async fn listen(&self, at: &Attachment) -> Result<(), Errno> {
        let device = &self.device;
        let name = device.name_socket();
        let addr = self.addr.get();
        // All requests go out at once: if one fails, so do those after it.
        let mut calls = preparations(at, Family::of(addr), &self.options.borrow());
        calls.extend([Call::Bind { addr }, Call::Listen { backlog: device.config.backlog }]);
        match make(device, at, name, calls).await {
            Ok(reply) => {
                if let Some(name) = reply.name {
                    self.addr.set(name);
                }
                self.place.set(Place::Listening(*at, name));
                Ok(())
            }
            Err(error) => {
                let _ = release(device, at, name).await;
                Err(error)
            }
        }
    }
}

/// Makes a listener listen again in the present session: a job.
async fn listen_again<M: Machine>(passive: Rc<Passive<M>>) {
    let mut pause = PAUSE;
    let mut failure = None;
    for _ in 0..TRIES {
        let Some(at) = passive.device.attachment() else { break };
        if passive.closed.get() {
            break;
        }
        failure = passive.listen(&at).await.err();
        match failure {
            None => {
                log::info!("listening on {} again", passive.addr.get());
                break;
            }
            // The session is over; the next one tries again.
            Some(Errno::ENETDOWN) => break,
            Some(error) => {
                log::warn!("listening on {} again failed: {error}", passive.addr.get());
                Timer::after(pause).await;
                pause = (pause * 2).min(PAUSE_AT_MOST);
            }
        }
    }
    passive.returning.set(false);
    if passive.closed.get() {
        // It was dropped meanwhile, and nobody else knows of this socket.
        if let Place::Listening(at, name) = passive.place.replace(Place::Nowhere) {
            let _ = release(&passive.device, &at, name).await;
        }
        return;
    }
    match failure {
        None => {}
        // Where another session has come up meanwhile, it is looked after now.
        Some(Errno::ENETDOWN) => passive.return_to_link(),
        Some(error) => passive.place.set(Place::Failed(error)),
    }
    passive.wake();
}

/// Accepts as long as somebody waits for a connection: a job.
async fn accept_all<M: Machine>(passive: Rc<Passive<M>>) {
    let leave = || passive.accepting.set(passive.accepting.get() - 1);
    while let Place::Listening(at, name) = passive.place.get() {
        let result = accept(&passive, &at, name).await;
        if passive.closed.get() {
            // A stream is closed by being dropped.
            return leave();
        }
        match result {
            // The session is over, and the calls wait for the next one.
            Err(Errno::ENETDOWN) => break,
            // A backend that takes no second ACCEPT for the same socket.
            Err(Errno::EINTR) if passive.accepting.get() > 1 => {
                passive.accepts.set(1);
                break;
            }
            result => passive.accepted.borrow_mut().push_back(result),
        }
        passive.waiters.wake_one();
        let unserved = passive.calls.get().saturating_sub(passive.accepted.borrow().len());
        if unserved < passive.accepting.get() {
            break;
        }
    }
    leave();
    // A POLL may have waited for this.
    passive.wake();
}

async fn accept<M: Machine>(
    passive: &Passive<M>,
    at: &Attachment,
    name: u64,
) -> Result<Stream<M>, Errno> {
    let device = &passive.device;
    let options = *passive.options.borrow();
    let sizes = [SocketOption::ReceiveBuffer, SocketOption::SendBuffer].map(|of| options.get(of));
    let (ring, offer) = device.memory.open_ring(at, at.order_for(sizes[0], sizes[1]))?;
    let new = device.name_socket();
    let answer = pin!(device.call(at.session, name, Call::Accept { new, ring: offer }));
    let given_up = pin!(async {
        passive.given_up.until(|| passive.released.get().then_some(())).await;
        Timer::after(LAST_ANSWER).await;
    });
    let result = match select(answer, given_up).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err(Errno::ECONNABORTED),
    };
    match result {
        Ok(reply) => {
            let names = Names { local: None, peer: reply.name };
            let socket = Socket::new(device, new, *at, ring, names);
            socket.sizes.set(sizes);
            Ok(Stream::new(Connection::new(socket)))
        }
        Err(error) => {
            device.memory.close_ring(ring);
            Err(error)
        }
    }
}

/// Waits for a connection and leaves it there: a job.
async fn poll<M: Machine>(passive: Rc<Passive<M>>) {
    if let Place::Listening(at, name) = passive.place.get() {
        match passive.device.call(at.session, name, Call::Poll).await {
            Err(Errno::ENETDOWN) => {}
            result => passive.polled.set(Some(result.map(drop))),
        }
    }
    passive.polling.set(false);
    passive.wake();
}

/// Opens a socket, binds it and listens: a job.
pub(super) async fn bind<M: Machine>(
    device: &Rc<Device<M>>,
    addr: SocketAddr,
    options: Options,
) -> Result<Listener<M>, Errno> {
    let at = device.attached().await?;
    // Whoever has just dropped a listener may want its address again.
    device.unbound.until(|| (device.unbinding.get() == 0).then_some(())).await;
    let passive = Rc::new(Passive {
        device: device.clone(),
        addr: Cell::new(addr),
        options: RefCell::new(options),
        place: Cell::new(Place::Nowhere),
        accepted: RefCell::default(),
        waiters: WaitList::default(),
        calls: Cell::new(0),
        accepting: Cell::new(0),
        accepts: Cell::new(ACCEPTS),
        polling: Cell::new(false),
        polled: Cell::new(None),
        returning: Cell::new(false),
        closed: Cell::new(false),
        released: Cell::new(false),
        given_up: WaitList::default(),
    });
    passive.listen(&at).await?;
    device.counters.listeners_open.add(1);
    device.enrol_listener(&passive);
    Ok(Listener(passive))
}

async fn release<M: Machine>(device: &Device<M>, at: &Attachment, name: u64) -> Answer {
    let answer = device.call(at.session, name, Call::Release { reuse: false }).await;
    match answer {
        // A backend that is gone has closed the socket, too.
        Ok(_) | Err(Errno::ENETDOWN) => {}
        Err(error) => log::warn!("releasing listener {name} failed: {error}"),
    }
    answer
}
