//! A unikernel for Xen PVH domains whose sockets live in dom0.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod config;
pub mod metrics;
