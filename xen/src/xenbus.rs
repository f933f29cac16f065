//! The states of a device's two ends in xenstore (`io/xenbus.h`), and the nodes beside them.

use crate::xenstore::{Nodes, Store, Watch};
use crate::{DomId, Errno};
use alloc::format;
use alloc::string::{String, ToString};
use futures_util::future::try_join;

/// The state of one end of a device (`enum xenbus_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// The node does not exist, or its value is not a state.
    Unknown = 0,
    /// The toolstack has made the nodes.
    Initialising = 1,
    /// The backend is ready and waits for the frontend's nodes.
    InitWait = 2,
    /// The frontend has written its nodes and waits for the backend.
    Initialised = 3,
    /// This end works.
    Connected = 4,
    /// The device is being taken down.
    Closing = 5,
    /// The device is down.
    Closed = 6,
    /// The device is being changed.
    Reconfiguring = 7,
    /// The device was changed.
    Reconfigured = 8,
}

impl State {
    /// Reads a node's value. Anything else is [`State::Unknown`].
    pub fn decode(value: &[u8]) -> State {
        match value.strip_suffix(&[0]).unwrap_or(value) {
            b"1" => State::Initialising,
            b"2" => State::InitWait,
            b"3" => State::Initialised,
            b"4" => State::Connected,
            b"5" => State::Closing,
            b"6" => State::Closed,
            b"7" => State::Reconfiguring,
            b"8" => State::Reconfigured,
            _ => State::Unknown,
        }
    }
}

/// The state of the end whose folder is `path`: [`State::Unknown`] if the folder does not exist.
pub async fn read_state(nodes: &Nodes, path: &str) -> Result<State, Errno> {
    match nodes.read(&format!("{path}/state")).await {
        Ok(value) => Ok(State::decode(&value)),
        Err(Errno::ENOENT) => Ok(State::Unknown),
        Err(error) => Err(error),
    }
}

/// Moves the end whose folder is `path` to a state, if it is in another one.
///
/// [`Errno::ENOENT`] if the toolstack has removed the device: its folder is not created again.
pub async fn switch_state(nodes: &Nodes, path: &str, state: State) -> Result<(), Errno> {
    let node = format!("{path}/state");
    if State::decode(&nodes.read(&node).await?) == state {
        return Ok(());
    }
    nodes.write(&node, (state as u8).to_string()).await
}

/// Watches the state of a device's other end.
#[derive(Debug)]
pub struct StateWatch {
    store: Store,
    path: String,
    watch: Watch,
    /// The watch has fired since the state was read.
    changed: bool,
    last: Option<State>,
}

impl StateWatch {
    /// Watches the end whose folder is `path`.
    pub async fn new(store: &Store, path: &str) -> Result<StateWatch, Errno> {
        let watch = store.watch(&format!("{path}/state")).await?;
        let (store, path) = (store.clone(), path.to_string());
        Ok(StateWatch { store, path, watch, changed: false, last: None })
    }

    /// Returns the present state the first time. After that, waits for a state that differs from
    /// the last one returned. Short-lived states can be missed. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<State, Errno> {
        loop {
            if !self.changed {
                self.watch.next().await;
                self.changed = true;
            }
            let state = read_state(&self.store, &self.path).await;
            self.changed = false;
            let state = state?;
            if self.last != Some(state) {
                self.last = Some(state);
                return Ok(state);
            }
        }
    }

    /// Waits for a state that `wanted` accepts, and returns it. It may be the present one.
    pub async fn wait_for(&mut self, wanted: impl Fn(State) -> bool) -> Result<State, Errno> {
        if let Some(state) = self.last
            && wanted(state)
        {
            return Ok(state);
        }
        loop {
            let state = self.next().await?;
            if wanted(state) {
                return Ok(state);
            }
        }
    }
}

/// A device's other end, which the toolstack names in the folder of this end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherEnd {
    /// The domain that serves or uses the device.
    pub domain: DomId,
    /// Its folder in xenstore.
    pub path: String,
}

impl OtherEnd {
    /// The backend of the frontend whose folder is `path`.
    pub async fn backend_of(nodes: &Nodes, path: &str) -> Result<OtherEnd, Errno> {
        OtherEnd::read(nodes, path, "backend").await
    }

    /// The frontend of the backend whose folder is `path`.
    pub async fn frontend_of(nodes: &Nodes, path: &str) -> Result<OtherEnd, Errno> {
        OtherEnd::read(nodes, path, "frontend").await
    }

    async fn read(nodes: &Nodes, path: &str, end: &str) -> Result<OtherEnd, Errno> {
        let (other, domain) = (format!("{path}/{end}"), format!("{path}/{end}-id"));
        let (other, domain) =
            try_join(nodes.read_string(&other), read_number(nodes, &domain)).await?;
        Ok(OtherEnd { domain: DomId(domain), path: other })
    }
}

/// A node's value as a decimal number. [`Errno::EPROTO`] if it is not a number, or too large for
/// `T`.
pub async fn read_number<T: core::str::FromStr>(nodes: &Nodes, path: &str) -> Result<T, Errno> {
    nodes.read_string(path).await?.parse().map_err(|_| Errno::EPROTO)
}
