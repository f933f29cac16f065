//! The machine of a frontend in a [`World`].

use super::World;
use crate::{DomId, Errno, GrantRef, Machine, PAGE_SIZE, Pages, Port, Signal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A frontend's domain: its memory, grants and event channels. Clones are the same domain.
#[derive(Clone)]
pub struct FakeMachine {
    world: World,
    id: DomId,
    short: Arc<AtomicBool>,
}

impl World {
    /// The machine of a domain with frontends.
    pub fn machine(&self, id: DomId) -> FakeMachine {
        FakeMachine { world: self.clone(), id, short: Arc::default() }
    }
}

impl FakeMachine {
    /// Sets what [`Machine::is_short`] returns.
    pub fn set_short(&self, short: bool) {
        self.short.store(short, Ordering::Relaxed);
    }

    /// The domain's number.
    pub fn id(&self) -> DomId {
        self.id
    }
}

// SAFETY: `State::alloc` gives zeroed pages of their own, `State::revoke` refuses while a page is
// mapped and nothing can map it afterwards, and both notifications raise the signal of an open
// port.
unsafe impl Machine for FakeMachine {
    fn alloc(&self, pages: usize) -> Result<Pages, Errno> {
        let start = self.world.state.alloc(self.id, pages)?;
        // SAFETY: the pages were allocated for this value alone, and stay until they are freed and
        // beyond.
        Ok(unsafe { Pages::new(start, pages) })
    }

    fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    unsafe fn free(&self, pages: Pages) {
        self.world.state.free(self.id, pages.start(), pages.count());
    }

    fn grant(&self, peer: DomId, pages: &Pages, index: usize) -> Result<GrantRef, Errno> {
        let page = pages.shared().slice(index * PAGE_SIZE, PAGE_SIZE);
        self.world.state.grant(self.id, peer, page.as_ptr())
    }

    fn revoke(&self, grant: GrantRef) -> Result<(), Errno> {
        self.world.state.revoke(self.id, grant)
    }

    fn open_port(&self, peer: DomId, signal: Arc<Signal>) -> Result<Port, Errno> {
        self.world.state.open_port(self.id, peer, signal)
    }

    fn close_port(&self, port: Port) {
        self.world.state.close_port(self.id, port);
    }

    fn notify(&self, port: Port) {
        self.world.state.notify_backend(self.id, port);
    }
}
