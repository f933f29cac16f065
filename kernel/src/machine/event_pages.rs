//! The memory in which Xen keeps queues of events.

use crate::memory::pages;
use core::ptr::with_exposed_provenance_mut;
use xen::event::PageSource;
use xen::{Errno, Gfn, PAGE_SIZE, Shared};

/// Takes pages from the free memory.
#[derive(Clone, Copy, Debug)]
pub struct EventPages;

// SAFETY: `pages` hands out each page once, and this one is never given back; memory is mapped to itself.
unsafe impl PageSource for EventPages {
    fn take(&self) -> Result<(Gfn, Shared<'static>), Errno> {
        let start = pages::alloc(1).ok_or(Errno::ENOMEM)?.expose_provenance().get();
        // SAFETY: as above, and nobody makes references to it.
        let page = unsafe { Shared::new(with_exposed_provenance_mut(start), PAGE_SIZE) };
        Ok((Gfn((start / PAGE_SIZE) as u64), page))
    }
}
