//! The handshake with the backend in xenstore, and the command ring while it lasts.

use super::Config;
use super::calls::Calls;
use super::device::{Attachment, Device, Link, Session};
use crate::wire::Protocol;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use embassy_time::{Duration, Timer, with_timeout};
use futures_util::future::{Either, select};
use xen::Errno;
use xen::xenbus::{self, OtherEnd, State, StateWatch};
use xen::xenstore::{Store, Transaction};
use xen::{Machine, Side, Signal};

/// How long a backend may take to let go of what it has mapped, before the frontend goes on.
const LETTING_GO: Duration = Duration::from_secs(5);

/// The least time from one session's end to the next one's beginning.
const BETWEEN_SESSIONS: Duration = Duration::from_secs(1);

/// The least time until a backend is looked at again whose offer made no sense.
const BETWEEN_OFFERS: Duration = Duration::from_secs(2);

/// Why a session ended.
enum End {
    /// Somebody asked for it.
    Shutdown,
    /// The backend left, or broke the protocol. It may come back.
    BackendGone,
}

/// Connects to the backend, again and again, until the device goes down for good.
pub(super) async fn serve<M: Machine>(device: &Device<M>, store: &Store, path: &str) -> Errno {
    for number in 0.. {
        let is_lost = {
            let turn = pin!(turn(device, store, path, number));
            match select(pin!(device.lost()), turn).await {
                Either::Left(_) => true,
                Either::Right((Some(error), _)) => return error,
                Either::Right((None, _)) => false,
            }
        };
        // What stands where in the handshake, and what it has asked of xenstore, was lost as well, and
        // has ended with the turn.
        if is_lost {
            device.begin_anew();
        }
    }
    Errno::ENODEV
}

/// Serves a session, from the wait for a backend to the pause behind it. `None` when there may be
/// another one.
async fn turn<M: Machine>(
    device: &Device<M>,
    store: &Store,
    path: &str,
    number: u32,
) -> Option<Errno> {
    let mut rest = BETWEEN_SESSIONS;
    match serve_once(device, store, path, number).await {
        Ok(End::BackendGone) => log::warn!("{path}: the backend is gone; waiting for it"),
        Ok(End::Shutdown) => return Some(Errno::ENODEV),
        // The toolstack has removed the device meanwhile, or is still making it. A folder that is not
        // there and one that may not be read look the same.
        Err(Errno::ENOENT | Errno::EACCES) => {}
        Err(error @ (Errno::ENOMEM | Errno::ENOSPC)) => {
            log::error!("{path}: nothing is left for a command ring: {error}; trying again");
        }
        // What was like this from the start is for the user to mend; later on, the next backend may
        // be a better one.
        Err(Errno::EOPNOTSUPP) if number > 0 => rest = BETWEEN_OFFERS,
        Err(error) => {
            log::error!("{path}: the device cannot be used: {error}");
            return Some(error);
        }
    }
    // A backend that comes and goes without pause shall not keep the guest busy.
    if pause(device, rest).await { None } else { Some(Errno::ENODEV) }
}

/// Waits for a while. `false` when the device is to be closed.
async fn pause<M: Machine>(device: &Device<M>, time: Duration) -> bool {
    matches!(select(Timer::after(time), pin!(device.closing())).await, Either::Left(_))
}

/// Waits until the device is there and its backend can be connected to; `None` when the device is to be
/// closed. A device that was closed is not opened again before its backend is.
async fn backend<M: Machine>(
    device: &Device<M>,
    store: &Store,
    path: &str,
    number: u32,
) -> Result<Option<(OtherEnd, StateWatch)>, Errno> {
    let mut nodes = store.watch(path).await?;
    let mut said = false;
    loop {
        match OtherEnd::backend_of(store, path).await {
            Ok(backend) => {
                let mut watch = StateWatch::new(store, &backend.path).await?;
                let open =
                    |state| number == 0 || matches!(state, State::Initialising | State::InitWait);
                let opened = {
                    let opened = pin!(async {
                        loop {
                            match wait_for(device, &mut watch, open).await {
                                // A folder that is not there yet and one that may not be read yet
                                // look the same.
                                Err(Errno::EACCES | Errno::ENOENT) => {}
                                opened => break opened,
                            }
                        }
                    });
                    match select(opened, pin!(nodes.next())).await {
                        Either::Left((opened, _)) => opened,
                        Either::Right(_) => continue,
                    }
                };
                return Ok(opened?.map(|_| (backend, watch)));
            }
            Err(error @ (Errno::ENOENT | Errno::EACCES | Errno::EPROTO)) => {
                if !said {
                    log::warn!("{path}: there is no such device ({error}); waiting for it");
                    said = true;
                }
            }
            Err(error) => return Err(error),
        }
        if let Either::Right(_) = select(pin!(nodes.next()), pin!(device.closing())).await {
            return Ok(None);
        }
    }
}

async fn serve_once<M: Machine>(
    device: &Device<M>,
    store: &Store,
    path: &str,
    number: u32,
) -> Result<End, Errno> {
    let Some((backend, mut watch)) = backend(device, store, path, number).await? else {
        return Ok(End::Shutdown);
    };
    xenbus::switch_state(store, path, State::Initialising).await?;
    if wait_for(device, &mut watch, |state| state == State::InitWait).await?.is_none() {
        xenbus::switch_state(store, path, State::Closed).await?;
        return Ok(End::Shutdown);
    }
    let Config { dialect, extensions, .. } = device.config;
    let wish = Protocol { dialect, extensions };
    let mut nodes = Vec::new();
    for name in wish.wanted_of_backend() {
        nodes.push(store.read_string(&format!("{}/{name}", backend.path)).await.ok());
    }
    let (protocol, offer) = wish.with_backend(&nodes).map_err(|message| {
        log::error!("{path}: {message}");
        Errno::EOPNOTSUPP
    })?;
    let ring_order = device.config.ring_order.unwrap_or(offer.default_order);
    let attachment = Attachment {
        session: number,
        backend: backend.domain,
        protocol,
        offer,
        ring_order: ring_order.clamp(offer.min_order, offer.max_order),
    };
    let session = open(device, attachment)?;
    let (signal, port, grant) = (session.signal.clone(), session.port, session.page.grants()[0]);
    let mut nodes = protocol.frontend_nodes();
    nodes.push(("port", port.0.to_string()));
    nodes.push(("ring-ref", grant.0.to_string()));
    let mut offered = Offered { device, session: Some(session) };
    match publish(device, store, path, &mut watch, &nodes).await {
        Ok(None) => {}
        other => {
            close(store, path, &mut watch).await;
            return other.map(|end| end.unwrap_or(End::BackendGone));
        }
    }
    let Some(session) = offered.session.take() else { return Ok(End::BackendGone) };
    device.go_up(session);
    let end = run(device, &mut watch, &signal).await;
    if let Link::Up(session) = device.set_link(Link::Waiting) {
        offered.session = Some(*session);
    }
    close(store, path, &mut watch).await;
    device.end_sockets(if let Ok(End::Shutdown) = end { Errno::ENODEV } else { Errno::ENETDOWN });
    end
}

/// A session while it is not in the device's link: it is freed with this value.
struct Offered<'d, M: Machine + 'static> {
    device: &'d Device<M>,
    session: Option<Session>,
}

impl<M: Machine> Drop for Offered<'_, M> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.device.free(session);
        }
    }
}

/// Allocates the command ring.
fn open<M: Machine>(device: &Device<M>, attachment: Attachment) -> Result<Session, Errno> {
    let page = device.memory.grant_page(attachment.backend)?;
    let signal = Arc::new(Signal::new());
    let port = match device.memory.open_port(attachment.backend, signal.clone()) {
        Ok(port) => port,
        Err(error) => {
            device.memory.withdraw(page);
            return Err(error);
        }
    };
    let calls = Calls::new(attachment.protocol, page.pages.shared());
    Ok(Session { attachment, calls, page, port, signal })
}

/// Tells the backend of the command ring by these nodes, and waits until it is connected.
async fn publish<M: Machine>(
    device: &Device<M>,
    store: &Store,
    path: &str,
    watch: &mut StateWatch,
    nodes: &[(&str, String)],
) -> Result<Option<End>, Errno> {
    let write = async |transaction: &Transaction| {
        for (name, value) in nodes {
            transaction.write(&format!("{path}/{name}"), value).await?;
        }
        Ok(())
    };
    store.transact(write).await?;
    xenbus::switch_state(store, path, State::Initialised).await?;
    let wanted = |state| !matches!(state, State::InitWait | State::Initialised);
    match wait_for(device, watch, wanted).await? {
        None => Ok(Some(End::Shutdown)),
        Some(State::Connected) => {
            xenbus::switch_state(store, path, State::Connected).await?;
            Ok(None)
        }
        Some(state) => {
            log::warn!("{path}: instead of connecting, the backend went to {state:?}");
            Ok(Some(End::BackendGone))
        }
    }
}

/// Serves the command ring until the end.
async fn run<M: Machine>(
    device: &Device<M>,
    watch: &mut StateWatch,
    signal: &Signal,
) -> Result<End, Errno> {
    let responses = pin!(responses(device, signal));
    let gone = |state| !matches!(state, State::Connected | State::Reconfiguring);
    let gone = pin!(wait_for(device, watch, gone));
    match select(responses, gone).await {
        Either::Left(_) => Ok(End::BackendGone),
        Either::Right((Ok(None), _)) => Ok(End::Shutdown),
        // A folder that is gone and one that may not be read look the same.
        Either::Right((Ok(Some(_)) | Err(Errno::EACCES), _)) => Ok(End::BackendGone),
        Either::Right((Err(error), _)) => Err(error),
    }
}

/// Hands responses to those who wait for them, until the backend breaks the protocol.
async fn responses<M: Machine>(device: &Device<M>, signal: &Signal) {
    poll_fn(|cx| {
        signal.register(Side::Rx, cx.waker());
        let mut link = device.link.borrow_mut();
        let Link::Up(session) = &mut *link else { return Poll::Ready(()) };
        let received = session.calls.receive(session.page.pages.shared());
        device.send(session);
        match received {
            Ok(()) => Poll::Pending,
            Err(error) => {
                log::error!("the backend's command ring: {error}; all of its sockets are closed");
                Poll::Ready(())
            }
        }
    })
    .await;
}

/// Waits for a state of the backend, or, with `None`, until the device is to be closed.
async fn wait_for<M: Machine>(
    device: &Device<M>,
    watch: &mut StateWatch,
    wanted: impl Fn(State) -> bool,
) -> Result<Option<State>, Errno> {
    match select(pin!(watch.wait_for(wanted)), pin!(device.closing())).await {
        Either::Left((state, _)) => state.map(Some),
        Either::Right(_) => Ok(None),
    }
}

/// Closes this end: the backend gets some time to let go of what it has mapped. What it keeps all the
/// same goes into quarantine, so that nothing here depends on it.
async fn close(store: &Store, path: &str, watch: &mut StateWatch) {
    if xenbus::switch_state(store, path, State::Closing).await.is_err() {
        // The folder is gone, or xenstore is: nobody is there to be told.
        return;
    }
    let let_go = |state| !matches!(state, State::Connected | State::Initialised);
    if with_timeout(LETTING_GO, watch.wait_for(let_go)).await.is_err() {
        log::warn!("{path}: the backend does not close; going on without it");
    }
    let _ = xenbus::switch_state(store, path, State::Closed).await;
}
