//! Xen's state: pages, grants and event channels of all domains.

use crate::{DomId, Errno, GrantRef, PAGE_SIZE, Port, Signal};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// The byte that fills freed pages.
const POISON: u8 = 0xa5;

/// A machine with Xen on it. Clones are the same machine.
///
/// ```
/// use xen::{DomId, Errno, Machine, Mapping, Neighbour, testing::World};
///
/// let world = World::new();
/// let (guest, dom0) = (world.machine(DomId(5)), world.peer(DomId(0)));
/// let pages = guest.alloc(1)?;
/// let grant = guest.grant(DomId(0), &pages, 0)?;
/// let mapped = dom0.map(DomId(5), &[grant])?;
/// mapped.shared().write(0, b"hello");
/// assert_eq!(guest.revoke(grant), Err(Errno::EBUSY), "the page is mapped");
/// drop(mapped);
/// guest.revoke(grant)?;
/// // SAFETY: the only grant was revoked.
/// unsafe { guest.free(pages) };
/// world.assert_clean();
/// # Ok::<(), Errno>(())
/// ```
#[derive(Clone, Default)]
pub struct World {
    pub(super) state: Rc<State>,
}

#[derive(Default)]
pub(super) struct State {
    runs: RefCell<BTreeMap<usize, Run>>,
    grants: RefCell<BTreeMap<(DomId, GrantRef), Grant>>,
    ports: RefCell<BTreeMap<(DomId, Port), Channel>>,
    /// The limits for guests; `None` is no limit.
    pages_left: Cell<Option<usize>>,
    grants_left: Cell<Option<usize>>,
    ports_left: Cell<Option<usize>>,
    last_grant: Cell<u32>,
    last_port: Cell<u32>,
    /// The ports of others that are bound.
    bound: Cell<usize>,
    events: Cell<u64>,
}

/// Pages that were allocated together, by their address.
struct Run {
    owner: DomId,
    pages: usize,
    free: bool,
}

struct Grant {
    peer: DomId,
    page: *mut u8,
    /// How many times it is mapped.
    mapped: usize,
}

/// An event channel, kept under the port of the guest's end.
struct Channel {
    peer: DomId,
    guest: Arc<Signal>,
    backend: Option<Arc<Signal>>,
}

impl World {
    /// A machine without limits.
    pub fn new() -> World {
        World::default()
    }

    /// Limits the pages that guests can allocate from now on.
    pub fn limit_pages(&self, pages: usize) {
        self.state.pages_left.set(Some(pages));
    }

    /// Limits the grants that guests can make from now on.
    pub fn limit_grants(&self, grants: usize) {
        self.state.grants_left.set(Some(grants));
    }

    /// Limits the ports that guests can open from now on.
    pub fn limit_ports(&self, ports: usize) {
        self.state.ports_left.set(Some(ports));
    }

    /// The number of events sent, in both directions.
    pub fn events(&self) -> u64 {
        self.state.events.get()
    }

    /// The number of live grants.
    pub fn grants(&self) -> usize {
        self.state.grants.borrow().len()
    }

    /// A number that increases with each grant.
    pub fn made_grants(&self) -> u32 {
        self.state.last_grant.get()
    }

    /// The number of open ports.
    pub fn ports(&self) -> usize {
        self.state.ports.borrow().len()
    }

    /// The number of pages that are mapped.
    pub fn mappings(&self) -> usize {
        self.state.grants.borrow().values().map(|grant| grant.mapped).sum()
    }

    /// The number of other domains' ports that are bound.
    pub fn bound_ports(&self) -> usize {
        self.state.bound.get()
    }

    /// The number of allocated pages.
    pub fn pages(&self) -> usize {
        self.state.runs.borrow().values().filter(|run| !run.free).map(|run| run.pages).sum()
    }

    /// Checks that nothing was left behind.
    ///
    /// # Panics
    /// If a page is still mapped, granted or allocated, or a port still bound or open; and if a
    /// page was written after it was freed.
    pub fn assert_clean(&self) {
        assert_eq!(self.mappings(), 0, "pages were never unmapped");
        assert_eq!(self.bound_ports(), 0, "ports were never unbound");
        assert_eq!(self.grants(), 0, "grants were never revoked");
        assert_eq!(self.ports(), 0, "ports were never closed");
        assert_eq!(self.pages(), 0, "pages were never freed");
        self.state.check_poison();
    }
}

/// Takes `count` units of a limited resource.
fn take(left: &Cell<Option<usize>>, count: usize, error: Errno) -> Result<(), Errno> {
    match left.get() {
        None => Ok(()),
        Some(some) if some >= count => {
            left.set(Some(some - count));
            Ok(())
        }
        Some(_) => Err(error),
    }
}

fn give_back(left: &Cell<Option<usize>>, count: usize) {
    left.set(left.get().map(|left| left + count));
}

fn memory_of(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("a few pages")
}

impl State {
    pub(super) fn alloc(&self, owner: DomId, pages: usize) -> Result<*mut u8, Errno> {
        assert!(pages > 0, "an allocation of no pages");
        take(&self.pages_left, pages, Errno::ENOMEM)?;
        // SAFETY: the layout is not of size zero.
        let start = unsafe { alloc_zeroed(memory_of(pages)) };
        assert!(!start.is_null(), "the test is out of memory");
        self.runs.borrow_mut().insert(start.addr(), Run { owner, pages, free: false });
        Ok(start)
    }

    /// Frees a run. It stays mapped and poisoned, so that a late write is noticed.
    pub(super) fn free(&self, owner: DomId, start: *mut u8, pages: usize) {
        let mut runs = self.runs.borrow_mut();
        let run = runs.get_mut(&start.addr()).expect("pages were freed that were not allocated");
        assert_eq!(
            (run.owner, run.pages),
            (owner, pages),
            "pages were freed in part, or by another domain"
        );
        assert!(!run.free, "pages were freed twice");
        let end = start.addr() + pages * PAGE_SIZE;
        let granted = |grant: &Grant| (start.addr()..end).contains(&grant.page.addr());
        assert!(!self.grants.borrow().values().any(granted), "pages were freed while granted");
        // SAFETY: the run was allocated with this size, and its owner has just given it up.
        unsafe { start.write_bytes(POISON, pages * PAGE_SIZE) };
        run.free = true;
        give_back(&self.pages_left, pages);
    }

    fn check_poison(&self) {
        for (&start, run) in self.runs.borrow().iter().filter(|(_, run)| run.free) {
            let start = std::ptr::with_exposed_provenance::<u8>(start);
            for offset in 0..run.pages * PAGE_SIZE {
                // SAFETY: the run stays allocated until the state is dropped.
                let byte = unsafe { start.add(offset).read_volatile() };
                assert_eq!(byte, POISON, "a page was written after it was freed");
            }
        }
    }

    pub(super) fn grant(
        &self,
        owner: DomId,
        peer: DomId,
        page: *mut u8,
    ) -> Result<GrantRef, Errno> {
        take(&self.grants_left, 1, Errno::ENOSPC)?;
        let grant = GrantRef(self.last_grant.get() + 8);
        self.last_grant.set(grant.0);
        self.grants.borrow_mut().insert((owner, grant), Grant { peer, page, mapped: 0 });
        Ok(grant)
    }

    pub(super) fn revoke(&self, owner: DomId, grant: GrantRef) -> Result<(), Errno> {
        let mut grants = self.grants.borrow_mut();
        let state = grants.get(&(owner, grant)).expect("a grant was revoked that does not exist");
        if state.mapped > 0 {
            return Err(Errno::EBUSY);
        }
        grants.remove(&(owner, grant));
        give_back(&self.grants_left, 1);
        Ok(())
    }

    /// Maps grants. Their pages must be consecutive, because there is no second address space in
    /// which to put them in order.
    pub(super) fn map(&self, by: DomId, owner: DomId, refs: &[GrantRef]) -> Result<*mut u8, Errno> {
        let mut grants = self.grants.borrow_mut();
        let mut start: Option<*mut u8> = None;
        for (index, grant) in refs.iter().enumerate() {
            let state = grants.get(&(owner, *grant)).filter(|state| state.peer == by);
            let state = state.ok_or(Errno::EINVAL)?;
            let start = *start.get_or_insert(state.page);
            if start.wrapping_add(index * PAGE_SIZE) != state.page {
                return Err(Errno::EFAULT);
            }
        }
        for grant in refs {
            grants.get_mut(&(owner, *grant)).expect("found above").mapped += 1;
        }
        start.ok_or(Errno::EINVAL)
    }

    pub(super) fn unmap(&self, owner: DomId, refs: &[GrantRef]) {
        let mut grants = self.grants.borrow_mut();
        for grant in refs {
            let state = grants.get_mut(&(owner, *grant));
            state.expect("a mapped grant was revoked").mapped -= 1;
        }
    }

    pub(super) fn open_port(
        &self,
        owner: DomId,
        peer: DomId,
        signal: Arc<Signal>,
    ) -> Result<Port, Errno> {
        take(&self.ports_left, 1, Errno::ENOSPC)?;
        let port = Port(self.last_port.get() + 1);
        self.last_port.set(port.0);
        let channel = Channel { peer, guest: signal, backend: None };
        self.ports.borrow_mut().insert((owner, port), channel);
        Ok(port)
    }

    pub(super) fn close_port(&self, owner: DomId, port: Port) {
        let channel = self.ports.borrow_mut().remove(&(owner, port));
        assert!(channel.is_some(), "port {} was closed but is not open", port.0);
        give_back(&self.ports_left, 1);
    }

    pub(super) fn notify_backend(&self, owner: DomId, port: Port) {
        let ports = self.ports.borrow();
        let channel = ports.get(&(owner, port));
        let channel = channel.unwrap_or_else(|| panic!("port {} is used but not open", port.0));
        self.events.set(self.events.get() + 1);
        if let Some(signal) = &channel.backend {
            signal.raise();
        }
    }

    pub(super) fn bind_port(
        &self,
        by: DomId,
        owner: DomId,
        port: Port,
        signal: Arc<Signal>,
    ) -> Result<(), Errno> {
        let mut ports = self.ports.borrow_mut();
        let channel = ports.get_mut(&(owner, port)).ok_or(Errno::EINVAL)?;
        if channel.peer != by || channel.backend.is_some() {
            return Err(Errno::EINVAL);
        }
        // As in Xen, only the end that binds gets an event.
        signal.raise();
        channel.backend = Some(signal);
        self.bound.set(self.bound.get() + 1);
        Ok(())
    }

    pub(super) fn unbind_port(&self, owner: DomId, port: Port) {
        self.bound.set(self.bound.get() - 1);
        if let Some(channel) = self.ports.borrow_mut().get_mut(&(owner, port)) {
            channel.backend = None;
        }
    }

    /// Sends an event to the guest, unless it has closed its end.
    pub(super) fn notify_guest(&self, owner: DomId, port: Port) {
        if let Some(channel) = self.ports.borrow().get(&(owner, port)) {
            self.events.set(self.events.get() + 1);
            channel.guest.raise();
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for (&start, run) in self.runs.borrow().iter() {
            let start = std::ptr::with_exposed_provenance_mut::<u8>(start);
            // SAFETY: it was allocated with this layout. Machines, peers and mappings all hold the
            // state, so none of them is left that could access the run.
            unsafe { dealloc(start, memory_of(run.pages)) };
        }
    }
}
