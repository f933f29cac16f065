//! The XenSock and PV Calls backend as a daemon for dom0.
//!
//! One thread, one event loop: xenstore says which guests have a device, and each device is a task
//! that serves the guest's commands and moves its connections' bytes between real sockets and memory
//! that the guest shares. The protocol itself is [`xensock::back`]; this crate lends it Linux.

pub mod arguments;
pub mod counts;
pub mod daemon;
pub mod device;
pub mod dom0;
pub mod evtchn;
pub mod finder;
pub mod gntdev;
pub mod iovec;
pub mod lock;
mod options;
pub mod reactor;
pub mod sockets;
mod states;
pub mod xenbus;
pub mod xenstored;
