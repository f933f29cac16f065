//! How much memory the toolstack wants a domain to have (`docs/misc/xenstore-paths`).

use crate::xenstore::{Store, Watch};
use crate::{Errno, PAGE_SIZE};
use alloc::string::String;

/// The memory that the domain shall have now, in KiB; `xl mem-set` writes it.
const TARGET: &str = "memory/target";
/// The memory that the domain can ever have, in KiB: that of its memory map.
const STATIC_MAX: &str = "memory/static-max";

/// Where a domain says why it does not come to its target, in words. It may write below `data` by
/// itself, and not below `control` or `memory`.
pub const ERROR_NODE: &str = "data/balloon-error";

const KIB_PER_PAGE: u64 = PAGE_SIZE as u64 / 1024;

/// What the toolstack wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The memory that the domain shall have, in KiB.
    pub target: u64,
    /// How many pages of what it could have it shall not have.
    pub absent: u64,
}

/// Hears of what the toolstack wants.
#[derive(Debug)]
pub struct Target {
    store: Store,
    watch: Watch,
    complaint: Option<String>,
}

impl Target {
    /// Begins to watch.
    pub async fn watch(store: &Store) -> Result<Target, Errno> {
        let watch = store.watch(TARGET).await?;
        Ok(Target { store: store.clone(), watch, complaint: None })
    }

    /// Waits until the target may have changed; the first time it returns at once.
    pub async fn changed(&mut self) {
        self.watch.next().await;
    }

    /// What is wanted now; `None` while the toolstack says nothing of it that could be understood.
    pub async fn read(&self) -> Result<Option<Wanted>, Errno> {
        let number = async |node| match self.store.read_string(node).await {
            Ok(text) => Ok(text.parse::<u64>().ok()),
            Err(Errno::ENOENT | Errno::EPROTO) => Ok(None),
            Err(error) => Err(error),
        };
        let (Some(target), Some(most)) = (number(TARGET).await?, number(STATIC_MAX).await?) else {
            return Ok(None);
        };
        // What is no whole page cannot be had.
        let absent = (most / KIB_PER_PAGE).saturating_sub(target / KIB_PER_PAGE);
        Ok(Some(Wanted { target, absent }))
    }

    /// Says in [`ERROR_NODE`] why the target is not reached, or removes what was said before. Nothing is
    /// written twice.
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
