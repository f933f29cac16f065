//! One device of one guest: follows its nodes in xenstore, and serves it while it is connected.
//!
//! After every change, the task reads the states of both ends and takes one step (see `states`), so
//! it may miss changes. If a guest breaks the protocol, its device closes and the log has a
//! warning. The guest may connect again after a while.

use crate::guests::{Guest, Guests};
use crate::logging::about;
use crate::states::{Step, View, next_step};
use crate::threads::Seat;
use std::fmt::Display;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use xen::xenbus::{OtherEnd, State, read_number, read_state, switch_state};
use xen::xenstore::{Store, Watch};
use xen::{DomId, Errno, Flag, GrantRef, Port, Signal};
use xen_linux::{Count, Ticket};
use xensock::back::{CommandLink, Host, Violation, serve};
use xensock::wire::{Dialect, Extensions, Protocol};

/// How long a guest that broke the protocol must wait before it can connect again.
const PROTOCOL_ERROR_BACKOFF: Duration = Duration::from_secs(1);

/// The shortest time between two connections of a device, each of which is a line in the log, and
/// between two offers, each of which is many requests to xenstored.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a guest that connects waits until the toolstack has made its name readable.
const NAME_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a frontend may take to close when the toolstack, which waits longer, removes the
/// device.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the nodes of a closed device stay in a driver domain, so that the toolstack sees them.
const REMOVAL_DELAY: Duration = Duration::from_secs(1);

/// How long a frontend may take to close when the daemon stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The toolstack's domain. Backends in other domains remove the nodes of devices that it ends.
const TOOLSTACK: DomId = DomId(0);

/// What all devices have in common.
pub struct Backend<H> {
    /// The connection to xenstored.
    pub store: Store,
    /// The domain of the sockets.
    pub host: H,
    /// Its number.
    pub own: DomId,
    /// The guests, with their rules.
    pub guests: Guests,
    /// The extensions to offer.
    pub extensions: Extensions,
    /// Counts the connected devices.
    pub connected: Arc<Count>,
    /// Raised when the daemon is to stop.
    pub stop: Rc<Flag>,
    /// This thread's place among the daemon's threads.
    pub seat: Seat,
}

/// A guest's device.
pub struct Device<H> {
    /// What all devices have in common.
    pub backend: Rc<Backend<H>>,
    /// The dialect of its type.
    pub dialect: Dialect,
    /// The guest's domain, from the path of the backend's folder.
    pub guest: DomId,
    /// The backend's folder in xenstore.
    pub path: String,
}

/// Serves a connected device while it is polled.
struct Service<'d> {
    engine: Pin<Box<dyn Future<Output = Violation> + 'd>>,
    _ticket: Ticket,
}

impl<H: Host> Device<H> {
    /// Serves the device until its nodes are removed, or the daemon stops.
    pub async fn run(&self) {
        match self.follow().await {
            Ok(()) => {}
            Err(Errno::ENOENT) => log::info!("{}: the device was removed", self.path),
            Err(error) => log::error!("{}: xenstore: {error}", self.path),
        }
    }

    async fn follow(&self) -> Result<(), Errno> {
        let Backend { store, host, stop, .. } = &*self.backend;
        let other = OtherEnd::frontend_of(store, &self.path).await?;
        let home = format!("/local/domain/{}/", self.guest);
        if other.domain != self.guest || !other.path.starts_with(&home) {
            log::error!(
                "{}: its frontend is {} of domain {}, which is not below {home}; the device is not \
                 served: check how its nodes were made",
                self.path,
                other.path,
                other.domain
            );
            return Ok(());
        }
        let mut changes =
            [store.watch(&self.path).await?, store.watch(&format!("{}/state", other.path)).await?];
        // The state is an earlier backend's, unless it is a request of the toolstack.
        let mut mine = match read_state(store, &self.path).await? {
            request @ (State::Closing | State::Closed) => request,
            _ => State::Unknown,
        };
        let mut guest = self.backend.guests.meet(store, self.guest).await;
        let mut service: Option<Service<'_>> = None;
        let (mut last_offered, mut last_connected) = (None::<Instant>, None::<Instant>);
        let mut closing_since: Option<Instant> = None;
        let mut closed_since: Option<Instant> = None;
        let mut hidden_since: Option<Instant> = None;
        loop {
            if stop.is_raised() {
                drop(service.take());
                return self.close(&other, &mut changes).await;
            }
            let view = self.view(&other).await?;
            let step = next_step(mine, view);
            log::trace!("{}: {mine:?}, {view:?}: {step:?}", self.path);
            let last = match step {
                Step::Offer => last_offered,
                Step::Connect => last_connected,
                _ => None,
            };
            if last.is_some_and(|last| last.elapsed() < INTERVAL) {
                host.sleep(INTERVAL / 4).await;
                continue;
            }
            match step {
                Step::Wait => {
                    let violation = async {
                        match &mut service {
                            Some(service) => service.engine.as_mut().await,
                            None => pending().await,
                        }
                    };
                    let timeout = async {
                        let (time, since) = match (view.online, mine) {
                            (false, State::Closing) => (CLOSE_TIMEOUT, &mut closing_since),
                            // The toolstack waits for both, the state and then the removal.
                            (false, State::Closed) if self.backend.own != TOOLSTACK => {
                                (REMOVAL_DELAY, &mut closed_since)
                            }
                            _ => pending().await,
                        };
                        // Writing its state again does not give the guest more time.
                        let since = *since.get_or_insert_with(Instant::now);
                        host.sleep(time.saturating_sub(since.elapsed())).await;
                    };
                    match first(changed(&mut changes), stop.raised(), violation, timeout).await {
                        Event::Change => {}
                        Event::Violation(violation) => {
                            service = None;
                            mine = self.close_after(&guest, violation).await?;
                        }
                        Event::Timeout if mine == State::Closed => {
                            return store.rm(&self.path).await;
                        }
                        Event::Timeout => mine = self.switch(State::Closed).await?,
                    }
                }
                Step::Offer => {
                    last_offered = Some(Instant::now());
                    service = None;
                    guest = self.backend.guests.meet(store, self.guest).await;
                    let limits = guest.account().limits();
                    let nodes = self.protocol().backend_nodes(limits.max_ring_order);
                    for (name, value) in nodes {
                        store.write(&format!("{}/{name}", self.path), value).await?;
                    }
                    mine = self.switch(State::InitWait).await?;
                }
                Step::Connect => {
                    // The domain may be another one than at the offer, or have another name.
                    guest = self.backend.guests.meet(store, self.guest).await;
                    if guest.is_hidden()
                        && hidden_since.get_or_insert_with(Instant::now).elapsed() < NAME_TIMEOUT
                    {
                        host.sleep(INTERVAL / 4).await;
                        continue;
                    }
                    match self.connect(&other, &guest).await {
                        Ok(connected) => {
                            last_connected = Some(Instant::now());
                            service = Some(connected);
                            mine = self.switch(State::Connected).await?;
                            about!(info, &guest, "connected ({})", self.dialect.device());
                            self.report_hidden(&guest);
                        }
                        Err(reason) => mine = self.close_after(&guest, reason).await?,
                    }
                }
                Step::Close => {
                    if service.take().is_some() {
                        about!(info, &guest, "disconnected");
                    }
                    mine = self.switch(State::Closing).await?;
                }
                Step::Closed => {
                    service = None;
                    mine = self.switch(State::Closed).await?;
                }
            }
        }
    }

    /// Reads the states of both ends. [`Errno::ENOENT`] if this end's nodes were removed.
    async fn view(&self, other: &OtherEnd) -> Result<View, Errno> {
        let store = &self.backend.store;
        let back = State::decode(&store.read(&format!("{}/state", self.path)).await?);
        let online = match store.read(&format!("{}/online", self.path)).await {
            Ok(value) => value != b"0",
            Err(Errno::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let front = match read_state(store, &other.path).await {
            // A guest can revoke the right to read its nodes.
            Err(Errno::EACCES) => State::Unknown,
            result => result?,
        };
        Ok(View { front, back, online })
    }

    /// The dialect with the extensions that this end offers.
    fn protocol(&self) -> Protocol {
        Protocol { dialect: self.dialect, extensions: self.backend.extensions }
    }

    async fn switch(&self, state: State) -> Result<State, Errno> {
        switch_state(&self.backend.store, &self.path, state).await?;
        Ok(state)
    }

    /// Logs that the guest's rules are not known, if so.
    fn report_hidden(&self, guest: &Guest) {
        if guest.is_hidden() {
            let (id, own) = (self.guest, self.backend.own);
            about!(
                warn,
                guest,
                "it may neither listen nor connect: this domain, {own}, cannot read its name, so \
                 which entry of the rules is for it is not known; run in domain 0: \
                 for node in name vm; do xenstore-chmod /local/domain/{id}/$node n0 r{id} r{own}; \
                 done; and then here: xensockctl reload"
            );
        }
    }

    /// Closes the device of a guest that broke the protocol.
    async fn close_after(&self, guest: &Guest, reason: impl Display) -> Result<State, Errno> {
        about!(warn, guest, "{reason}; closing its device");
        let state = self.switch(State::Closing).await?;
        self.backend.host.sleep(PROTOCOL_ERROR_BACKOFF).await;
        Ok(state)
    }

    /// Maps the command ring and binds the event channel that the frontend's nodes name. An error
    /// describes the guest's mistake.
    async fn connect(&self, other: &OtherEnd, guest: &Guest) -> Result<Service<'_>, String> {
        let Backend { store, host, connected, .. } = &*self.backend;
        let node =
            async |name: &str| store.read_string(&format!("{}/{name}", other.path)).await.ok();
        let protocol = self.protocol().with_frontend(node).await?;
        let number = async |name| {
            read_number::<u32>(store, &format!("{}/{name}", other.path))
                .await
                .map_err(|error| format!("its node `{name}` is not a number: {error}"))
        };
        let (grant, port) = (GrantRef(number("ring-ref").await?), Port(number("port").await?));
        let ring = host
            .map(self.guest, &[grant])
            .map_err(|error| format!("its grant {} cannot be mapped: {error}", grant.0))?;
        let signal = Arc::new(Signal::new());
        let channel = host
            .bind_port(self.guest, port, signal.clone())
            .map_err(|error| format!("its port {} cannot be bound: {error}", port.0))?;
        let link = CommandLink { ring, channel, signal };
        let engine = Box::pin(serve(host, self.guest, link, protocol, guest.account().clone()));
        let extensions = protocol.extensions.names().join(", ");
        log::debug!("domain {}: extensions: {extensions}", self.guest);
        Ok(Service { engine, _ticket: Ticket::new(connected.clone()) })
    }

    /// Closes the device when the daemon stops, and waits for a short time for the frontend to
    /// close.
    async fn close(&self, other: &OtherEnd, changes: &mut [Watch; 2]) -> Result<(), Errno> {
        self.switch(State::Closing).await?;
        let timeout = pin!(self.backend.host.sleep(STOP_TIMEOUT));
        let closed = pin!(async {
            while !self.view(other).await?.is_front_closed() {
                changed(changes).await;
            }
            Ok::<_, Errno>(())
        });
        futures_util::future::select(timeout, closed).await;
        self.switch(State::Closed).await.map(drop)
    }
}

/// Waits until one of the watches fires.
async fn changed([one, other]: &mut [Watch; 2]) {
    futures_util::future::select(pin!(one.next()), pin!(other.next())).await;
}

/// What ended the wait of a device.
enum Event {
    /// A node changed, or the daemon is to stop.
    Change,
    /// The guest broke the protocol.
    Violation(Violation),
    /// The frontend did not close in time.
    Timeout,
}

/// Waits for the first of several events.
async fn first(
    change: impl Future<Output = ()>,
    stop: impl Future<Output = ()>,
    violation: impl Future<Output = Violation>,
    timeout: impl Future<Output = ()>,
) -> Event {
    let (mut change, mut stop) = (pin!(change), pin!(stop));
    let (mut violation, mut timeout) = (pin!(violation), pin!(timeout));
    poll_fn(|cx| {
        if change.as_mut().poll(cx).is_ready() || stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Event::Change);
        }
        if let Poll::Ready(violation) = violation.as_mut().poll(cx) {
            return Poll::Ready(Event::Violation(violation));
        }
        timeout.as_mut().poll(cx).map(|()| Event::Timeout)
    })
    .await
}
