//! What differs between the protocols that this crate speaks.

use super::{Layout, Malformed, Request, Response, RingGrants};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::ops::RangeInclusive;
use xen::{Errno, GrantRef, PAGE_SIZE, Shared};

/// The largest slot of any dialect, in bytes: enough room for a private copy.
pub const MAX_SLOT: usize = 512;

/// Bytes before the first slot of a command ring (`ring.h`).
pub(crate) const RING_HEADER: usize = 64;

/// The slots of a dialect's command ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Bytes of a request.
    pub request: usize,
    /// Bytes of a response.
    pub response: usize,
    /// The number of slots, a power of two.
    pub count: u32,
}

impl Slots {
    /// As many slots as fit in a page (`__CONST_RING_SIZE` in `ring.h`).
    pub const fn in_a_page(request: usize, response: usize) -> Slots {
        let stride = if request > response { request } else { response };
        assert!(stride <= MAX_SLOT);
        let fit = (PAGE_SIZE - RING_HEADER) / stride;
        Slots { request, response, count: 1 << fit.ilog2() }
    }

    /// Bytes from one slot to the next.
    pub const fn stride(&self) -> usize {
        if self.request > self.response { self.request } else { self.response }
    }
}

/// The data rings that a backend offers, as its xenstore nodes say: each has two to the power of its
/// order pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The smallest order that it maps.
    pub min_order: u32,
    /// The order that it proposes to who has no wish.
    pub default_order: u32,
    /// The largest order that it maps.
    pub max_order: u32,
}

/// A protocol between a frontend and a backend, as it was published. What ends that know more than that
/// agree on is a [`Protocol`](super::Protocol)'s affair.
///
/// All dialects start a request with its number (`u32`), its command (`u32`) and its socket (`u64`). Slots are handed over as private copies of exactly [`Slots::request`] or [`Slots::response`] bytes.
pub trait Dialect: Debug + Sync {
    /// The device's type: the name of its folder in xenstore.
    fn device(&self) -> &'static str;

    /// The slots of its command ring.
    fn slots(&self) -> Slots;

    /// Whether sockets are created by a command of their own.
    fn has_socket_command(&self) -> bool;

    /// Whether a RELEASE can say that the ring will be used again.
    fn can_reuse_rings(&self) -> bool;

    /// The orders that a data ring may have, `resizable` where the ends have agreed on
    /// [`Extensions::RESIZE`](super::Extensions::RESIZE).
    fn orders(&self, resizable: bool) -> RangeInclusive<u32>;

    /// The order that suits most.
    fn default_order(&self) -> u32;

    /// The places in a data ring of this order. [`Errno::EINVAL`] if the dialect has no such order.
    fn layout(&self, order: u32) -> Result<Layout, Errno>;

    /// Writes a request; of an extension's command only what all commands have in common.
    fn encode_request(&self, request: &Request, slot: &mut [u8]) -> Result<(), Errno>;

    /// Reads a request that is no extension's.
    fn decode_request(&self, slot: &[u8]) -> Result<Request, Malformed>;

    /// Writes a response.
    fn encode_response(&self, response: &Response, slot: &mut [u8]);

    /// Reads a response.
    fn decode_response(&self, slot: &[u8]) -> Response;

    /// Writes the references of a ring's pages into a request's field.
    fn put_grants(&self, slot: &mut [u8], at: usize, grants: &RingGrants) -> Result<(), Errno>;

    /// Reads them.
    fn grants_at(&self, slot: &[u8], at: usize) -> Result<RingGrants, Errno>;

    /// Fills in the indexes page of a ring, which is all zeros, and says what the request that opens
    /// the ring carries. `grants` are those of all pages of [`Layout`], in order.
    fn offer_ring(&self, indexes: Shared<'_>, order: u32, grants: &[GrantRef]) -> RingGrants;

    /// Reads, once, the order and the data pages' grants from an indexes page
    /// ([`RingGrants::Indexes`]). [`Errno::EINVAL`] if the order is larger than `max_order` or out of the
    /// dialect's range.
    fn read_ring(&self, indexes: Shared<'_>, max_order: u32)
    -> Result<(u32, Vec<GrantRef>), Errno>;

    /// The nodes that a backend publishes, and their values, for rings up to `max_order`.
    fn backend_nodes(&self, max_order: u32) -> Vec<(&'static str, String)>;

    /// The nodes that a frontend publishes beside `port` and `ring-ref`, and their values.
    fn frontend_nodes(&self) -> Vec<(&'static str, String)>;

    /// The names of the backend's nodes that [`check_backend`](Dialect::check_backend) wants to see.
    fn wanted_of_backend(&self) -> &'static [&'static str];

    /// Judges a backend by its nodes, in the order of
    /// [`wanted_of_backend`](Dialect::wanted_of_backend). An error names the node and what to do.
    fn check_backend(&self, nodes: &[Option<String>]) -> Result<Offer, String>;

    /// The names of the frontend's nodes that [`check_frontend`](Dialect::check_frontend) wants to see.
    fn wanted_of_frontend(&self) -> &'static [&'static str];

    /// Judges a frontend by its nodes, likewise.
    fn check_frontend(&self, nodes: &[Option<String>]) -> Result<(), String>;
}
