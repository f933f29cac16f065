//! A network interface of the guest's own, for guests that need an address, raw control, or a host without
//! xensockd.
//!
//! - [`Nic`]: what the stack needs of an interface, and an interface has to keep.
#![no_std]
#![forbid(unsafe_code)]

mod nic;

pub use nic::{Link, Nic};
