//! One device of one guest: what its nodes in xenstore say, and what is done about it.
//!
//! The two ends are looked at as a whole after every change, and one step is taken from there
//! (see `states`), so it does not matter how many changes one look has missed. A guest that writes
//! nonsense closes its own device and is told so in the log; after a while it may try again.

use crate::counts::{Counter, Ticket};
use crate::states::{Step, View, next_step};
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use xen::Signal;
use xen::xenbus::{OtherEnd, State, read_number, read_state, switch_state};
use xen::xenstore::{Store, Watch};
use xen::{DomId, Errno, GrantRef, Port};
use xensock::back::{CommandLink, Host, Limits, Violation, serve};
use xensock::wire::{Dialect, Extensions, Protocol};

/// How long a guest that broke the protocol waits for its next chance.
const PENANCE: Duration = Duration::from_secs(1);

/// How often a guest may connect: each time is a line in the log.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a frontend may take to close when the device is to be removed. The toolstack waits longer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What all devices have in common.
pub struct Backend<H> {
    /// The way to xenstored.
    pub store: Store,
    /// The domain that has the sockets.
    pub host: H,
    /// What each guest may have.
    pub limits: Limits,
    /// What goes beyond the plain protocols, for guests that have it, too.
    pub extensions: Extensions,
    /// Counts the devices that are connected.
    pub guests: Counter,
    /// Becomes true when the daemon is to end.
    pub stop: watch::Receiver<bool>,
}

/// A guest's device.
pub struct Device<H> {
    /// What it has in common with the others.
    pub backend: Rc<Backend<H>>,
    /// The protocol of its type.
    pub dialect: Dialect,
    /// The guest's domain, by the name of the device's folder.
    pub guest: DomId,
    /// The backend's folder in xenstore.
    pub path: String,
}

/// A connected device being served.
struct Service<'d> {
    engine: Pin<Box<dyn Future<Output = Violation> + 'd>>,
    _ticket: Ticket,
}

impl<H: Host> Device<H> {
    /// Looks after the device until its nodes are removed, or the daemon ends.
    pub async fn run(self) {
        match self.look_after().await {
            Ok(()) => {}
            Err(Errno::ENOENT) => log::info!("{}: the device was removed", self.path),
            Err(error) => log::error!("{}: xenstore: {error}", self.path),
        }
    }

    async fn look_after(&self) -> Result<(), Errno> {
        let Backend { store, host, stop, .. } = &*self.backend;
        let other = OtherEnd::frontend_of(store, &self.path).await?;
        let home = format!("/local/domain/{}/", self.guest);
        if other.domain != self.guest || !other.path.starts_with(&home) {
            log::error!(
                "{}: its frontend is {} of domain {}, which is not below {home}; the device is not \
                 served: see how its nodes were made",
                self.path,
                other.path,
                other.domain
            );
            return Ok(());
        }
        let mut changes =
            [store.watch(&self.path).await?, store.watch(&format!("{}/state", other.path)).await?];
        let mut stop = stop.clone();
        // Whoever served the device before is gone: its state means nothing but the toolstack's wish.
        let mut mine = match read_state(store, &self.path).await? {
            wish @ (State::Closing | State::Closed) => wish,
            _ => State::Unknown,
        };
        let mut service: Option<Service<'_>> = None;
        let mut last_connected: Option<Instant> = None;
        let mut closing_since: Option<Instant> = None;
        loop {
            if *stop.borrow() {
                drop(service.take());
                return self.say_goodbye(&other, &mut changes).await;
            }
            let view = self.view(&other).await?;
            let step = next_step(mine, view);
            log::trace!("{}: {mine:?}, {view:?}: {step:?}", self.path);
            match step {
                Step::Wait => {
                    let violation = async {
                        match &mut service {
                            Some(service) => service.engine.as_mut().await,
                            None => pending().await,
                        }
                    };
                    // The toolstack does not wait for ever for a frontend that does not answer.
                    let patience = async {
                        match (view.online, mine) {
                            // However often the guest writes its state anew.
                            (false, State::Closing) => {
                                let since = *closing_since.get_or_insert_with(Instant::now);
                                host.sleep(PATIENCE.saturating_sub(since.elapsed())).await;
                            }
                            _ => pending().await,
                        }
                    };
                    match first(changed(&mut changes), stop.changed(), violation, patience).await {
                        First::Change => {}
                        First::Violation(violation) => {
                            log::warn!("domain {}: {violation}; its device is closed", self.guest);
                            service = None;
                            mine = self.switch(State::Closing).await?;
                            host.sleep(PENANCE).await;
                        }
                        First::Patience => mine = self.switch(State::Closed).await?,
                    }
                }
                Step::Offer => {
                    service = None;
                    let nodes = self.protocol().backend_nodes(self.backend.limits.max_ring_order);
                    for (name, value) in nodes {
                        store.write(&format!("{}/{name}", self.path), value).await?;
                    }
                    mine = self.switch(State::InitWait).await?;
                }
                Step::Connect if last_connected.is_some_and(|last| last.elapsed() < INTERVAL) => {
                    host.sleep(INTERVAL / 4).await;
                }
                Step::Connect => match self.connect(&other).await? {
                    Ok(connected) => {
                        last_connected = Some(Instant::now());
                        service = Some(connected);
                        mine = self.switch(State::Connected).await?;
                        log::info!("domain {}: connected ({})", self.guest, self.dialect.device());
                    }
                    Err(reason) => {
                        log::warn!("domain {}: {reason}; its device is closed", self.guest);
                        mine = self.switch(State::Closing).await?;
                        host.sleep(PENANCE).await;
                    }
                },
                Step::Close => {
                    if service.take().is_some() {
                        log::info!("domain {}: disconnected", self.guest);
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

    /// Reads both ends. [`Errno::ENOENT`] when this one is gone.
    async fn view(&self, other: &OtherEnd) -> Result<View, Errno> {
        let store = &self.backend.store;
        let back = State::decode(&store.read(&format!("{}/state", self.path)).await?);
        let online = match store.read(&format!("{}/online", self.path)).await {
            Ok(value) => value != b"0",
            Err(Errno::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let front = match read_state(store, &other.path).await {
            // A guest may take away even the right to look.
            Err(Errno::EACCES) => State::Unknown,
            result => result?,
        };
        Ok(View { front, back, online })
    }

    /// What this end offers.
    fn protocol(&self) -> Protocol {
        Protocol { dialect: self.dialect, extensions: self.backend.extensions }
    }

    async fn switch(&self, state: State) -> Result<State, Errno> {
        switch_state(&self.backend.store, &self.path, state).await?;
        Ok(state)
    }

    /// Maps and binds what the frontend's nodes name. The inner error is the guest's fault.
    async fn connect(&self, other: &OtherEnd) -> Result<Result<Service<'_>, String>, Errno> {
        let Backend { store, host, limits, guests, .. } = &*self.backend;
        let node =
            async |name: &str| store.read_string(&format!("{}/{name}", other.path)).await.ok();
        let protocol = match self.protocol().with_frontend(node).await {
            Ok(protocol) => protocol,
            Err(reason) => return Ok(Err(reason)),
        };
        let number = async |name| {
            let node = format!("{}/{name}", other.path);
            read_number::<u32>(store, &node)
                .await
                .map_err(|error| format!("its node `{name}` is no number: {error}"))
        };
        let (grant, port) = match (number("ring-ref").await, number("port").await) {
            (Ok(grant), Ok(port)) => (GrantRef(grant), Port(port)),
            (Err(reason), _) | (_, Err(reason)) => return Ok(Err(reason)),
        };
        let ring = match host.map(self.guest, &[grant]) {
            Ok(ring) => ring,
            Err(error) => {
                return Ok(Err(format!("its grant {} cannot be mapped: {error}", grant.0)));
            }
        };
        let signal = Arc::new(Signal::new());
        let channel = match host.bind_port(self.guest, port, signal.clone()) {
            Ok(channel) => channel,
            Err(error) => {
                return Ok(Err(format!("its port {} cannot be bound: {error}", port.0)));
            }
        };
        let link = CommandLink { ring, channel, signal };
        let engine = Box::pin(serve(host, self.guest, link, protocol, *limits));
        let extensions = protocol.extensions.names().join(", ");
        log::debug!("domain {}: extensions: {extensions}", self.guest);
        Ok(Ok(Service { engine, _ticket: guests.ticket() }))
    }

    /// The daemon ends: everything of the guest's was given up. Tells the frontend, and gives it a
    /// moment to do the same.
    async fn say_goodbye(&self, other: &OtherEnd, changes: &mut [Watch; 2]) -> Result<(), Errno> {
        self.switch(State::Closing).await?;
        let patience = pin!(self.backend.host.sleep(PATIENCE / 3));
        let closed = pin!(async {
            while !matches!(
                self.view(other).await?.front,
                State::Closed | State::Unknown | State::Initialising
            ) {
                changed(changes).await;
            }
            Ok::<_, Errno>(())
        });
        futures_util::future::select(patience, closed).await;
        self.switch(State::Closed).await.map(drop)
    }
}

/// Waits until one of the watches fires.
async fn changed([one, other]: &mut [Watch; 2]) {
    futures_util::future::select(pin!(one.next()), pin!(other.next())).await;
}

/// What a device that waits has come across.
enum First {
    Change,
    Violation(Violation),
    Patience,
}

/// Waits for the first of several things; each of them may be the daemon's end.
async fn first<S>(
    change: impl Future<Output = ()>,
    stop: impl Future<Output = S>,
    violation: impl Future<Output = Violation>,
    patience: impl Future<Output = ()>,
) -> First {
    let (mut change, mut stop) = (pin!(change), pin!(stop));
    let (mut violation, mut patience) = (pin!(violation), pin!(patience));
    poll_fn(|cx| {
        if change.as_mut().poll(cx).is_ready() || stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(First::Change);
        }
        if let Poll::Ready(violation) = violation.as_mut().poll(cx) {
            return Poll::Ready(First::Violation(violation));
        }
        patience.as_mut().poll(cx).map(|()| First::Patience)
    })
    .await
}
