//! A unikernel for Xen PVH domains whose sockets live in dom0.
//!
//! The crate is a library: an image of one's own is a binary crate that names its main function with
//! [`entry!`] and is built for the target `x86_64-xen-pvh.json`. Built for an ordinary operating
//! system, the crate has those of its parts that need no machine of their own, for their tests.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod apps;
pub mod boot;
pub mod config;
pub mod cpu;
pub mod executor;
pub mod memory;
pub mod metrics;
pub mod time;

#[cfg(target_os = "none")]
mod crash;
#[cfg(target_os = "none")]
mod debug_port;
#[cfg(target_os = "none")]
mod logger;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub mod system;

#[cfg(target_os = "none")]
pub use system::System;
