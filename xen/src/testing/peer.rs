//! The domain of a backend in a [`World`].

use super::World;
use crate::{DomId, Errno, GrantRef, PAGE_SIZE, Port, Shared, Signal};
use std::sync::Arc;

/// A domain that maps guests' pages and binds their ports.
#[derive(Clone)]
pub struct Peer {
    world: World,
    id: DomId,
}

/// A guest's pages, mapped.
pub struct MappedPages {
    world: World,
    guest: DomId,
    refs: Vec<GrantRef>,
    start: *mut u8,
}

/// A guest's port, bound.
pub struct BoundPort {
    world: World,
    guest: DomId,
    port: Port,
}

impl World {
    /// The domain of a backend.
    pub fn peer(&self, id: DomId) -> Peer {
        Peer { world: self.clone(), id }
    }
}

impl Peer {
    /// Maps a guest's grants, whose pages must be consecutive. [`Errno::EINVAL`] if there is no
    /// such grant, [`Errno::EPERM`] if it is for another domain.
    pub fn map(&self, guest: DomId, refs: &[GrantRef]) -> Result<MappedPages, Errno> {
        let start = self.world.state.map(self.id, guest, refs)?;
        Ok(MappedPages { world: self.world.clone(), guest, refs: refs.to_vec(), start })
    }

    /// Binds a guest's port. Events raise `signal` until the value is dropped.
    pub fn bind_port(
        &self,
        guest: DomId,
        port: Port,
        signal: Arc<Signal>,
    ) -> Result<BoundPort, Errno> {
        self.world.state.bind_port(self.id, guest, port, signal)?;
        Ok(BoundPort { world: self.world.clone(), guest, port })
    }
}

impl MappedPages {
    /// All of the bytes.
    pub fn shared(&self) -> Shared<'_> {
        // SAFETY: while the pages are mapped, the guest cannot revoke their grants and so cannot
        // free them. Nothing makes references to pages.
        unsafe { Shared::new(self.start, self.refs.len() * PAGE_SIZE) }
    }
}

impl Drop for MappedPages {
    fn drop(&mut self) {
        self.world.state.unmap(self.guest, &self.refs);
    }
}

impl BoundPort {
    /// Sends an event to the guest.
    pub fn notify(&self) {
        self.world.state.notify_guest(self.guest, self.port);
    }
}

impl Drop for BoundPort {
    fn drop(&mut self) {
        self.world.state.unbind_port(self.guest, self.port);
    }
}
