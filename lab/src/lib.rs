//! A lab that runs real Xen inside QEMU and is driven from the host.
//!
//! [`Lab::boot`] builds a dom0 from Debian's packages, boots Xen and that dom0 in QEMU, and waits
//! until `xl` works. The machine ends when the [`Lab`] is dropped or its process ends. [`Dom0`]
//! runs commands in dom0, copies files, forwards ports and reads consoles; [`Dom0::attach`] does so
//! for a machine that another process keeps. A [`Domain`] is a guest.
//!
//! Relies on Debian 12 and its package servers, and on the programs that `.ci/setup` installs.
//! Needs no root and no KVM, changes nothing outside its folders, and listens on loopback only.
#![forbid(unsafe_code)]

mod archive;
mod bridge;
mod cache;
mod disk;
mod dom0;
mod domain;
mod driver_domain;
mod image;
mod linux;
mod linux_server;
mod machine;
mod modules;
mod packages;
mod peers;
mod process;
mod qemu;
mod qmp;
mod ssh;
mod state;
mod tree;
mod xen_program;

pub use bridge::Interface;
pub use disk::{DiskChain, DiskPorts};
pub use dom0::{Dom0, Output};
pub use domain::Domain;
pub use driver_domain::DriverDomain;
pub use linux::LinuxEnds;
pub use linux_server::{INIT_RUNS, LinuxServer, Needs};
pub use machine::{Booting, Lab};
pub use peers::install_peers;
pub use process::{Kept, owned};
pub use qemu::{Accel, Options, dom0_port};
pub use state::{keeper, qemu_id};
pub use tree::Tree;
pub use xen_program::build as build_xen_program;
