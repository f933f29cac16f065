//! What a frontend needs of the machine it runs on.

use crate::{DomId, Errno, GrantRef, PAGE_SIZE, Port, Shared, Signal};
use alloc::sync::Arc;

/// A run of whole pages, owned by the frontend, contiguous in its address space.
///
/// It is plain data with no `Drop`: pages that another domain may still write are never freed by
/// accident, only given back through [`Machine::free`].
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
    /// The memory must be page-aligned, mapped, writable, owned by nobody else, and stay so until
    /// the value is given back to the machine that made it.
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
/// Implemented by a kernel with hypercalls, and for tests by [`FakeMachine`](crate::testing::FakeMachine).
///
/// # Safety
/// An implementer promises that pages from [`alloc`](Machine::alloc) are zeroed and shared with
/// nothing else, that [`revoke`](Machine::revoke) succeeds only once no other domain can reach the page,
/// and that a signal is raised after every event on its port until the port is closed. A caller
/// promises to give back each page once, and only after every grant of it was revoked.
pub unsafe trait Machine {
    /// Allocates zeroed pages. [`Errno::ENOMEM`] when there are none.
    fn alloc(&self, pages: usize) -> Result<Pages, Errno>;

    /// Whether memory is short: pages that nobody uses are given back then, rather than kept for later.
    fn is_short(&self) -> bool {
        false
    }

    /// Takes pages back.
    ///
    /// # Safety
    /// No grant of any of them may be live, and they came from this machine's `alloc`.
    unsafe fn free(&self, pages: Pages);

    /// Lets `peer` map one page, for reading and writing. [`Errno::ENOSPC`] when the table is full.
    fn grant(&self, peer: DomId, pages: &Pages, index: usize) -> Result<GrantRef, Errno>;

    /// Ends a grant. [`Errno::EBUSY`] while the peer still has the page mapped: then the grant is still
    /// live, and page and reference must be kept and the call repeated later.
    fn revoke(&self, grant: GrantRef) -> Result<(), Errno>;

    /// Allocates an event channel that `peer` may bind. Events raise `signal`.
    fn open_port(&self, peer: DomId, signal: Arc<Signal>) -> Result<Port, Errno>;

    /// Closes an event channel; its signal is raised no more.
    fn close_port(&self, port: Port);

    /// Sends an event to the peer.
    fn notify(&self, port: Port);
}
