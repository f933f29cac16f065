//! Requests of the toolstack to end or to suspend the domain, in the node `control/shutdown`
//! (`docs/misc/xenstore-paths`).
//!
//! Ending it is [`Operations::shutdown`](crate::hypercall::Operations::shutdown).

use crate::Errno;
use crate::xenstore::{Store, Watch};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;

const NODE: &str = "control/shutdown";

/// What the toolstack asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To end (`poweroff`, or the older `halt`).
    Poweroff,
    /// To start again (`reboot`).
    Reboot,
    /// To be saved (`suspend`).
    Suspend,
}

impl Request {
    fn decode(word: &[u8]) -> Option<Request> {
        match word {
            b"poweroff" | b"halt" => Some(Request::Poweroff),
            b"reboot" => Some(Request::Reboot),
            b"suspend" => Some(Request::Suspend),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Request::Poweroff => "poweroff",
            Request::Reboot => "reboot",
            Request::Suspend => "suspend",
        }
    }
}

/// Hears of the toolstack's requests.
#[derive(Debug)]
pub struct Requests {
    store: Store,
    watch: Watch,
    supported: Vec<Request>,
    /// The watch has fired since the node was read.
    changed: bool,
    /// A request whose acknowledgement is under way: if the node is found empty, it was made.
    acknowledging: Cell<Option<Request>>,
}

impl Requests {
    /// Announces which requests are obeyed (`control/feature-poweroff` and so on) and begins to
    /// watch for them.
    pub async fn watch(store: &Store, supported: &[Request]) -> Result<Requests, Errno> {
        let watch = store.watch(NODE).await?;
        let (store, supported) = (store.clone(), supported.to_vec());
        let acknowledging = Cell::new(None);
        let requests = Requests { store, watch, supported, changed: false, acknowledging };
        requests.announce().await;
        Ok(requests)
    }

    /// Announces again which requests are obeyed: the nodes of a restored domain are new.
    pub async fn announce(&self) {
        for request in &self.supported {
            let node = format!("control/feature-{}", request.word());
            if let Err(error) = self.store.write(&node, "1").await {
                // Requests can come all the same.
                log::warn!("cannot announce {node} to the toolstack: {error}");
            }
        }
    }

    /// Waits for a request that is supported, and acknowledges it: the caller obeys now.
    ///
    /// A word that means nothing is acknowledged and logged. A request that is not supported is
    /// only logged: without an acknowledgement the toolstack tells its user that it failed. Dropping
    /// the future loses no request.
    pub async fn next(&mut self) -> Result<Request, Errno> {
        loop {
            if !self.changed {
                self.watch.next().await;
                self.changed = true;
            }
            let request = self.take().await;
            self.changed = false;
            if let Some(request) = request? {
                return Ok(request);
            }
        }
    }

    async fn take(&mut self) -> Result<Option<Request>, Errno> {
        let Requests { store, supported, acknowledging, .. } = &*self;
        let first = Cell::new(true);
        let word = store.transact(async |transaction| {
            if !first.replace(false) {
                // The one before was not committed.
                acknowledging.set(None);
            }
            let word = match transaction.read(NODE).await {
                Err(Errno::ENOENT) => Vec::new(),
                word => word?,
            };
            let request = Request::decode(&word);
            if !word.is_empty() && request.is_none_or(|request| supported.contains(&request)) {
                transaction.write(NODE, "").await?;
                acknowledging.set(request);
            }
            Ok(word)
        });
        let word = word.await.inspect_err(|_| acknowledging.set(None))?;
        let acknowledged = acknowledging.take();
        match Request::decode(&word) {
            None if !word.is_empty() => {
                let word = String::from_utf8_lossy(&word);
                log::warn!("the toolstack asks for {word:?}, which means nothing here");
            }
            Some(request) if acknowledged.is_none() => {
                log::warn!("the toolstack asks for {}, which is not supported", request.word());
            }
            _ => {}
        }
        Ok(acknowledged)
    }
}
