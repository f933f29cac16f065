//! A domain in a [`World`] that maps what others grant: that of a backend, or another guest.

use super::World;
use crate::{Channel, DomId, Errno, GrantRef, Mapping, Neighbour, PAGE_SIZE, Port, Shared, Signal};
use std::cell::RefCell;
use std::rc::Rc;
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
    /// The byte to clear and the port to notify when the mapping ends.
    notify: RefCell<Option<(usize, Rc<Bound>)>>,
}

/// A domain's port, bound.
pub struct BoundPort(Rc<Bound>);

/// What unbinds the port, with its last owner.
struct Bound {
    world: World,
    owner: DomId,
    port: Port,
}

impl World {
    /// The domain of a backend, or of a guest that maps.
    pub fn peer(&self, id: DomId) -> Peer {
        Peer { world: self.clone(), id }
    }
}

impl Neighbour for Peer {
    type Mapping = MappedPages;
    type Channel = BoundPort;

    /// The pages must be consecutive. [`Errno::EINVAL`] if there is no such grant for this domain.
    fn map(&self, owner: DomId, refs: &[GrantRef]) -> Result<MappedPages, Errno> {
        let start = self.world.state.map(self.id, owner, refs)?;
        let (world, refs, notify) = (self.world.clone(), refs.to_vec(), RefCell::default());
        Ok(MappedPages { world, owner, refs, start, notify })
    }

    fn bind_port(&self, owner: DomId, port: Port, signal: Arc<Signal>) -> Result<BoundPort, Errno> {
        self.world.state.bind_port(self.id, owner, port, signal)?;
        Ok(BoundPort(Rc::new(Bound { world: self.world.clone(), owner, port })))
    }

    /// As for a Linux process: the port stays bound for it.
    fn set_unmap_notify(
        &self,
        mapping: &MappedPages,
        offset: usize,
        channel: &BoundPort,
    ) -> Result<(), Errno> {
        if offset >= mapping.shared().len() {
            return Err(Errno::EINVAL);
        }
        mapping.notify.replace(Some((offset, channel.0.clone())));
        Ok(())
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
        let notify = self.notify.take();
        if let Some((offset, _)) = &notify {
            self.shared().write(*offset, &[0]);
        }
        self.world.state.unmap(self.owner, &self.refs);
        if let Some((_, port)) = notify {
            port.notify();
        }
    }
}

impl Channel for BoundPort {
    fn notify(&self) {
        self.0.notify();
    }
}

impl Bound {
    fn notify(&self) {
        self.world.state.notify_guest(self.owner, self.port);
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.world.state.unbind_port(self.owner, self.port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Machine;

    #[test]
    fn the_end_of_a_mapping_clears_a_byte_and_sends_an_event() -> Result<(), Errno> {
        let world = World::new();
        let (guest, linux) = (world.machine(DomId(5)), world.peer(DomId(0)));
        let pages = guest.alloc(1)?;
        let grant = guest.grant(DomId(0), &pages, 0)?;
        let port = guest.open_port(DomId(0), Arc::new(Signal::new()))?;
        let mapped = linux.map(DomId(5), &[grant])?;
        let bound = linux.bind_port(DomId(5), port, Arc::new(Signal::new()))?;
        assert_eq!(linux.set_unmap_notify(&mapped, PAGE_SIZE, &bound), Err(Errno::EINVAL));
        linux.set_unmap_notify(&mapped, 88, &bound)?;
        pages.shared().write(87, &[1, 1, 1]);
        // A process that is killed drops them in any order.
        drop(bound);
        assert_eq!(world.events(), 0, "the mapping exists");
        drop(mapped);
        assert_eq!(world.events(), 1);
        let mut bytes = [0; 3];
        pages.shared().read(87, &mut bytes);
        assert_eq!(bytes, [1, 0, 1]);
        linux.bind_port(DomId(5), port, Arc::new(Signal::new()))?;
        guest.close_port(port);
        guest.revoke(grant)?;
        // SAFETY: its only grant was revoked, and it came from this machine.
        unsafe { guest.free(pages) };
        world.assert_clean();
        Ok(())
    }
}
