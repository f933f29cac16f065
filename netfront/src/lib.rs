//! A Xen guest's own network interface, and TCP and UDP over it.
//!
//! XenSock's sockets need neither. This crate is for guests that need an address of their own,
//! other protocols or direct control of the network, and for hosts without xensockd.
//!
//! - [`vif`]: the frontend of a virtual interface (netfront)
//! - [`stack`]: TCP and UDP over an interface, with the traits of `edge-nal` and
//!   `embedded-io-async`
//! - [`Resolver`]: DNS over any stack's sockets
//! - [`Nic`]: what a stack needs besides smoltcp's [`Device`](smoltcp::phy::Device)
//! - [`Capture`]: the frames of an interface, in libpcap's format
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod capture;
mod nic;
mod resolver;
pub mod stack;
pub mod vif;

pub use capture::Capture;
pub use nic::{Link, Nic};
pub use resolver::{NameServers, ResolveError, Resolver, TcpOnly};
pub use smoltcp;
