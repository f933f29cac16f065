//! A unikernel for Xen PVH domains, with sockets in dom0 (feature `xensock`) or a TCP/IP stack
//! over a network interface (feature `netfront`).
//!
//! The crate is a library for bare metal. An image is a binary crate, built for the target
//! `x86_64-xen-pvh.json`, that names its main function with [`entry!`]. The main function gets the
//! [`System`].
//!
//! # Crashes
//!
//! A panic, a wild pointer, a stack overflow and a failed allocation end the domain, with a
//! report on its console. [`crash`] explains the report, the role of `on_crash` in the domain's
//! configuration, and how to find the line of code.
//!
//! # No floating point registers
//!
//! The target computes with floats in software, in general registers, with the same results as
//! SSE2. x87, MMX, SSE and AVX are switched off at boot (`boot/pvh.S`) and stay off, so nothing
//! has to save their registers, not even an interrupt. Such an instruction, which only assembly
//! can contain, ends in a crash report that says so. Floats are correct but slow: an app that
//! computes a lot should use integers.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

#[allow(unsafe_code, reason = "gives free pages to Xen, and takes them back")]
pub mod balloon;
pub mod crash;
#[allow(unsafe_code, reason = "`getrandom` calls its backend with a raw pointer")]
pub mod entropy;
pub mod executor;
#[allow(unsafe_code, reason = "the call instruction, and the MSR through which Xen fills the page")]
pub mod hypercall;
#[allow(unsafe_code, reason = "maps Xen's pages, and promises who uses them")]
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod system;

#[allow(unsafe_code, reason = "sets up memory and machine, each once and in order")]
mod boot;
mod command_line;
#[allow(
    unsafe_code,
    reason = "the processor's tables and interrupts; values for all code of one CPU"
)]
mod cpu;
#[allow(unsafe_code, reason = "writes to an I/O port")]
mod logger;
mod stages;
mod time;
mod timers;

pub use boot::COMMAND_LINE_SIZE;
pub use system::System;
pub use time::wall_clock;
