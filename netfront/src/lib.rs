//! A network interface of the guest's own, for guests that need an address, raw control, or a host without
//! xensockd.
//!
//! - [`vif`]: the frontend of a virtual interface
//! - [`stack`]: TCP over an interface, behind the socket API's traits
//! - [`Resolver`]: names to addresses over any stack's TCP
//! - [`Nic`]: what the stack needs of an interface, beside smoltcp's [`Device`](smoltcp::phy::Device)
//! - [`Capture`]: the frames of an interface, in libpcap's format
#![no_std]

extern crate alloc;

mod capture;
mod nic;
mod resolver;
pub mod stack;
pub mod vif;

pub use capture::Capture;
pub use nic::{Link, Nic};
pub use resolver::{ResolveError, Resolver};
pub use smoltcp;
