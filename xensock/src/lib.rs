//! The XenSock and PV Calls protocols, both ends.
//!
//! A guest's sockets live in another domain, the backend's. The guest forwards socket calls over a
//! command ring, and each connection's bytes move over its own pair of rings. This crate has
//! the wire formats ([`wire`]), the rings ([`ring`]), the frontend with its socket API ([`front`]),
//! and the backend's protocol engine ([`back`]). It makes no hypercall and opens no socket of an
//! operating system: a frontend reaches its machine through [`xen::Machine`], a backend its domain
//! through [`back::Host`].
#![cfg_attr(not(any(test, feature = "testing")), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod back;
pub mod front;
pub mod ring;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wire;

pub use xen::Errno;
