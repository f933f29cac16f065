//! A ring of requests and responses in one page (`io/ring.h`).
//!
//! Requests and responses share the slots: a response takes the place of a request that was read. A
//! [`Ring`] is either end of it. It keeps its own indexes in private memory and only publishes
//! them. It reads the peer's index once for each look, and checks it: the peer cannot make an index
//! lead out of the ring.
//!
//! An end goes to sleep in this order: take everything, then [`final_check`](Ring::final_check),
//! and sleep only if that returns `false`.

use crate::abi::ring::{REQ_EVENT, REQ_PROD, RING_HEADER, RSP_EVENT, RSP_PROD};
use crate::shared::fence;
use crate::{Errno, Shared};
use core::sync::atomic::Ordering;

/// Whether the other end must be sent an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a peer that sleeps and gets no event sleeps forever"]
pub enum Notify {
    /// The peer may be asleep.
    Due,
    /// The peer will look by itself.
    NotDue,
}

impl Notify {
    /// Whether an event is due.
    pub fn is_due(self) -> bool {
        self == Notify::Due
    }

    /// Whether an index has passed the one at which the peer asked for an event, by moving from
    /// `old` to `new` (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY` of `io/ring.h`).
    pub(super) fn if_passed(old: u32, new: u32, event: u32) -> Notify {
        if new.wrapping_sub(event) < new.wrapping_sub(old) { Notify::Due } else { Notify::NotDue }
    }
}

/// One end of a ring: the frontend produces requests and consumes responses, the backend does the
/// reverse.
///
/// Each method takes the ring's page, because a ring does not own it.
///
/// # Example
/// ```
/// use xen::frontend::Ring;
/// # let mut memory = [0u64; 512];
/// # // SAFETY: the array outlives the page, and nothing else accesses it.
/// # let page = unsafe { xen::Shared::new(memory.as_mut_ptr().cast(), 4096) };
/// let (mut front, mut back) = (Ring::front(page, 32, 64), Ring::back(32, 64));
/// front.push(page, b"request");
/// assert!(front.publish(page).is_due());
///
/// let mut slot = [0; 7];
/// assert_eq!(back.ready(page)?, 1);
/// back.pop(page, &mut slot);
/// assert_eq!(&slot, b"request");
/// assert!(!back.final_check(page), "no further request");
/// # Ok::<(), xen::Errno>(())
/// ```
#[derive(Debug)]
pub struct Ring {
    end: End,
    slots: u32,
    stride: usize,
    /// The index of the next entry to produce.
    prod: u32,
    /// The peer has been shown the entries before this index.
    published: u32,
    /// The index of the next entry to consume.
    cons: u32,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Front,
    Back,
}

/// The header's words, as one end uses them.
struct Words {
    /// Published by this end.
    prod: usize,
    /// Where the peer asks for an event.
    prod_event: usize,
    /// Published by the peer.
    cons: usize,
    /// Where this end asks for an event.
    cons_event: usize,
}

impl End {
    fn words(self) -> Words {
        match self {
            End::Front => Words {
                prod: REQ_PROD,
                prod_event: REQ_EVENT,
                cons: RSP_PROD,
                cons_event: RSP_EVENT,
            },
            End::Back => Words {
                prod: RSP_PROD,
                prod_event: RSP_EVENT,
                cons: REQ_PROD,
                cons_event: REQ_EVENT,
            },
        }
    }
}

impl Ring {
    /// The frontend's end. Initialises the ring in a zeroed page that the peer has not seen yet.
    /// `slots`, a power of two, is the number of slots, and `stride` the size of each in bytes.
    pub fn front(page: Shared<'_>, slots: u32, stride: usize) -> Self {
        page.store_u32(REQ_EVENT, 1, Ordering::Relaxed);
        page.store_u32(RSP_EVENT, 1, Ordering::Relaxed);
        Ring::new(End::Front, slots, stride)
    }

    /// The backend's end of a ring that its frontend has just initialised.
    pub fn back(slots: u32, stride: usize) -> Self {
        Ring::new(End::Back, slots, stride)
    }

    fn new(end: End, slots: u32, stride: usize) -> Self {
        assert!(slots.is_power_of_two(), "the number of slots is a power of two");
        Ring { end, slots, stride, prod: 0, published: 0, cons: 0 }
    }

    /// The same end of a ring through which `index` requests and their responses have already
    /// passed.
    #[doc(hidden)]
    pub fn at(self, index: u32) -> Self {
        Ring { prod: index, published: index, cons: index, ..self }
    }

    /// The number of slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// How many entries may be pushed now: for a frontend the free slots, for a backend the
    /// requests that were taken and have no response yet.
    pub fn room(&self) -> u32 {
        match self.end {
            End::Front => self.slots - self.prod.wrapping_sub(self.cons),
            End::Back => self.cons.wrapping_sub(self.prod),
        }
    }

    /// The slot of the next entry that is pushed.
    pub fn next_slot(&self) -> usize {
        self.slot(self.prod)
    }

    fn slot(&self, index: u32) -> usize {
        (index & (self.slots - 1)) as usize
    }

    /// Writes an entry into the next slot. The peer sees it after [`publish`](Ring::publish).
    ///
    /// # Panics
    /// If there is no [`room`](Ring::room), or the entry is larger than a slot.
    pub fn push(&mut self, page: Shared<'_>, entry: &[u8]) {
        assert!(self.room() > 0 && entry.len() <= self.stride, "no room for an entry");
        page.write(RING_HEADER + self.next_slot() * self.stride, entry);
        self.prod = self.prod.wrapping_add(1);
    }

    /// Shows the peer what was pushed.
    pub fn publish(&mut self, page: Shared<'_>) -> Notify {
        let (old, new) = (self.published, self.prod);
        if old == new {
            return Notify::NotDue;
        }
        self.published = new;
        let words = self.end.words();
        page.store_u32(words.prod, new, Ordering::Release);
        // The peer writes its event index, then reads this end's index. With a fence on both sides,
        // at least one of the two sees the other's write.
        fence(Ordering::SeqCst);
        Notify::if_passed(old, new, page.load_u32(words.prod_event, Ordering::Relaxed))
    }

    /// How many entries the peer has published that were not taken yet. [`Errno::EPROTO`] if the
    /// peer claims more than it can have: the ring cannot be used any more.
    pub fn ready(&self, page: Shared<'_>) -> Result<u32, Errno> {
        let claimed = page.load_u32(self.end.words().cons, Ordering::Acquire);
        let ready = claimed.wrapping_sub(self.cons);
        let limit = match self.end {
            // No more responses than published requests.
            End::Front => self.published.wrapping_sub(self.cons),
            // No request in a slot that still waits for a response.
            End::Back => self.slots - self.room(),
        };
        if ready > limit { Err(Errno::EPROTO) } else { Ok(ready) }
    }

    /// Takes the next entry, which must be [`ready`](Ring::ready), and returns its slot.
    pub fn pop(&mut self, page: Shared<'_>, entry: &mut [u8]) -> usize {
        let slot = self.slot(self.cons);
        page.read(RING_HEADER + slot * self.stride, entry);
        self.cons = self.cons.wrapping_add(1);
        slot
    }

    /// Asks for an event at the next entry. Returns whether there is an entry already: then the
    /// caller must not sleep.
    pub fn final_check(&self, page: Shared<'_>) -> bool {
        let words = self.end.words();
        page.store_u32(words.cons_event, self.cons.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        page.load_u32(words.cons, Ordering::Relaxed) != self.cons
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::page;

    const SLOTS: u32 = 8;

    fn ends() -> (Shared<'static>, Ring, Ring) {
        let page = page();
        (page, Ring::front(page, SLOTS, 4), Ring::back(SLOTS, 4))
    }

    #[test]
    fn requests_and_responses_cross_the_ring_many_times() {
        let (page, mut front, mut back) = ends();
        for id in 0..100u32 {
            front.push(page, &id.to_ne_bytes());
            let _ = front.publish(page);
            assert_eq!(back.ready(page), Ok(1));
            let mut entry = [0; 4];
            assert_eq!(back.pop(page, &mut entry), (id % SLOTS) as usize);
            assert_eq!(u32::from_ne_bytes(entry), id);
            assert_eq!(back.ready(page), Ok(0));
            back.push(page, &(!id).to_ne_bytes());
            let _ = back.publish(page);
            assert_eq!(front.ready(page), Ok(1));
            front.pop(page, &mut entry);
            assert_eq!(u32::from_ne_bytes(entry), !id);
        }
    }

    #[test]
    fn a_full_ring_has_no_room_until_a_response_was_read() {
        let (page, mut front, mut back) = ends();
        for _ in 0..SLOTS {
            front.push(page, &[0; 4]);
        }
        assert_eq!(front.room(), 0);
        let _ = front.publish(page);
        assert_eq!(back.ready(page), Ok(SLOTS));
        back.pop(page, &mut [0; 4]);
        assert_eq!(back.room(), 1);
        back.push(page, &[0; 4]);
        let _ = back.publish(page);
        assert_eq!((front.ready(page), front.room()), (Ok(1), 0));
        front.pop(page, &mut [0; 4]);
        assert_eq!(front.room(), 1);
    }

    #[test]
    fn an_event_is_due_only_when_the_peer_sleeps() {
        let (page, mut front, mut back) = ends();
        front.push(page, &[0]);
        assert!(front.publish(page).is_due());
        assert!(!front.publish(page).is_due(), "nothing new");
        front.push(page, &[0]);
        assert!(!front.publish(page).is_due(), "the backend is still awake");
        back.pop(page, &mut [0]);
        assert!(back.final_check(page), "a request is ready");
        back.pop(page, &mut [0]);
        assert!(!back.final_check(page));
        front.push(page, &[0]);
        assert!(front.publish(page).is_due());
        assert!(!front.final_check(page));
    }

    #[test]
    fn impossible_indexes_of_a_frontend_are_detected() {
        let (page, _, mut back) = ends();
        for claim in [SLOTS + 1, 1 << 31, u32::MAX] {
            page.store_u32(REQ_PROD, claim, Ordering::Relaxed);
            assert_eq!(back.ready(page), Err(Errno::EPROTO));
        }
        // Taking back a request that was read is invalid too.
        page.store_u32(REQ_PROD, 2, Ordering::Relaxed);
        back.pop(page, &mut [0]);
        back.pop(page, &mut [0]);
        page.store_u32(REQ_PROD, 1, Ordering::Relaxed);
        assert_eq!(back.ready(page), Err(Errno::EPROTO));
    }

    #[test]
    fn impossible_indexes_of_a_backend_are_detected() {
        let (page, mut front, _) = ends();
        front.push(page, &[0]);
        let _ = front.publish(page);
        for claim in [2, 1 << 31, u32::MAX] {
            page.store_u32(RSP_PROD, claim, Ordering::Relaxed);
            assert_eq!(front.ready(page), Err(Errno::EPROTO));
        }
    }
}
