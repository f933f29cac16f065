//! The sessions of a frontend with one backend after another (`io/xenbus.h`).
//!
//! The device's folder may appear late, vanish and return. So may the backend. Either end may be
//! suspended, closed or replaced at any moment. What the two ends negotiate and what their rings
//! carry is up to the [`SessionHandler`].

use super::pages::PagePool;
use crate::xenbus::{OtherEnd, State, StateWatch, switch_state};
use crate::xenstore::{Store, Transaction};
use crate::{Errno, Machine, WaitList};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::cell::Cell;
use core::future::{Future, ready};
use core::pin::pin;
use embassy_time::{Duration, with_timeout};
use futures_util::future::{Either, join, select, try_join_all};

/// The pause between two sessions: a backend that keeps leaving must not keep the guest busy.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The pause after a backend's offer that cannot be used.
const BAD_OFFER_BACKOFF: Duration = Duration::from_secs(2);

/// How long a backend may take to unmap this end's pages before the frontend continues without it.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a frontend does within its sessions. [`Driver`] calls these methods.
pub trait SessionHandler {
    /// The machine that the frontend runs on.
    type Machine: Machine;

    /// What was requested of the device, and whether it has ended.
    fn lifecycle(&self) -> &Lifecycle;

    /// The pages that the frontend shares.
    fn pages(&self) -> &PagePool<Self::Machine>;

    /// How long a backend may take to unmap this end's pages.
    fn close_timeout(&self) -> Duration {
        CLOSE_TIMEOUT
    }

    /// Serves one session with a backend that is in [`State::InitWait`]. The future is dropped if
    /// the domain was restored from a save. Errors are final, except a lack of memory or grants and
    /// a folder that is missing or unreadable.
    fn session(
        &self,
        handshake: &mut Handshake<'_>,
    ) -> impl Future<Output = Result<SessionEnd, Errno>>;

    /// Releases the session's resources, if any; their users fail with `error`. Called after each
    /// session, in [`resume`], and when the device has [ended](Lifecycle::ended).
    fn leave_session(&self, error: Errno);

    /// Work beside the sessions. It must finish once the device has ended.
    fn work(&self) -> impl Future<Output = ()> {
        ready(())
    }
}

/// What was requested of a device, and whether it has ended.
#[derive(Debug, Default)]
pub struct Lifecycle {
    /// Set by [`shutdown`].
    closing: Cell<bool>,
    /// Set by [`resume`] until the driver has dropped the former session.
    lost: Cell<bool>,
    ended: Cell<Option<Errno>>,
    /// Woken when one of these changes.
    changed: WaitList,
}

impl Lifecycle {
    /// Why the device has ended, if it has.
    pub fn ended(&self) -> Option<Errno> {
        self.ended.get()
    }

    async fn closing(&self) {
        self.changed.until(|| self.closing.get().then_some(())).await;
    }

    async fn lost(&self) {
        self.changed.until(|| self.lost.get().then_some(())).await;
    }

    fn set_lost(&self, lost: bool) {
        self.lost.set(lost);
        self.changed.wake_all();
    }
}

/// Closes the device in an orderly way, and returns when it has ended.
pub async fn shutdown<H: SessionHandler>(handler: &H) {
    let lifecycle = handler.lifecycle();
    lifecycle.closing.set(true);
    lifecycle.changed.wake_all();
    lifecycle.changed.until(|| lifecycle.ended()).await;
}

/// Leaves the session of a domain that was restored from a save, which has lost its grants and
/// event channels. Returns when the driver has dropped its old xenstore requests.
pub async fn resume<H: SessionHandler>(handler: &H) {
    let lifecycle = handler.lifecycle();
    if lifecycle.ended().is_some() {
        return;
    }
    handler.leave_session(Errno::ENETDOWN);
    lifecycle.set_lost(true);
    let is_left = || (!lifecycle.lost.get() || lifecycle.ended().is_some()).then_some(());
    lifecycle.changed.until(is_left).await;
}

fn end<H: SessionHandler>(handler: &H, error: Errno) {
    handler.lifecycle().ended.set(Some(error));
    handler.leave_session(error);
    handler.lifecycle().changed.wake_all();
}

/// Drives a frontend; see [`run`](Driver::run). Dropping the driver ends the device.
pub struct Driver<H: SessionHandler> {
    handler: Rc<H>,
    store: Store,
    path: String,
}

impl<H: SessionHandler> Driver<H> {
    /// The driver of the device whose folder in xenstore is `path`.
    pub fn new(handler: Rc<H>, store: Store, path: &str) -> Self {
        Driver { handler, store, path: path.to_string() }
    }

    /// Connects to the backend, and connects again whenever it returns.
    ///
    /// Returns [`Errno::ENODEV`] after [`shutdown`], or the error that made the device unusable.
    /// Then all pages were returned to the machine.
    pub async fn run(&self) -> Errno {
        let handler = &*self.handler;
        let sessions = async {
            let error = serve(handler, &self.store, &self.path).await;
            end(handler, error);
            error
        };
        handler.pages().retry_during(join(sessions, handler.work())).await.0
    }
}

impl<H: SessionHandler> Drop for Driver<H> {
    fn drop(&mut self) {
        if self.handler.lifecycle().ended().is_none() {
            end(&*self.handler, Errno::ENODEV);
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// [`shutdown`] was called.
    Shutdown,
    /// The backend left or broke the protocol. It may return.
    BackendGone,
    /// The backend's offer cannot be used. Another backend's may be better.
    BadOffer,
}

/// The two ends of a session in xenstore.
pub struct Handshake<'a> {
    /// The number of sessions before this one.
    pub session: u32,
    /// The other end.
    pub backend: OtherEnd,
    /// The device's folder.
    pub path: &'a str,
    /// The connection to xenstored.
    pub store: &'a Store,
    lifecycle: &'a Lifecycle,
    close_timeout: Duration,
    watch: StateWatch,
}

/// Serves one session after another, until the device ends.
async fn serve<H: SessionHandler>(handler: &H, store: &Store, path: &str) -> Errno {
    for session in 0.. {
        let was_lost = {
            let round = pin!(serve_and_pause(handler, store, path, session));
            match select(pin!(handler.lifecycle().lost()), round).await {
                Either::Left(_) => true,
                Either::Right((Some(error), _)) => return error,
                Either::Right((None, _)) => false,
            }
        };
        // The state of the handshake and its xenstore requests were dropped with `round`.
        if was_lost {
            handler.leave_session(Errno::ENETDOWN);
            handler.lifecycle().set_lost(false);
        }
    }
    Errno::ENODEV
}

/// Serves a session and pauses after it. Returns an error if it was the last one.
async fn serve_and_pause<H: SessionHandler>(
    handler: &H,
    store: &Store,
    path: &str,
    session: u32,
) -> Option<Errno> {
    let pause = match pause_after(path, serve_once(handler, store, path, session).await) {
        Ok(pause) => pause,
        Err(error) => return Some(error),
    };
    handler.leave_session(Errno::ENETDOWN);
    let closing = with_timeout(pause, handler.lifecycle().closing()).await;
    closing.is_ok().then_some(Errno::ENODEV)
}

/// Logs why a session ended, and returns the pause before the next one, or the error if it was the
/// last one.
fn pause_after(path: &str, end: Result<SessionEnd, Errno>) -> Result<Duration, Errno> {
    match end {
        Ok(SessionEnd::BackendGone) => log::warn!("{path}: the backend is gone; waiting for it"),
        Ok(SessionEnd::BadOffer) => return Ok(BAD_OFFER_BACKOFF),
        Ok(SessionEnd::Shutdown) => return Err(Errno::ENODEV),
        // The toolstack has removed the device or is still creating it. A missing folder and an
        // unreadable one look the same.
        Err(Errno::ENOENT | Errno::EACCES) => {}
        Err(error @ (Errno::ENOMEM | Errno::ENOSPC)) => {
            log::error!("{path}: cannot allocate the device's rings: {error}; retrying");
        }
        Err(error) => {
            log::error!("{path}: the device cannot be used: {error}");
            return Err(error);
        }
    }
    Ok(RETRY_DELAY)
}

async fn serve_once<H: SessionHandler>(
    handler: &H,
    store: &Store,
    path: &str,
    session: u32,
) -> Result<SessionEnd, Errno> {
    let (lifecycle, close_timeout) = (handler.lifecycle(), handler.close_timeout());
    let found = find_backend(lifecycle, close_timeout, store, path, session).await?;
    let Some(mut handshake) = found else { return Ok(SessionEnd::Shutdown) };
    match handshake.initialise().await? {
        Some(_) => handler.session(&mut handshake).await,
        None => Ok(SessionEnd::Shutdown),
    }
}

/// Waits until the device exists and its backend accepts a frontend. Returns `None` if the device
/// is to be closed. After the first session, the backend must have been closed and opened again.
///
/// Not generic, like everything else here that can do without the handler's type: an image has
/// several frontends.
async fn find_backend<'a>(
    lifecycle: &'a Lifecycle,
    close_timeout: Duration,
    store: &'a Store,
    path: &'a str,
    session: u32,
) -> Result<Option<Handshake<'a>>, Errno> {
    let mut nodes = store.watch(path).await?;
    let mut warned = false;
    loop {
        match OtherEnd::backend_of(store, path).await {
            Ok(backend) => {
                let watch = StateWatch::new(store, &backend.path).await?;
                let mut handshake =
                    Handshake { session, backend, path, store, lifecycle, close_timeout, watch };
                let opened = {
                    let opened = pin!(handshake.opened());
                    match select(opened, pin!(nodes.next())).await {
                        Either::Left((opened, _)) => opened,
                        Either::Right(_) => continue,
                    }
                };
                return Ok(opened?.map(|_| handshake));
            }
            Err(error @ (Errno::ENOENT | Errno::EACCES | Errno::EPROTO)) => {
                if !core::mem::replace(&mut warned, true) {
                    log::warn!("{path}: no such device ({error}); waiting for it");
                }
            }
            Err(error) => return Err(error),
        }
        if let Either::Right(_) = select(pin!(nodes.next()), pin!(lifecycle.closing())).await {
            return Ok(None);
        }
    }
}

impl Handshake<'_> {
    /// Waits until the backend accepts a frontend.
    async fn opened(&mut self) -> Result<Option<State>, Errno> {
        let is_first = self.session == 0;
        let is_open = |state| is_first || matches!(state, State::Initialising | State::InitWait);
        loop {
            match self.wait_for(is_open).await {
                // A folder that does not exist yet and one that is not readable yet look the same.
                Err(Errno::EACCES | Errno::ENOENT) => {}
                opened => return opened,
            }
        }
    }

    /// Waits until the backend is in [`State::InitWait`]. Returns `None` if the device is to be
    /// closed; this end is closed then.
    async fn initialise(&mut self) -> Result<Option<State>, Errno> {
        switch_state(self.store, self.path, State::Initialising).await?;
        let offered = self.wait_for(|state| state == State::InitWait).await?;
        if offered.is_none() {
            switch_state(self.store, self.path, State::Closed).await?;
        }
        Ok(offered)
    }

    /// Waits for a state of the backend. Returns `None` if the device is to be closed.
    pub async fn wait_for(
        &mut self,
        wanted: impl Fn(State) -> bool,
    ) -> Result<Option<State>, Errno> {
        let state = pin!(self.watch.wait_for(wanted));
        match select(state, pin!(self.lifecycle.closing())).await {
            Either::Left((state, _)) => state.map(Some),
            Either::Right(_) => Ok(None),
        }
    }

    /// Writes this end's nodes in one transaction, switches to the state in which the backend reads
    /// them, and waits until the backend is connected. If that fails, closes this end and returns
    /// the reason.
    pub async fn connect(
        &mut self,
        nodes: &[(&str, String)],
        state: State,
    ) -> Result<Option<SessionEnd>, Errno> {
        let end = self.try_to_connect(nodes, state).await;
        if end != Ok(None) {
            self.close().await;
        }
        end
    }

    async fn try_to_connect(
        &mut self,
        nodes: &[(&str, String)],
        state: State,
    ) -> Result<Option<SessionEnd>, Errno> {
        let (store, path) = (self.store, self.path);
        let write = async |transaction: &Transaction| {
            let write = async |(name, value): &(&str, String)| {
                transaction.write(&format!("{path}/{name}"), value).await
            };
            // All requests leave before the first reply comes.
            try_join_all(nodes.iter().map(write)).await.map(drop)
        };
        store.transact(write).await?;
        switch_state(store, path, state).await?;
        let is_decided = |state| !matches!(state, State::InitWait | State::Initialised);
        match self.wait_for(is_decided).await? {
            None => Ok(Some(SessionEnd::Shutdown)),
            Some(State::Connected) => {
                switch_state(store, path, State::Connected).await?;
                Ok(None)
            }
            Some(state) => {
                log::warn!("{path}: instead of connecting, the backend went to {state:?}");
                Ok(Some(SessionEnd::BackendGone))
            }
        }
    }

    /// Runs the work of a connected session until the work ends, the backend leaves, or the device
    /// is to be closed.
    pub async fn until_over(
        &mut self,
        work: impl Future<Output = Result<SessionEnd, Errno>>,
    ) -> Result<SessionEnd, Errno> {
        let is_over = |state| !matches!(state, State::Connected | State::Reconfiguring);
        match select(pin!(work), pin!(self.wait_for(is_over))).await {
            Either::Left((end, _)) => end,
            Either::Right((Ok(None), _)) => Ok(SessionEnd::Shutdown),
            // A missing folder and an unreadable one look the same.
            Either::Right((Ok(Some(_)) | Err(Errno::EACCES), _)) => Ok(SessionEnd::BackendGone),
            Either::Right((Err(error), _)) => Err(error),
        }
    }

    /// Closes this end. Waits, within [`SessionHandler::close_timeout`], until the backend has
    /// closed too and so has unmapped this end's pages.
    pub async fn close(&mut self) {
        let (store, path) = (self.store, self.path);
        if switch_state(store, path, State::Closing).await.is_err() {
            // The device was removed, or xenstore fails.
            return;
        }
        let is_closed = |state| !matches!(state, State::Connected | State::Initialised);
        if with_timeout(self.close_timeout, self.watch.wait_for(is_closed)).await.is_err() {
            log::warn!("{path}: the backend does not close; continuing without it");
        }
        let _ = switch_state(store, path, State::Closed).await;
    }
}
