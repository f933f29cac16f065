//! A frontend's part in the life of a device: one session after the other, with whatever backend there is
//! (`io/xenbus.h`).
//!
//! What all drivers have in common is here: the device's folder may come late, go and come back, the backend
//! may as well, and either may be suspended, closed or replaced at any moment. What is negotiated, and what
//! the rings carry, is the driver's own ([`Device::session`]).

use crate::Errno;
use crate::xenbus::{OtherEnd, State, StateWatch, switch_state};
use crate::xenstore::{Store, Transaction};
use alloc::format;
use alloc::string::String;
use core::future::Future;
use core::pin::pin;
use core::time::Duration;
use futures_util::future::{Either, select};

/// The least time from one session's end to the next one's beginning.
const BETWEEN_SESSIONS: Duration = Duration::from_secs(1);

/// The least time until a backend is looked at again whose offer made no sense.
const BETWEEN_OFFERS: Duration = Duration::from_secs(2);

/// A device, as far as all drivers need it.
pub trait Device {
    /// Waits until the device is to be closed for good.
    fn closing(&self) -> impl Future<Output = ()>;

    /// Waits until everything is lost that the session was made of, as after a suspend.
    fn lost(&self) -> impl Future<Output = ()>;

    /// What was lost has been left behind: the next session is about to begin.
    fn begin_anew(&self);

    /// How long the backend may take to let go of what it has mapped.
    fn patience(&self) -> Duration;

    /// Lets some time pass.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()>;

    /// Serves one session, with a backend that is in [`State::InitWait`]. It is dropped when everything is
    /// [`lost`](Device::lost). Errors are for good, but for a lack of memory or of grants, and for a folder
    /// that is gone or may not be read.
    fn session(
        &self,
        meeting: &mut Meeting<'_, Self>,
    ) -> impl Future<Output = Result<SessionEnd, Errno>>;
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// Somebody asked for it.
    Shutdown,
    /// The backend left, or broke the protocol. It may come back.
    BackendGone,
    /// What the backend offers cannot be used; the next one's may be better.
    BadOffer,
}

/// A session's two ends in xenstore.
pub struct Meeting<'a, D: ?Sized> {
    /// How many sessions there were before this one.
    pub number: u32,
    /// The other end.
    pub backend: OtherEnd,
    /// The device's folder.
    pub path: &'a str,
    /// The way to xenstored.
    pub store: &'a Store,
    device: &'a D,
    watch: StateWatch,
}

/// Serves the device at `path`, again and again, until it goes down for good.
pub async fn serve<D: Device>(device: &D, store: &Store, path: &str) -> Errno {
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
async fn turn<D: Device>(device: &D, store: &Store, path: &str, number: u32) -> Option<Errno> {
    let mut pause = BETWEEN_SESSIONS;
    match serve_once(device, store, path, number).await {
        Ok(SessionEnd::BackendGone) => log::warn!("{path}: the backend is gone; waiting for it"),
        Ok(SessionEnd::BadOffer) => pause = BETWEEN_OFFERS,
        Ok(SessionEnd::Shutdown) => return Some(Errno::ENODEV),
        // The toolstack has removed the device meanwhile, or is still making it. A folder that is not
        // there and one that may not be read look the same.
        Err(Errno::ENOENT | Errno::EACCES) => {}
        Err(error @ (Errno::ENOMEM | Errno::ENOSPC)) => {
            log::error!("{path}: nothing is left for the device's rings: {error}; trying again");
        }
        Err(error) => {
            log::error!("{path}: the device cannot be used: {error}");
            return Some(error);
        }
    }
    // A backend that comes and goes without pause shall not keep the guest busy.
    match select(pin!(device.sleep(pause)), pin!(device.closing())).await {
        Either::Left(_) => None,
        Either::Right(_) => Some(Errno::ENODEV),
    }
}

async fn serve_once<D: Device>(
    device: &D,
    store: &Store,
    path: &str,
    number: u32,
) -> Result<SessionEnd, Errno> {
    let Some(mut meeting) = meet(device, store, path, number).await? else {
        return Ok(SessionEnd::Shutdown);
    };
    switch_state(store, path, State::Initialising).await?;
    if meeting.wait_for(|state| state == State::InitWait).await?.is_none() {
        switch_state(store, path, State::Closed).await?;
        return Ok(SessionEnd::Shutdown);
    }
    device.session(&mut meeting).await
}

/// Waits until the device is there and its backend can be connected to; `None` when the device is to be
/// closed. A device that was closed is not opened again before its backend is.
async fn meet<'a, D: Device>(
    device: &'a D,
    store: &'a Store,
    path: &'a str,
    number: u32,
) -> Result<Option<Meeting<'a, D>>, Errno> {
    let mut nodes = store.watch(path).await?;
    let mut said = false;
    loop {
        match OtherEnd::backend_of(store, path).await {
            Ok(backend) => {
                let watch = StateWatch::new(store, &backend.path).await?;
                let mut meeting = Meeting { number, backend, path, store, device, watch };
                let opened = {
                    let opened = pin!(meeting.opened());
                    match select(opened, pin!(nodes.next())).await {
                        Either::Left((opened, _)) => opened,
                        Either::Right(_) => continue,
                    }
                };
                return Ok(opened?.map(|_| meeting));
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

impl<D: Device> Meeting<'_, D> {
    /// Waits until the backend can be connected to.
    async fn opened(&mut self) -> Result<Option<State>, Errno> {
        let is_first = self.number == 0;
        let open = |state| is_first || matches!(state, State::Initialising | State::InitWait);
        loop {
            match self.wait_for(open).await {
                // A folder that is not there yet and one that may not be read yet look the same.
                Err(Errno::EACCES | Errno::ENOENT) => {}
                opened => return opened,
            }
        }
    }

    /// Waits for a state of the backend, or, with `None`, until the device is to be closed.
    pub async fn wait_for(
        &mut self,
        wanted: impl Fn(State) -> bool,
    ) -> Result<Option<State>, Errno> {
        let state = pin!(self.watch.wait_for(wanted));
        match select(state, pin!(self.device.closing())).await {
            Either::Left((state, _)) => state.map(Some),
            Either::Right(_) => Ok(None),
        }
    }

    /// Writes this end's nodes, all at once, moves it to the state in which the backend looks at them, and
    /// waits until the backend is connected. If it never will be, this end is closed, and that is why.
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
            for (name, value) in nodes {
                transaction.write(&format!("{path}/{name}"), value).await?;
            }
            Ok(())
        };
        store.transact(write).await?;
        switch_state(store, path, state).await?;
        let decided = |state| !matches!(state, State::InitWait | State::Initialised);
        match self.wait_for(decided).await? {
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

    /// Waits for the end of a session that is connected: the backend leaves, or the device is to be closed.
    pub async fn over(&mut self) -> Result<SessionEnd, Errno> {
        let gone = |state| !matches!(state, State::Connected | State::Reconfiguring);
        match self.wait_for(gone).await {
            Ok(None) => Ok(SessionEnd::Shutdown),
            // A folder that is gone and one that may not be read look the same.
            Ok(Some(_)) | Err(Errno::EACCES) => Ok(SessionEnd::BackendGone),
            Err(error) => Err(error),
        }
    }

    /// Closes this end: the backend gets some time to let go of what it has mapped. What it keeps all the
    /// same goes into quarantine, so that nothing here depends on it.
    pub async fn close(&mut self) {
        let (store, path) = (self.store, self.path);
        if switch_state(store, path, State::Closing).await.is_err() {
            // The folder is gone, or xenstore is: nobody is there to be told.
            return;
        }
        let let_go = |state| !matches!(state, State::Connected | State::Initialised);
        let let_go = pin!(self.watch.wait_for(let_go));
        if let Either::Right(_) =
            select(let_go, pin!(self.device.sleep(self.device.patience()))).await
        {
            log::warn!("{path}: the backend does not close; going on without it");
        }
        let _ = switch_state(store, path, State::Closed).await;
    }
}
