//! Other domains' pages and ports, for a guest that maps what another domain granted.

use super::domain::Domain;
use super::guest::Guest;
use super::ring::notify;
use crate::memory;
use alloc::sync::Arc;
use core::ptr::with_exposed_provenance_mut;
use xen::foreign::ForeignFrames;
use xen::{
    Channel, DomId, Errno, Gfn, GrantRef, Machine, Mapping, Neighbour, PAGE_SIZE, Port, Shared,
    Signal,
};

/// The most bytes of the heap that a page takes while it is being mapped.
const HEAP_PER_PAGE: usize = 64;

impl Neighbour for Domain {
    type Mapping = ForeignPages;
    type Channel = ForeignPort;

    /// All pages are mapped, with one hypercall, or none. [`Errno::ENOSPC`] if the kernel's limit
    /// of 64 MiB, or Xen's, is reached; for more errors see [`ForeignFrames::map`].
    fn map(&self, owner: DomId, refs: &[GrantRef]) -> Result<ForeignPages, Errno> {
        let guest = self.0;
        if refs.is_empty() {
            return Err(Errno::EINVAL);
        }
        if !memory::has_room(refs.len().saturating_mul(HEAP_PER_PAGE)) {
            return Err(Errno::ENOMEM);
        }
        let start = guest.foreign.borrow_mut().take(refs.len() as u64).ok_or(Errno::ENOSPC)?;
        let mut pages = ForeignPages {
            domain: *self,
            start,
            count: refs.len(),
            frames: ForeignFrames::default(),
            restores: guest.restores.get(),
        };
        // SAFETY: the frames were taken above, for this value. There is no memory at them. After
        // an error, the value is dropped, which unmaps the pages that were mapped.
        unsafe { pages.frames.map(&guest.xen, owner, refs, Gfn(start)) }?;
        Ok(pages)
    }

    fn bind_port(
        &self,
        owner: DomId,
        port: Port,
        signal: Arc<Signal>,
    ) -> Result<ForeignPort, Errno> {
        let port = self.0.events.bind_interdomain(owner, port, signal)?;
        self.0.ports_open.add(1);
        Ok(ForeignPort { domain: *self, port })
    }
}

impl Guest {
    /// The number of other domains' pages that are mapped.
    pub fn foreign_pages(&self) -> u64 {
        self.foreign.borrow().taken()
    }

    /// To be called in a restored domain: there is no memory where other domains' pages were.
    pub(super) fn forget_foreign_pages(&self) {
        self.restores.set(self.restores.get() + 1);
        let lost = self.foreign_pages();
        if lost > 0 {
            log::error!("{lost} pages of other domains were mapped and are lost");
        }
    }
}

/// Pages of another domain, mapped.
///
/// They are lost if this domain is saved and restored meanwhile: then reads return ones, and writes
/// go nowhere.
pub struct ForeignPages {
    domain: Domain,
    /// The first frame.
    start: u64,
    count: usize,
    frames: ForeignFrames,
    /// [`Guest`]'s number when they were mapped.
    restores: u32,
}

impl Mapping for ForeignPages {
    fn shared(&self) -> Shared<'_> {
        let start = with_exposed_provenance_mut(self.start as usize * PAGE_SIZE);
        // SAFETY: the addresses are identity-mapped, and belong to this value until it is dropped.
        // Nothing makes references to them. Xen emulates accesses without memory behind them.
        unsafe { Shared::new(start, self.count * PAGE_SIZE) }
    }
}

impl Drop for ForeignPages {
    fn drop(&mut self) {
        let guest = self.domain.0;
        if self.restores == guest.restores.get() {
            // SAFETY: what `shared` returned borrows this value, so nothing accesses the pages.
            if let Err(error) = unsafe { self.frames.unmap(&guest.xen) } {
                // The frames are never used again.
                return log::error!("cannot unmap pages of another domain: {error}");
            }
        }
        guest.foreign.borrow_mut().give_back(self.start);
    }
}

/// A port that another domain offered, bound.
pub struct ForeignPort {
    domain: Domain,
    port: Port,
}

impl Channel for ForeignPort {
    fn notify(&self) {
        notify(self.domain.0.xen, self.port);
    }
}

impl Drop for ForeignPort {
    fn drop(&mut self) {
        self.domain.close_port(self.port);
    }
}
