//! A unikernel for Xen PVH domains whose sockets live in dom0.
//!
//! The crate is a library: an image of one's own is a binary crate that names its main function with
//! [`entry!`] and is built for the target `x86_64-xen-pvh.json`. Built for an ordinary operating
//! system, the crate has those of its parts that need no machine of their own, for their tests.
//!
//! # When an app crashes
//!
//! A panic, a wild pointer, a stack or memory that is used up end the domain, with a report on its console:
//! [`crash`] tells what is in it, what `on_crash` of the domain's configuration has to do with it, and how to
//! find the line of code.
//!
//! # No floating point registers
//!
//! The target computes with floats in software, in general registers, to the same bits as the processor's own
//! SSE2 arithmetic. x87, MMX, SSE and AVX are switched off at boot (`boot/pvh.S`) and stay so: nothing has to save their
//! registers, not at an interrupt either. An instruction of theirs, which only assembly can contain, ends
//! in a crash report that says so. Floats are right, and slow; an app that computes a lot should do so in
//! integers.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod apps;
pub mod boot;
pub mod config;
pub mod cpu;
pub mod crash;
pub mod executor;
pub mod memory;
pub mod metrics;
pub mod time;

#[cfg(target_os = "none")]
mod balloon;
#[cfg(target_os = "none")]
#[allow(unsafe_code, reason = "writes to an I/O port")]
mod debug_port;
#[cfg(target_os = "none")]
mod logger;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub mod system;

#[cfg(target_os = "none")]
pub use system::System;
