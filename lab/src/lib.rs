//! The lab: real Xen inside QEMU, driven from the host.
//!
//! [`Lab::boot`] unpacks a dom0 from Debian's packages, boots Xen and that dom0 in QEMU, and waits
//! until `xl` works. The machine lives as long as the [`Lab`]: it dies with it, and with the
//! process. [`Dom0`] runs commands there, moves files, forwards ports and reads consoles; it can
//! also be had by [`Dom0::attach`] from a machine that another process keeps.
#![forbid(unsafe_code)]

mod archive;
mod bridge;
mod cache;
mod dom0;
mod domain;
mod image;
mod linux;
mod machine;
mod modules;
mod packages;
mod process;
mod qemu;
mod qmp;
mod serial;
mod ssh;
mod state;
mod tree;

pub use bridge::Interface;
pub use dom0::{Dom0, Output, check_port};
pub use domain::Domain;
pub use linux::LinuxEnds;
pub use machine::{Booting, Lab};
pub use process::Kept;
pub use qemu::{Accel, Options, dom0_port};
pub use state::{State, keeper};
pub use tree::Tree;
