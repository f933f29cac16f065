//! The domain of a backend in a [`World`].

use super::World;
use crate::{Channel, DomId, Errno, GrantRef, Mapping, Neighbour, PAGE_SIZE, Port, Shared, Signal};
use std::sync::Arc;

/// A domain that maps other domains' pages and binds their ports.
#[derive(Clone)]
pub struct Peer {
    world: World,
    id: DomId,
}

/// A domain's pages, mapped.
pub struct MappedPages {
    world: World,
    owner: DomId,
    refs: Vec<GrantRef>,
    start: *mut u8,
}

/// A domain's port, bound.
pub struct BoundPort {
    world: World,
    owner: DomId,
    port: Port,
}

impl World {
    /// The domain of a backend.
    pub fn peer(&self, id: DomId) -> Peer {
        Peer { world: self.clone(), id }
    }
}

impl Neighbour for Peer {
    type Mapping = MappedPages;
    type Channel = BoundPort;

    /// The pages must be consecutive. [`Errno::EINVAL`] if there is no such grant, [`Errno::EPERM`]
    /// if it is for another domain.
    fn map(&self, owner: DomId, refs: &[GrantRef]) -> Result<MappedPages, Errno> {
        let start = self.world.state.map(self.id, owner, refs)?;
        Ok(MappedPages { world: self.world.clone(), owner, refs: refs.to_vec(), start })
    }

    fn bind_port(&self, owner: DomId, port: Port, signal: Arc<Signal>) -> Result<BoundPort, Errno> {
        self.world.state.bind_port(self.id, owner, port, signal)?;
        Ok(BoundPort { world: self.world.clone(), owner, port })
    }
}

impl Mapping for MappedPages {
    fn shared(&self) -> Shared<'_> {
        // SAFETY: while the pages are mapped, their owner cannot revoke the grants and so cannot
        // free them. Nothing makes references to pages.
        unsafe { Shared::new(self.start, self.refs.len() * PAGE_SIZE) }
    }
}

impl Drop for MappedPages {
    fn drop(&mut self) {
        self.world.state.unmap(self.owner, &self.refs);
    }
}

impl Channel for BoundPort {
    fn notify(&self) {
        self.world.state.notify_guest(self.owner, self.port);
    }
}

impl Drop for BoundPort {
    fn drop(&mut self) {
        self.world.state.unbind_port(self.owner, self.port);
    }
}
