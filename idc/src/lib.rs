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
//! | [`wire`] | the frames on a link |
//! | [`transport`] | what a transport does: meetings and links |
#![no_std]
#![allow(async_fn_in_trait, reason = "everything is for one thread")]

extern crate alloc;

pub mod address;
pub mod buffer;
pub mod life;
pub mod publication;
pub mod quota;
pub mod transport;
pub mod wire;

pub use address::{Address, AddressError, Place, Service};
pub use buffer::{LocalBuffer, RemoteBuffer, Rights};
pub use quota::Quota;
