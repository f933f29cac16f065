//! A network interface of the guest's own, for guests that need an address, raw control, or a host without
//! xensockd.
//!
//! - [`vif`]: the frontend of a virtual interface
//! - [`stack`]: TCP over an interface, behind the socket API's traits
//! - [`Resolver`]: names to addresses over any stack's TCP
//! - [`Nic`]: what the stack needs of an interface, and an interface has to keep; [`Wrapped`] has smoltcp's
//!   tracer, fault injector or pcap writer in between
#![no_std]

extern crate alloc;

mod capture;
mod names;
mod nic;
pub mod stack;
pub mod vif;

pub use capture::Capture;
pub use names::{ResolveError, Resolver};
pub use nic::{Control, Link, Nic, Wrapped};
