//! The command ring: requests and responses in the slots of one page.
//!
//! [`xen::frontend::Ring`] does the arithmetic of `io/ring.h`; the two ends here encode and decode
//! the slots. [`Errno::EPROTO`]: the peer's index is impossible, and the ring cannot be used any
//! more.
//!
//! For the rings of a connection's data see [`Producer`] and [`Consumer`].

pub use xen::frontend::{
    Consumer, Notify, NotifyPolicy, Producer, copy_in, copy_out, len, split_at,
};

use crate::wire::{MAX_SLOT, Malformed, Protocol, Request, Response, Slots};
use xen::frontend::Ring;
use xen::{Errno, Shared};

/// A frontend's end.
#[derive(Debug)]
pub struct CommandFront {
    protocol: Protocol,
    slots: Slots,
    ring: Ring,
}

impl CommandFront {
    /// Initialises the ring in a zeroed page that the peer has not seen yet.
    pub fn new(protocol: impl Into<Protocol>, page: Shared<'_>) -> Self {
        let protocol = protocol.into();
        let slots = protocol.slots();
        CommandFront { protocol, slots, ring: Ring::front(page, slots.count, slots.stride()) }
    }

    /// How many slots the ring has.
    pub fn slots(&self) -> u32 {
        self.slots.count
    }

    /// How many requests may be pushed before a response is read.
    pub fn free(&self) -> u32 {
        self.ring.room()
    }

    /// Puts a request into the next slot. The peer sees it after
    /// [`publish`](CommandFront::publish). [`Errno::EAGAIN`] if no slot is free, or an error of
    /// [`Protocol::encode_request`].
    pub fn push(&mut self, page: Shared<'_>, request: &Request) -> Result<(), Errno> {
        if self.free() == 0 {
            return Err(Errno::EAGAIN);
        }
        let mut copy = [0; MAX_SLOT];
        let copy = &mut copy[..self.slots.request];
        self.protocol.encode_request(request, copy)?;
        self.ring.push(page, copy);
        Ok(())
    }

    /// Shows the peer what was pushed.
    pub fn publish(&mut self, page: Shared<'_>) -> Notify {
        self.ring.publish(page)
    }

    /// Takes the next response, if there is one.
    pub fn pop(&mut self, page: Shared<'_>) -> Result<Option<Response>, Errno> {
        if self.ring.ready(page)? == 0 {
            return Ok(None);
        }
        let mut copy = [0; MAX_SLOT];
        let copy = &mut copy[..self.slots.response];
        self.ring.pop(page, copy);
        Ok(Some(self.protocol.decode_response(copy)))
    }

    /// Requests an event at the next response. Returns whether one is there already: then the
    /// caller must not sleep.
    pub fn final_check(&self, page: Shared<'_>) -> bool {
        self.ring.final_check(page)
    }
}

/// A backend's end.
#[derive(Debug)]
pub struct CommandBack {
    protocol: Protocol,
    slots: Slots,
    ring: Ring,
}

impl CommandBack {
    /// Attaches to a ring that its frontend has just initialised.
    pub fn new(protocol: impl Into<Protocol>) -> Self {
        let protocol = protocol.into();
        let slots = protocol.slots();
        CommandBack { protocol, slots, ring: Ring::back(slots.count, slots.stride()) }
    }

    /// Takes the next request, if there is one.
    pub fn pop(&mut self, page: Shared<'_>) -> Result<Option<Result<Request, Malformed>>, Errno> {
        if self.ring.ready(page)? == 0 {
            return Ok(None);
        }
        let mut copy = [0; MAX_SLOT];
        let copy = &mut copy[..self.slots.request];
        self.ring.pop(page, copy);
        Ok(Some(self.protocol.decode_request(copy)))
    }

    /// Puts a response into the next slot. The peer sees it after
    /// [`publish`](CommandBack::publish).
    ///
    /// # Panics
    /// If every request that was taken has its response already, which is a bug of the caller.
    pub fn push(&mut self, page: Shared<'_>, response: &Response) {
        assert!(self.ring.room() > 0, "a response without a request: {response:?}");
        let mut copy = [0; MAX_SLOT];
        let copy = &mut copy[..self.slots.response];
        self.protocol.encode_response(response, copy);
        self.ring.push(page, copy);
    }

    /// Shows the peer what was pushed.
    pub fn publish(&mut self, page: Shared<'_>) -> Notify {
        self.ring.publish(page)
    }

    /// Requests an event at the next request. Returns whether one is there already: then the caller
    /// must not sleep.
    pub fn final_check(&self, page: Shared<'_>) -> bool {
        self.ring.final_check(page)
    }
}

#[cfg(test)]
mod tests;
