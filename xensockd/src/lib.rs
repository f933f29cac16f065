//! The XenSock and PV Calls backend as a daemon for dom0.
//!
//! It has a few threads, each with its own event loop, and each guest belongs to one of them. A
//! thread finds the guests' devices in xenstore. Each device has a task, which serves the guest's
//! requests and moves bytes between Linux's sockets and memory that the guest shares. The protocol
//! engine is [`xensock::back`]; this crate connects it to Linux, through [`xen_linux`].

pub mod addresses;
pub mod arguments;
mod clients;
pub mod control;
pub mod counts;
pub mod daemon;
pub mod datagrams;
pub mod device;
pub mod dom0;
pub mod finder;
pub mod guests;
pub mod handover;
#[allow(unsafe_code, reason = "sockets on a guest's ring, `SO_BUSY_POLL`, files passed, seccomp")]
mod linux;
pub mod listeners;
pub mod lock;
pub mod logging;
pub mod metrics;
mod options;
mod room;
pub mod rules;
pub mod sandbox;
pub mod sockets;
mod states;
pub mod threads;
mod usage;
pub mod user;
