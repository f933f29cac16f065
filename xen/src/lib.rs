//! A guest's view of Xen.
//!
//! What a domain needs to talk to the hypervisor and to other domains; it knows nothing of sockets.
//!
//! | module | what it has |
//! |---|---|
//! | [`abi`] | Xen's public structures and numbers, a file for each header |
//! | [`hypercall`] | the calls into the hypervisor, typed |
//! | [`event`] | event channels, and who hears of their events |
//! | [`grant`] | letting another domain map a page |
//! | [`xenstore`], [`xenbus`] | the tree in which domains find each other, and a device's states in it |
//! | [`frontend`] | the sessions of a device with one backend after the other, which all drivers share |
//! | [`console`], [`clock`], [`lifecycle`] | output and input, time and the timer, requests to shut down |
//! | [`Machine`], [`Signal`], [`WaitList`], [`Counter`] | what a frontend needs of whatever it runs on, how tasks hear of events and of each other, and what is counted |
//! | [`balloon`] | memory that is given back to Xen, and taken again |
//! | [`shared`] | the only way to touch memory that another domain can write |
//! | `testing` | fakes of all this for tests, with the feature `testing` |
//!
//! The parts that make no hypercall also build for an ordinary operating system: a backend uses
//! them, and so do the tests. Those that do make any are generic over [`hypercall::Hypervisor`].
//! Everything is for one thread, `async` where it waits, and allocates nothing on the way of an
//! event or a grant.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]

extern crate alloc;

pub mod abi;
#[allow(unsafe_code, reason = "memory is given back that nothing may use")]
pub mod balloon;
mod byte_ring;
#[allow(unsafe_code, reason = "the TSC is read with an instruction")]
pub mod clock;
pub mod console;
mod counter;
mod errno;
pub mod event;
pub mod frontend;
#[allow(unsafe_code, reason = "a granted page is open to another domain, so its owner must agree")]
pub mod grant;
#[allow(unsafe_code, reason = "arguments of hypercalls are pointers to anything")]
pub mod hypercall;
pub mod lifecycle;
#[allow(unsafe_code, reason = "pages are granted and freed, which their owner must agree to")]
mod machine;
#[allow(
    unsafe_code,
    reason = "memory that another domain writes is accessed atomically or copied through raw pointers"
)]
pub mod shared;
mod signal;
#[cfg(feature = "testing")]
pub mod testing;
mod wait;
pub mod xenbus;
pub mod xenstore;

pub use counter::{Counted, Counter};
pub use errno::Errno;
pub use machine::{Machine, Pages};
pub use shared::Shared;
pub use signal::{Side, Signal};
pub use wait::WaitList;

/// Bytes in a page, the unit of granting and mapping (`XEN_PAGE_SIZE`).
pub const PAGE_SIZE: usize = 4096;

/// A domain's number (`domid_t` in `xen.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(pub u16);

/// An index into the granting domain's grant table (`grant_ref_t` in `grant_table.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantRef(pub u32);

/// A domain's end of an event channel (`evtchn_port_t` in `event_channel.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u32);

/// A page of the guest's physical address space: its address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Gfn(pub u64);

impl core::fmt::Display for DomId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}
