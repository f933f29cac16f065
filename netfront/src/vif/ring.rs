//! A frontend's end of a shared ring (`io/ring.h`).

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use xen::Shared;
use xen::abi::netif::{REQ_EVENT, REQ_PROD, RING_HEADER, RING_SLOTS, RSP_EVENT, RSP_PROD, TX_SLOT};
use xen::shared::fence;

const MASK: u32 = RING_SLOTS as u32 - 1;

/// What the backend did that it may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("it has answered {answered} requests, and {asked} were open")]
    Index { answered: u32, asked: u32 },
    #[error("response {id} is to no open request")]
    Id { id: u16 },
    #[error("a part of {len} bytes at {offset} is not within its page")]
    Part { offset: u16, len: usize },
    #[error("a frame has more than {0} parts")]
    Endless(usize),
}

/// The frontend's own copies of the indexes. The shared page is passed to each method; of it, only the
/// backend's two indexes are ever read, each time once.
pub(super) struct Ring<const SLOT: usize> {
    /// The next request's index.
    produced: u32,
    /// Up to here the backend knows of requests.
    pushed: u32,
    /// The next response's index.
    consumed: u32,
}

impl<const SLOT: usize> Ring<SLOT> {
    const FITS: () = assert!(SLOT <= TX_SLOT);

    /// Prepares a page that the backend does not know yet.
    pub(super) fn new(page: Shared<'_>) -> Self {
        let () = Self::FITS;
        page.zero();
        page.store_u32(REQ_EVENT, 1, Relaxed);
        page.store_u32(RSP_EVENT, 1, Release);
        Ring { produced: 0, pushed: 0, consumed: 0 }
    }

    /// How many more requests there is room for.
    pub(super) fn room(&self) -> usize {
        RING_SLOTS - self.produced.wrapping_sub(self.consumed) as usize
    }

    /// Where the next request will stand.
    pub(super) fn next_slot(&self) -> usize {
        (self.produced & MASK) as usize
    }

    /// Puts a request into the next slot; there must be [`room`](Ring::room).
    pub(super) fn put(&mut self, page: Shared<'_>, request: &[u8; SLOT]) {
        page.write(RING_HEADER + self.next_slot() * SLOT, request);
        self.produced = self.produced.wrapping_add(1);
    }

    /// Shows the backend what was put; whether it wants an event for it.
    pub(super) fn push(&mut self, page: Shared<'_>) -> bool {
        if self.pushed == self.produced {
            return false;
        }
        let old = core::mem::replace(&mut self.pushed, self.produced);
        page.store_u32(REQ_PROD, self.produced, Release);
        // The backend sets its index and then looks for requests once more: one of us sees the other.
        fence(SeqCst);
        let event = page.load_u32(REQ_EVENT, Relaxed);
        self.produced.wrapping_sub(event) < self.produced.wrapping_sub(old)
    }

    /// How many responses there are.
    pub(super) fn responses(&self, page: Shared<'_>) -> Result<u32, Violation> {
        let answered = page.load_u32(RSP_PROD, Acquire).wrapping_sub(self.consumed);
        let asked = self.pushed.wrapping_sub(self.consumed);
        if answered > asked {
            return Err(Violation::Index { answered, asked });
        }
        Ok(answered)
    }

    /// Takes the next response, with its slot's number; there must be one.
    pub(super) fn take(&mut self, page: Shared<'_>) -> (usize, [u8; SLOT]) {
        let slot = (self.consumed & MASK) as usize;
        let mut response = [0; SLOT];
        page.read(RING_HEADER + slot * SLOT, &mut response);
        self.consumed = self.consumed.wrapping_add(1);
        (slot, response)
    }

    /// Asks for an event with the next response; whether there is one already.
    pub(super) fn arm(&self, page: Shared<'_>) -> Result<bool, Violation> {
        page.store_u32(RSP_EVENT, self.consumed.wrapping_add(1), Relaxed);
        // As in `push`, the other way round.
        fence(SeqCst);
        Ok(self.responses(page)? > 0)
    }
}
