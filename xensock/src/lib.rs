//! The XenSock and PV Calls protocols, both ends.
//!
//! A guest's sockets live in another domain, the backend. The guest forwards socket calls over a
//! command ring and moves data over one pair of rings per connection. This crate has the wire
//! formats, the rings, the frontend with its socket API, and the backend's protocol engine. It makes
//! no hypercall and opens no socket of an operating system: it reaches the world through
//! [`xen::Machine`] (a frontend's) and [`back::Host`] (a backend's).
#![cfg_attr(not(any(test, feature = "testing")), no_std)]

extern crate alloc;

pub mod back;
pub mod front;
pub mod ring;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wire;

pub use xen::Errno;
