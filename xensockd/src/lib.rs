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
#[allow(unsafe_code, reason = "ioctls of `/dev/xen/evtchn`")]
pub mod evtchn;
pub mod finder;
#[allow(unsafe_code, reason = "ioctls of `/dev/xen/gntdev`, and mappings of guests' pages")]
pub mod gntdev;
#[allow(unsafe_code, reason = "`sendmsg` and `recvmsg` from and to a guest's ring")]
pub mod iovec;
pub mod lock;
#[allow(unsafe_code, reason = "`setsockopt` and `getsockopt` of any option")]
mod options;
#[allow(unsafe_code, reason = "registers a file that is never replaced")]
pub mod reactor;
pub mod sockets;
mod states;
pub mod xenbus;
pub mod xenstored;
