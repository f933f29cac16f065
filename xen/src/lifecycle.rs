//! Requests of the toolstack to end or to suspend the domain, in the node `control/shutdown`
//! (`docs/misc/xenstore-paths`).
//!
//! Ending it is [`Operations::shutdown`](crate::hypercall::Operations::shutdown).

use crate::Errno;
use crate::xenstore::{Store, Watch};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

const NODE: &str = "control/shutdown";

/// How often acknowledging is tried again when another request comes in between.
const ATTEMPTS: usize = 16;

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
    acknowledging: Option<Request>,
}

impl Requests {
    /// Announces which requests are obeyed (`control/feature-poweroff` and so on) and begins to
    /// watch for them.
    pub async fn watch(store: &Store, supported: &[Request]) -> Result<Requests, Errno> {
        for request in supported {
            let node = format!("control/feature-{}", request.word());
            if let Err(error) = store.write(&node, "1").await {
                // Requests can come all the same.
                log::warn!("cannot announce {node} to the toolstack: {error}");
            }
        }
        let watch = store.watch(NODE).await?;
        let (store, supported) = (store.clone(), supported.to_vec());
        Ok(Requests { store, watch, supported, changed: false, acknowledging: None })
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
        for _ in 0..ATTEMPTS {
            let transaction = self.store.transaction().await?;
            let word = match transaction.read(NODE).await {
                Ok(word) if !word.is_empty() => word,
                Ok(_) | Err(Errno::ENOENT) => return Ok(self.acknowledging.take()),
                Err(error) => return Err(error),
            };
            let request = Request::decode(&word);
            if let Some(request) = request
                && !self.supported.contains(&request)
            {
                log::warn!("the toolstack asks for {}, which is not supported", request.word());
                return Ok(None);
            }
            transaction.write(NODE, "").await?;
            self.acknowledging = request;
            let committed = transaction.commit().await;
            self.acknowledging = None;
            match committed {
                Ok(()) => {
                    if request.is_none() {
                        let word = String::from_utf8_lossy(&word);
                        log::warn!("the toolstack asks for {word:?}, which means nothing here");
                    }
                    return Ok(request);
                }
                Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EAGAIN)
    }
}
