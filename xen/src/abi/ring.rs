//! `io/ring.h`: the header of a ring of requests and responses (`DEFINE_RING_TYPES`), as offsets in
//! its page.

/// Requests produced, written by the frontend.
pub const REQ_PROD: usize = 0;
/// The backend asks for an event when the requests reach this index.
pub const REQ_EVENT: usize = 4;
/// Responses produced, written by the backend.
pub const RSP_PROD: usize = 8;
/// The frontend asks for an event when the responses reach this index.
pub const RSP_EVENT: usize = 12;
/// The size of the header, in bytes. The slots follow.
pub const RING_HEADER: usize = 64;
