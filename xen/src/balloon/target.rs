//! The toolstack's target for a domain's memory (`docs/misc/xenstore-paths`).

use crate::xenstore::{Store, Watch};
use crate::{Errno, PAGE_SIZE};
use alloc::string::String;

/// The memory that the domain should have, in KiB; `xl mem-set` writes it.
const TARGET: &str = "memory/target";
/// The most memory that the domain can have, in KiB: that of its memory map.
const STATIC_MAX: &str = "memory/static-max";

/// Where a domain explains why it does not reach its target. It may create nodes below `data`, but
/// not below `control` or `memory`.
pub const ERROR_NODE: &str = "data/balloon-error";

const KIB_PER_PAGE: u64 = PAGE_SIZE as u64 / 1024;

/// The toolstack's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The memory that the domain should have, in KiB.
    pub target: u64,
    /// The number of pages to give back, of all in the memory map.
    pub absent: u64,
}

/// Watches the toolstack's target.
#[derive(Debug)]
pub struct Target {
    store: Store,
    watch: Watch,
    complaint: Option<String>,
}

impl Target {
    /// Registers the watch.
    pub async fn watch(store: &Store) -> Result<Target, Errno> {
        let watch = store.watch(TARGET).await?;
        Ok(Target { store: store.clone(), watch, complaint: None })
    }

    /// Waits until the target may have changed. Returns at once the first time.
    pub async fn changed(&mut self) {
        self.watch.next().await;
    }

    /// Reads the target. `None` while its nodes are missing or malformed.
    pub async fn read(&self) -> Result<Option<Wanted>, Errno> {
        let number = async |node| match self.store.read_string(node).await {
            Ok(text) => Ok(text.parse::<u64>().ok()),
            Err(Errno::ENOENT | Errno::EPROTO) => Ok(None),
            Err(error) => Err(error),
        };
        let (Some(target), Some(most)) = (number(TARGET).await?, number(STATIC_MAX).await?) else {
            return Ok(None);
        };
        // Parts of pages are rounded up.
        let absent = (most / KIB_PER_PAGE).saturating_sub(target / KIB_PER_PAGE);
        Ok(Some(Wanted { target, absent }))
    }

    /// Writes to [`ERROR_NODE`] why the target is not reached, or removes the node. The same text
    /// is not written twice.
    pub async fn complain(&mut self, complaint: Option<String>) {
        if complaint == self.complaint {
            return;
        }
        let done = match &complaint {
            Some(text) => self.store.write(ERROR_NODE, text).await,
            None => self.store.rm(ERROR_NODE).await,
        };
        match done {
            Ok(()) | Err(Errno::ENOENT) => self.complaint = complaint,
            Err(error) => log::debug!("cannot write {ERROR_NODE}: {error}"),
        }
    }
}
