//! Requests and responses as plain Rust values, and the dialects that put them on a ring.
//!
//! The rest of the crate works with [`Request`]s, [`Response`]s and [`Layout`]s. A [`Protocol`],
//! which is a [`Dialect`] with [`Extensions`], determines their form in shared memory: command
//! numbers, slot sizes, offsets, xenstore nodes. Nothing here touches a command ring itself:
//! requests and responses are decoded from private copies, so they cannot change after they were
//! checked.

mod codec;
mod dialect;
mod draft1;
mod extensions;
mod field;
mod layout;
mod message;
mod options;
mod protocol;
mod pvcalls;
mod record;

pub use dialect::Dialect;
pub use extensions::Extensions;
pub use field::Family;
pub use layout::{Direction, EventIndexes, Layout, MAX_SLOT, Region, Slots};
pub use message::{
    Call, Command, Header, Malformed, Request, Response, RingGrants, RingOffer, Shutdown,
};
pub use options::{Options, SocketOption};
pub use protocol::{Orders, Protocol};
pub use pvcalls::RING_LIST;
pub use record::{Next, RECORD_HEADER, Record, longest_payload};
pub use xensock_stream::Group;
