//! Requests of the toolstack to shut down or to suspend the domain, in the node `control/shutdown`
//! (`docs/misc/xenstore-paths`).
//!
//! The caller carries them out with
//! [`Operations::shutdown`](crate::hypercall::Operations::shutdown) or
//! [`suspend`](crate::hypercall::Operations::suspend).

use crate::Errno;
use crate::xenstore::{Store, Watch};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use futures_util::future::join_all;

const NODE: &str = "control/shutdown";

/// A request of the toolstack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Shut down (`poweroff`, or the older `halt`).
    Poweroff,
    /// Reboot (`reboot`).
    Reboot,
    /// Suspend, to be saved (`suspend`).
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

/// Watches `control/shutdown`.
///
/// ```
/// # use futures_executor::LocalPool;
/// # use futures_util::{FutureExt, task::LocalSpawnExt};
/// use xen::lifecycle::{Request, Requests};
/// use xen::{DomId, Errno, testing::FakeStore, xenstore};
///
/// let dom0 = FakeStore::new();
/// dom0.add_domain(DomId(5));
/// let (reader, writer) = dom0.connect(DomId(5));
/// let (store, driver) = xenstore::connect(reader, writer);
/// # let mut pool = LocalPool::new();
/// # pool.spawner().spawn_local(driver.run().map(drop)).unwrap();
/// # pool.run_until(async {
/// let mut requests = Requests::watch(&store, &[Request::Poweroff]).await?;
/// dom0.write("/local/domain/5/control/shutdown", "poweroff");
/// assert_eq!(requests.next().await?, Request::Poweroff);
/// # Ok::<(), Errno>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Requests {
    store: Store,
    watch: Watch,
    supported: Vec<Request>,
    /// The watch has fired since the node was read.
    changed: bool,
    /// A request whose acknowledgement is under way. If the node is then empty, it was committed.
    acknowledging: Cell<Option<Request>>,
}

impl Requests {
    /// Announces the supported requests (`control/feature-poweroff` and so on) and watches for
    /// requests.
    pub async fn watch(store: &Store, supported: &[Request]) -> Result<Requests, Errno> {
        let watch = store.watch(NODE).await?;
        let (store, supported) = (store.clone(), supported.to_vec());
        let acknowledging = Cell::new(None);
        let requests = Requests { store, watch, supported, changed: false, acknowledging };
        requests.announce().await;
        Ok(requests)
    }

    /// Announces the supported requests again: a restored domain has new nodes.
    pub async fn announce(&self) {
        let announce = async |request: &Request| {
            let node = format!("control/feature-{}", request.word());
            if let Err(error) = self.store.write(&node, "1").await {
                // Requests can be made without the announcement.
                log::warn!("cannot announce {node} to the toolstack: {error}");
            }
        };
        join_all(self.supported.iter().map(announce)).await;
    }

    /// Waits for a supported request and acknowledges it. The caller carries it out.
    ///
    /// An unknown word is acknowledged and logged. An unsupported request is only logged: without
    /// an acknowledgement the toolstack reports to its user that it failed. Dropping the future
    /// loses no request.
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
                // The former transaction was not committed.
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
                log::warn!("the toolstack requests {word:?}, which is unknown");
            }
            Some(request) if acknowledged.is_none() => {
                log::warn!("the toolstack requests {}, which is not supported", request.word());
            }
            _ => {}
        }
        Ok(acknowledged)
    }
}
