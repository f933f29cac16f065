//! A guest's view of Xen: what a domain needs to talk to the hypervisor and to other domains.
//!
//! | module | content |
//! |---|---|
//! | [`abi`] | Xen's public structures and numbers, one file per header |
//! | [`hypercall`] | typed hypercalls |
//! | [`event`] | event channels, in both ABIs |
//! | [`grant`] | the grant table: lets other domains map pages |
//! | [`foreign`] | maps pages that other domains granted |
//! | [`xenstore`], [`xenbus`] | a client of xenstore, and the states of devices in it |
//! | [`frontend`] | what all frontends share: sessions, granted pages, `io/ring.h` |
//! | [`console`], [`clock`] | the console; time and the timer |
//! | [`lifecycle`] | the toolstack's requests to shut down or to suspend |
//! | [`Machine`] | the memory, grants and ports of frontends |
//! | [`Neighbour`] | other domains' pages and ports |
//! | [`Signal`], [`WaitList`], [`Flag`], [`Counter`] | wakers of tasks, statistics |
//! | [`balloon`] | returns memory to Xen and takes it back |
//! | [`shared`] | access to memory that another domain can write |
//! | `testing` | fakes of Xen for tests, with the feature `testing` |
//!
//! All of it builds for any target: code that makes hypercalls is generic over
//! [`hypercall::Hypervisor`], which a kernel implements. Everything is for one thread; functions
//! that wait are `async`. Sending and handling events does not allocate, nor does granting pages.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]

extern crate alloc;

pub mod abi;
#[allow(unsafe_code, reason = "memory that is given back must be unused")]
pub mod balloon;
mod byte_ring;
#[allow(unsafe_code, reason = "the TSC is read with an instruction")]
pub mod clock;
pub mod console;
mod counter;
mod errno;
pub mod event;
#[allow(unsafe_code, reason = "puts other domains' pages at frames, whose owner must agree")]
pub mod foreign;
pub mod frontend;
#[allow(unsafe_code, reason = "a granted page is open to another domain, so its owner must agree")]
pub mod grant;
#[allow(unsafe_code, reason = "arguments of hypercalls are raw pointers")]
pub mod hypercall;
pub mod lifecycle;
#[allow(unsafe_code, reason = "pages are granted and freed, which their owner must agree to")]
mod machine;
mod neighbour;
#[allow(
    unsafe_code,
    reason = "accesses to memory that another domain writes: atomics and raw copies"
)]
pub mod shared;
mod signal;
#[cfg(feature = "testing")]
pub mod testing;
mod turn;
mod wait;
pub mod xenbus;
pub mod xenstore;

pub use counter::{Counted, Counter};
pub use errno::Errno;
pub use machine::{Machine, Pages};
pub use neighbour::{Channel, Mapping, Neighbour};
pub use shared::Shared;
pub use signal::{Side, Signal};
pub use turn::Turn;
pub use wait::{Flag, WaitList, yield_now};

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
