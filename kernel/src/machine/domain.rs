//! The machine as frontends use it: pages, grants and ports. Other domains' pages and ports are in
//! `neighbour.rs`.

use super::guest::Guest;
use super::ring::notify;
use crate::memory::pages;
use alloc::sync::Arc;
use core::ptr::NonNull;
use xen::grant::Access;
use xen::{DomId, Errno, Gfn, GrantRef, Machine, PAGE_SIZE, Pages, Port, Signal};

/// The kernel's [`Machine`] and [`Neighbour`](xen::Neighbour).
#[derive(Clone, Copy)]
pub struct Domain(pub(super) &'static Guest);

impl Domain {
    /// The machine for frontends.
    pub fn new(guest: &'static Guest) -> Domain {
        Domain(guest)
    }
}

// SAFETY: `pages` returns each page once, and pages are zeroed here. The grant table returns
// EBUSY while the peer has the page mapped; after that, Xen lets no domain map it. The event
// channels call the signal after every event until the port is closed.
unsafe impl Machine for Domain {
    fn alloc(&self, count: usize) -> Result<Pages, Errno> {
        let start = pages::alloc_beyond_reserve(count).ok_or(Errno::ENOMEM)?;
        // SAFETY: the pages are whole, stay mapped, and belong to this value alone.
        let pages = unsafe { Pages::new(start.as_ptr(), count) };
        pages.shared().zero();
        Ok(pages)
    }

    unsafe fn free(&self, pages: Pages) {
        let start = NonNull::new(pages.start()).expect("pages have an address");
        // SAFETY: they came from `alloc`, whole, and no grant of them is left (guaranteed by the
        // caller).
        unsafe { pages::free(start, pages.count()) };
    }

    fn is_short(&self) -> bool {
        let pages = pages::figures();
        pages.free < pages.all / 4 + pages::RESERVE
    }

    fn grant(&self, peer: DomId, pages: &Pages, index: usize) -> Result<GrantRef, Errno> {
        assert!(index < pages.count(), "page {index} of {} is to be granted", pages.count());
        let first = pages.start().addr() / PAGE_SIZE;
        // SAFETY: `Pages` are accessed as `Shared` alone, were zeroed by `alloc`, and contain
        // only what their owner shares.
        unsafe { self.0.grants.grant(peer, Gfn((first + index) as u64), Access::ReadWrite) }
    }

    fn revoke(&self, grant: GrantRef) -> Result<(), Errno> {
        self.0.grants.end(grant)
    }

    fn open_port(&self, peer: DomId, signal: Arc<Signal>) -> Result<Port, Errno> {
        let port = self.0.events.alloc_unbound(peer, signal)?;
        self.0.ports_open.add(1);
        Ok(port)
    }

    fn close_port(&self, port: Port) {
        match self.0.events.close(port) {
            Ok(()) => self.0.ports_open.sub(1),
            Err(error) => log::warn!("cannot close port {}: {error}", port.0),
        }
    }

    fn notify(&self, port: Port) {
        notify(self.0.xen, port);
    }
}
