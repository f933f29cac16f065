//! `io/xs_wire.h`: the messages that go to and from xenstored, and a domain's ring for them.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

// Message types (`enum xsd_sockmsg_type`).

/// Lists a node's children.
pub const XS_DIRECTORY: u32 = 1;
/// Reads a node's value.
pub const XS_READ: u32 = 2;
/// Reads a node's permissions.
pub const XS_GET_PERMS: u32 = 3;
/// Registers a watch.
pub const XS_WATCH: u32 = 4;
/// Ends a watch.
pub const XS_UNWATCH: u32 = 5;
/// Starts a transaction.
pub const XS_TRANSACTION_START: u32 = 6;
/// Ends a transaction.
pub const XS_TRANSACTION_END: u32 = 7;
/// Asks for a domain's home path.
pub const XS_GET_DOMAIN_PATH: u32 = 10;
/// Writes a node's value, creating the node and its parents where needed.
pub const XS_WRITE: u32 = 11;
/// Creates an empty node.
pub const XS_MKDIR: u32 = 12;
/// Removes a node and all below it.
pub const XS_RM: u32 = 13;
/// Sets a node's permissions.
pub const XS_SET_PERMS: u32 = 14;
/// A watch fired: sent by xenstored, unasked.
pub const XS_WATCH_EVENT: u32 = 15;
/// An answer that carries the name of an error.
pub const XS_ERROR: u32 = 16;
/// Lists a part of a node's children, for a list that does not fit into one message.
pub const XS_DIRECTORY_PART: u32 = 22;

/// The header of every message (`struct xsd_sockmsg`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SockMsg {
    /// One of the `XS_` message types.
    pub kind: U32,
    /// Chosen by whoever asks, echoed in the answer.
    pub req_id: U32,
    /// The transaction's id, or 0 outside any.
    pub tx_id: U32,
    /// The number of bytes that follow.
    pub len: U32,
}

/// The longest payload.
pub const XENSTORE_PAYLOAD_MAX: usize = 4096;
/// The longest path that begins with a slash.
pub const XENSTORE_ABS_PATH_MAX: usize = 3072;
/// The longest path below the domain's home.
pub const XENSTORE_REL_PATH_MAX: usize = 2048;
/// Bytes in each of a domain's two rings, a power of two.
pub const XENSTORE_RING_SIZE: usize = 1024;

/// The page that a domain and xenstored share (`struct xenstore_domain_interface`).
#[derive(Debug)]
#[repr(C)]
pub struct XenstoreDomainInterface {
    /// Requests, written by the domain.
    pub req: [u8; XENSTORE_RING_SIZE],
    /// Answers and watch events, written by xenstored.
    pub rsp: [u8; XENSTORE_RING_SIZE],
    /// How many bytes of requests xenstored has taken.
    pub req_cons: u32,
    /// How many bytes of requests the domain has written.
    pub req_prod: u32,
    /// How many bytes of answers the domain has taken.
    pub rsp_cons: u32,
    /// How many bytes of answers xenstored has written.
    pub rsp_prod: u32,
    /// The server's features (`XENSTORE_SERVER_FEATURE_*`).
    pub server_features: u32,
    /// The connection's state (`XENSTORE_CONNECTED` or `XENSTORE_RECONNECT`).
    pub connection: u32,
    /// Why the server gave the connection up (`XENSTORE_ERROR_*`).
    pub error: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<SockMsg>() == 16);
    assert!(offset_of!(SockMsg, len) == 12);
    assert!(offset_of!(XenstoreDomainInterface, rsp) == 1024);
    assert!(offset_of!(XenstoreDomainInterface, req_cons) == 2048);
    assert!(offset_of!(XenstoreDomainInterface, rsp_prod) == 2060);
    assert!(offset_of!(XenstoreDomainInterface, error) == 2072);
    assert!(size_of::<XenstoreDomainInterface>() == 2076);
};
