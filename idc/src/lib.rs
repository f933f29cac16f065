//! Inter-domain communication (IDC): endpoints, messages, transactions and remote buffers, between
//! domains of one Xen host or over a network.
//!
//! | module | content |
//! |---|---|
//! | [`address`] | who is to be met: a place and a service |
//! | [`quota`] | what an end is ready to receive |
//! | [`life`] | the life of a connection |
//! | [`publication`] | what an end shows to the other end, as text |
//! | [`buffer`] | local memory, and memory of others by reference |
//! | [`endpoint`] | endpoints: their events, messages and transactions |
//! | [`node`] | this domain or process, from which endpoints get what they need |
//! | [`transport`] | what a transport does: meetings and links |
//! | [`xen`](mod@xen) | the transport between domains of one host |
//! | [`tcp`] | the transport over TCP |
//! | [`either`] | two transports, between which the address decides |
//! | [`wire`] | the frames on a link |
//! | `exam` | what two ends can see of each other, tried (feature `exam`) |
//! | `testing` | a TCP network in memory, for tests (feature `testing`) |
#![no_std]
#![allow(async_fn_in_trait, reason = "everything is for one thread")]

extern crate alloc;

pub mod address;
pub mod buffer;
mod connection;
mod driver;
pub mod either;
pub mod endpoint;
#[cfg(feature = "exam")]
pub mod exam;
pub mod life;
pub mod node;
pub mod publication;
pub mod quota;
mod slots;
pub mod tcp;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod time;
pub mod transport;
pub mod wire;
pub mod xen;

pub use address::{Address, AddressError, Place, Service};
pub use buffer::{Courier, LocalBuffer, Registration, RemoteBuffer, Rights, TransferError};
pub use endpoint::{
    Disconnect, Endpoint, Event, Events, Incoming, Received, Response, TransportError,
};
pub use node::{Node, Resource};
pub use quota::Quota;
