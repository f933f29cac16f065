//! The command ring: one page with the layout of `xen/include/public/io/ring.h`.
//!
//! Requests and responses share the slots: a response takes the place of a request that was read.
//! Pushing follows `RING_PUSH_…_AND_CHECK_NOTIFY`, going to sleep `RING_FINAL_CHECK_FOR_…`.

use super::Notify;
use crate::wire::{MAX_SLOT, Malformed, Protocol, Request, Response, Slots};
use core::sync::atomic::Ordering;
use xen::shared::fence;
use xen::{Errno, Shared};

pub(super) const REQ_PROD: usize = 0;
pub(super) const REQ_EVENT: usize = 4;
pub(super) const RSP_PROD: usize = 8;
pub(super) const RSP_EVENT: usize = 12;
const SLOTS: usize = crate::wire::RING_HEADER;

fn slot(slots: Slots, index: u32) -> usize {
    SLOTS + (index & (slots.count - 1)) as usize * slots.stride()
}

/// Publishes a producer's index, and tells whether the peer asked for an event by then.
fn publish(page: Shared<'_>, prod: usize, event: usize, old: u32, new: u32) -> Notify {
    if old == new {
        return Notify::NotDue;
    }
    page.store_u32(prod, new, Ordering::Release);
    // The peer sets its event index, then looks at the producer's: with a barrier on both sides, at
    // least one of the two sees the other.
    fence(Ordering::SeqCst);
    let event = page.load_u32(event, Ordering::Relaxed);
    if new.wrapping_sub(event) < new.wrapping_sub(old) { Notify::Due } else { Notify::NotDue }
}

/// A frontend's end.
#[derive(Debug)]
pub struct CommandFront {
    protocol: Protocol,
    slots: Slots,
    req_prod: u32,
    req_published: u32,
    rsp_cons: u32,
}

impl CommandFront {
    /// Initialises the ring in a zeroed page that the peer has not seen yet.
    pub fn new(protocol: impl Into<Protocol>, page: Shared<'_>) -> Self {
        page.store_u32(REQ_EVENT, 1, Ordering::Relaxed);
        page.store_u32(RSP_EVENT, 1, Ordering::Relaxed);
        CommandFront::at(protocol, 0)
    }

    /// The end of a ring on which so many requests have been answered already.
    pub(super) fn at(protocol: impl Into<Protocol>, index: u32) -> Self {
        let protocol = protocol.into();
        CommandFront {
            protocol,
            slots: protocol.slots(),
            req_prod: index,
            req_published: index,
            rsp_cons: index,
        }
    }

    /// How many slots the ring has.
    pub fn slots(&self) -> u32 {
        self.slots.count
    }

    /// How many requests may be pushed before a response is read.
    pub fn free(&self) -> u32 {
        self.slots.count - self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Puts a request into the next slot, where the peer sees it after
    /// [`publish`](CommandFront::publish). [`Errno::EAGAIN`] when no slot is free,
    /// or what
    /// [`Protocol::encode_request`] fails with.
    pub fn push(&mut self, page: Shared<'_>, request: &Request) -> Result<(), Errno> {
        if self.free() == 0 {
            return Err(Errno::EAGAIN);
        }
        let mut copy = [0; MAX_SLOT];
        let copy = &mut copy[..self.slots.request];
        self.protocol.encode_request(request, copy)?;
        page.write(slot(self.slots, self.req_prod), copy);
        self.req_prod = self.req_prod.wrapping_add(1);
        Ok(())
    }

    /// Shows the peer what was pushed.
    pub fn publish(&mut self, page: Shared<'_>) -> Notify {
        let old = core::mem::replace(&mut self.req_published, self.req_prod);
        publish(page, REQ_PROD, REQ_EVENT, old, self.req_prod)
    }

    /// Takes the next response, if there is one. [`Errno::EPROTO`] when the peer claims more responses
    /// than it was asked for: the ring is of no use any more.
    pub fn pop(&mut self, page: Shared<'_>) -> Result<Option<Response>, Errno> {
        let ready = page.load_u32(RSP_PROD, Ordering::Acquire).wrapping_sub(self.rsp_cons);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.req_published.wrapping_sub(self.rsp_cons) {
            return Err(Errno::EPROTO);
        }
        let mut copy = [0; MAX_SLOT];
        let copy = &mut copy[..self.slots.response];
        page.read(slot(self.slots, self.rsp_cons), copy);
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(self.protocol.decode_response(copy)))
    }

    /// Asks for an event at the next response, and tells whether there is one already: then there is
    /// no reason to sleep.
    pub fn final_check(&self, page: Shared<'_>) -> bool {
        page.store_u32(RSP_EVENT, self.rsp_cons.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        page.load_u32(RSP_PROD, Ordering::Relaxed) != self.rsp_cons
    }
}

/// A backend's end.
#[derive(Debug)]
pub struct CommandBack {
    protocol: Protocol,
    slots: Slots,
    req_cons: u32,
    rsp_prod: u32,
    rsp_published: u32,
}

impl CommandBack {
    /// Attaches to a ring that its frontend has just initialised.
    pub fn new(protocol: impl Into<Protocol>) -> Self {
        CommandBack::at(protocol, 0)
    }

    /// The end of a ring on which so many requests have been answered already.
    pub(super) fn at(protocol: impl Into<Protocol>, index: u32) -> Self {
        let protocol = protocol.into();
        CommandBack {
            protocol,
            slots: protocol.slots(),
            req_cons: index,
            rsp_prod: index,
            rsp_published: index,
        }
    }

    /// How many requests were taken and not yet answered.
    pub fn unanswered(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// Takes the next request, if there is one. [`Errno::EPROTO`] when the peer claims more requests
    /// than there are slots.
    pub fn pop(&mut self, page: Shared<'_>) -> Result<Option<Result<Request, Malformed>>, Errno> {
        let req_prod = page.load_u32(REQ_PROD, Ordering::Acquire);
        if req_prod == self.req_cons {
            return Ok(None);
        }
        let claimed = req_prod.wrapping_sub(self.rsp_prod);
        if claimed > self.slots.count || claimed < self.unanswered() {
            return Err(Errno::EPROTO);
        }
        let mut copy = [0; MAX_SLOT];
        let copy = &mut copy[..self.slots.request];
        page.read(slot(self.slots, self.req_cons), copy);
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(Some(self.protocol.decode_request(copy)))
    }

    /// Puts a response into the next slot, where the peer sees it after
    /// [`publish`](CommandBack::publish).
    ///
    /// # Panics
    /// When every request that was taken has its response already: a bug of the caller's own.
    pub fn push(&mut self, page: Shared<'_>, response: &Response) {
        assert!(self.unanswered() > 0, "a response without a request: {response:?}");
        let mut copy = [0; MAX_SLOT];
        let copy = &mut copy[..self.slots.response];
        self.protocol.encode_response(response, copy);
        page.write(slot(self.slots, self.rsp_prod), copy);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Shows the peer what was pushed.
    pub fn publish(&mut self, page: Shared<'_>) -> Notify {
        let old = core::mem::replace(&mut self.rsp_published, self.rsp_prod);
        publish(page, RSP_PROD, RSP_EVENT, old, self.rsp_prod)
    }

    /// Asks for an event at the next request, and tells whether there is one already: then there is
    /// no reason to sleep.
    pub fn final_check(&self, page: Shared<'_>) -> bool {
        page.store_u32(REQ_EVENT, self.req_cons.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        page.load_u32(REQ_PROD, Ordering::Relaxed) != self.req_cons
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Call, Dialect};
    use xen::testing::page;

    fn request(id: u32) -> Request {
        Request { id, socket: u64::from(id), call: Call::Poll }
    }

    #[test]
    fn requests_and_their_answers_cross_the_ring_many_times_round() {
        let page = page();
        let mut front = CommandFront::new(Dialect::PvCalls, page);
        let mut back = CommandBack::new(Dialect::PvCalls);
        for id in 0..100 {
            front.push(page, &request(id)).unwrap();
            let _ = front.publish(page);
            let got = back.pop(page).unwrap().unwrap().unwrap();
            assert_eq!(got, request(id));
            assert_eq!(back.pop(page), Ok(None));
            back.push(page, &got.answer(Err(Errno(1))));
            let _ = back.publish(page);
            assert_eq!(front.pop(page), Ok(Some(got.answer(Err(Errno(1))))));
            assert_eq!(front.pop(page), Ok(None));
        }
    }

    #[test]
    fn a_full_ring_takes_no_more_until_an_answer_was_read() {
        let page = page();
        let mut front = CommandFront::new(Dialect::PvCalls, page);
        let mut back = CommandBack::new(Dialect::PvCalls);
        for id in 0..32 {
            front.push(page, &request(id)).unwrap();
        }
        assert_eq!(front.push(page, &request(32)), Err(Errno::EAGAIN));
        let _ = front.publish(page);
        let first = back.pop(page).unwrap().unwrap().unwrap();
        back.push(page, &first.answer(Ok(0)));
        let _ = back.publish(page);
        assert_eq!(front.free(), 0);
        front.pop(page).unwrap().unwrap();
        assert_eq!(front.free(), 1);
    }

    #[test]
    fn an_event_is_due_only_when_the_peer_sleeps() {
        let page = page();
        let mut front = CommandFront::new(Dialect::PvCalls, page);
        let mut back = CommandBack::new(Dialect::PvCalls);
        front.push(page, &request(0)).unwrap();
        assert!(front.publish(page).is_due());
        assert!(!front.publish(page).is_due(), "nothing new");
        front.push(page, &request(1)).unwrap();
        assert!(!front.publish(page).is_due(), "the backend is still awake");
        back.pop(page).unwrap().unwrap().unwrap();
        assert!(back.final_check(page), "a request is waiting");
        back.pop(page).unwrap().unwrap().unwrap();
        assert!(!back.final_check(page));
        front.push(page, &request(2)).unwrap();
        assert!(front.publish(page).is_due());
        assert!(!front.final_check(page));
    }

    #[test]
    fn a_frontend_with_impossible_indexes_is_found_out() {
        let page = page();
        let _front = CommandFront::new(Dialect::PvCalls, page);
        for claim in [33, 1 << 31, u32::MAX] {
            page.store_u32(REQ_PROD, claim, Ordering::Relaxed);
            assert_eq!(CommandBack::new(Dialect::PvCalls).pop(page), Err(Errno::EPROTO));
        }
        // Taking a request back after it was read is no better.
        let mut back = CommandBack::new(Dialect::PvCalls);
        page.store_u32(REQ_PROD, 2, Ordering::Relaxed);
        back.pop(page).unwrap();
        back.pop(page).unwrap();
        page.store_u32(REQ_PROD, 1, Ordering::Relaxed);
        assert_eq!(back.pop(page), Err(Errno::EPROTO));
    }

    #[test]
    fn a_backend_that_answers_what_was_not_asked_is_found_out() {
        let page = page();
        let mut front = CommandFront::new(Dialect::PvCalls, page);
        front.push(page, &request(0)).unwrap();
        let _ = front.publish(page);
        for claim in [2, 1 << 31, u32::MAX] {
            page.store_u32(RSP_PROD, claim, Ordering::Relaxed);
            assert_eq!(front.pop(page), Err(Errno::EPROTO));
        }
    }
}
