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
/// Reads a domain's home path.
pub const XS_GET_DOMAIN_PATH: u32 = 10;
/// Writes a node's value, creating the node and its parents where needed.
pub const XS_WRITE: u32 = 11;
/// Creates an empty node.
pub const XS_MKDIR: u32 = 12;
/// Removes a node and all below it.
pub const XS_RM: u32 = 13;
/// Sets a node's permissions.
pub const XS_SET_PERMS: u32 = 14;
/// A watch fired. Sent by xenstored without a request.
pub const XS_WATCH_EVENT: u32 = 15;
/// A reply with the name of an error.
pub const XS_ERROR: u32 = 16;
/// Lists a part of a node's children, for a list that does not fit into one message.
pub const XS_DIRECTORY_PART: u32 = 22;

structures! {
    /// The header of every message (`struct xsd_sockmsg`).
    #[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    SockMsg: 16 {
        /// One of the `XS_` message types.
        kind: U32 = 0,
        /// Chosen by the client, copied to the reply.
        req_id: U32 = 4,
        /// The transaction's id, or 0 outside any.
        tx_id: U32 = 8,
        /// The size of the payload in bytes.
        len: U32 = 12,
    }
}

/// The longest payload.
pub const XENSTORE_PAYLOAD_MAX: usize = 4096;
/// The longest path that begins with a slash.
pub const XENSTORE_ABS_PATH_MAX: usize = 3072;
/// The longest path below the domain's home.
pub const XENSTORE_REL_PATH_MAX: usize = 2048;
/// The size of each of a domain's two rings in bytes, a power of two.
pub const XENSTORE_RING_SIZE: usize = 1024;

structures! {
    /// The page that a domain and xenstored share (`struct xenstore_domain_interface`).
    XenstoreDomainInterface: 2076 {
        /// Requests, written by the domain.
        req: [u8; XENSTORE_RING_SIZE] = 0,
        /// Replies and watch events, written by xenstored.
        rsp: [u8; XENSTORE_RING_SIZE] = 1024,
        /// Consumer index of the requests, written by xenstored.
        req_cons: u32 = 2048,
        /// Producer index of the requests, written by the domain.
        req_prod: u32 = 2052,
        /// Consumer index of the replies, written by the domain.
        rsp_cons: u32 = 2056,
        /// Producer index of the replies, written by xenstored.
        rsp_prod: u32 = 2060,
        /// The server's features (`XENSTORE_SERVER_FEATURE_*`).
        server_features: u32 = 2064,
        /// The connection's state (`XENSTORE_CONNECTED` or `XENSTORE_RECONNECT`).
        connection: u32 = 2068,
        /// Why the server closed the connection (`XENSTORE_ERROR_*`).
        error: u32 = 2072,
    }
}
