//! The machine that a frontend needs: memory, grants and event channels.

use crate::{DomId, Errno, GrantRef, PAGE_SIZE, Port, Shared, Signal};
use alloc::sync::Arc;
use core::convert::Infallible;

/// A run of pages that a frontend owns, contiguous in its address space.
///
/// It has no `Drop`, so that pages which another domain may still write are not freed by accident:
/// only [`Machine::free`] does.
#[derive(Debug)]
pub struct Pages {
    start: *mut u8,
    count: usize,
}

// SAFETY: `Pages` owns its memory; every access goes through `Shared`.
unsafe impl Send for Pages {}

impl Pages {
    /// Describes `count` pages at `start`.
    ///
    /// # Safety
    /// The memory must be page-aligned, mapped and writable, and have no other owner, until the
    /// value is freed by the machine that made it.
    pub unsafe fn new(start: *mut u8, count: usize) -> Self {
        Pages { start, count }
    }

    /// The number of pages.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first page's address.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// All of the bytes.
    pub fn shared(&self) -> Shared<'_> {
        // SAFETY: `new`'s contract, for as long as `self` is borrowed.
        unsafe { Shared::new(self.start, self.count * PAGE_SIZE) }
    }
}

/// A frontend's machine: memory, grants and event channels.
///
/// Implemented by a kernel with hypercalls, and for tests by `xen::testing::FakeMachine`.
///
/// # Safety
/// Each method states what its implementer promises.
pub unsafe trait Machine {
    /// Allocates pages. [`Errno::ENOMEM`] when there are none.
    ///
    /// The implementer promises that the pages are zeroed, and that nothing else refers to them
    /// until they are [freed](Machine::free).
    fn alloc(&self, pages: usize) -> Result<Pages, Errno>;

    /// Whether memory is short: then unused pages are freed rather than kept for later.
    fn is_short(&self) -> bool {
        false
    }

    /// Takes pages back.
    ///
    /// # Safety
    /// The caller promises that the pages came from this machine's [`alloc`](Machine::alloc), and
    /// that every grant of them was [revoked](Machine::revoke).
    unsafe fn free(&self, pages: Pages);

    /// Lets `peer` map page `index` of `pages`, for reading and writing. [`Errno::ENOSPC`] when the
    /// grant table is full.
    ///
    /// The implementer promises that `peer` can reach that page and nothing else through the grant.
    fn grant(&self, peer: DomId, pages: &Pages, index: usize) -> Result<GrantRef, Errno>;

    /// Ends a grant. [`Errno::EBUSY`] while the peer has the page mapped: then the grant is still
    /// live, and the caller keeps page and reference, and tries again later.
    ///
    /// The implementer promises that after `Ok` no other domain can reach the page through this
    /// grant.
    fn revoke(&self, grant: GrantRef) -> Result<(), Errno>;

    /// Allocates an event channel that `peer` may bind.
    ///
    /// The implementer promises to raise `signal` after every event, until the port is closed.
    fn open_port(&self, peer: DomId, signal: Arc<Signal>) -> Result<Port, Errno>;

    /// Closes an event channel. Its signal is not raised any more.
    fn close_port(&self, port: Port);

    /// Sends an event to the peer.
    fn notify(&self, port: Port);
}

/// No machine, for a process that grants nothing: there is no value of this type.
// SAFETY: no method can be called.
unsafe impl Machine for Infallible {
    fn alloc(&self, _pages: usize) -> Result<Pages, Errno> {
        match *self {}
    }

    unsafe fn free(&self, _pages: Pages) {
        match *self {}
    }

    fn grant(&self, _peer: DomId, _pages: &Pages, _index: usize) -> Result<GrantRef, Errno> {
        match *self {}
    }

    fn revoke(&self, _grant: GrantRef) -> Result<(), Errno> {
        match *self {}
    }

    fn open_port(&self, _peer: DomId, _signal: Arc<Signal>) -> Result<Port, Errno> {
        match *self {}
    }

    fn close_port(&self, _port: Port) {
        match *self {}
    }

    fn notify(&self, _port: Port) {
        match *self {}
    }
}
