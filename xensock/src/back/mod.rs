//! The backend's protocol engine. A [`Host`] does the I/O.
//!
//! [`serve`] is a future that serves one device of one guest and owns all of its resources. It
//! takes requests from the command ring, carries them out through a [`Host`], and moves bytes
//! between sockets and data rings. Dropping it closes every socket, unmaps every page and unbinds
//! every event channel.
//!
//! It trusts nothing that the guest writes. A malformed request is answered with an error;
//! impossible indexes on a data ring close that connection; impossible indexes on the command ring
//! end the future. [`Limits`] and the slots of the command ring bound what a guest can make it
//! hold; its devices share an [`Account`], which keeps count. The work per poll is bounded too, so
//! that other guests on the same executor get their turns.
//!
//! An example with the host of `xensock::testing`:
//!
//! ```
//! # #[cfg(feature = "testing")] {
//! use std::sync::Arc;
//! use xen::testing::World;
//! use xen::{DomId, Machine, Neighbour, Signal};
//! use xensock::back::{CommandLink, Limits, serve};
//! use xensock::testing::{FakeDom0, FakeNet};
//! use xensock::wire::Dialect;
//!
//! let (guest, dom0) = (DomId(7), DomId(0));
//! let world = World::new();
//! let host = FakeDom0::new(&world, dom0, FakeNet::new());
//! // The guest's half: a page for the command ring, and an event channel.
//! let machine = world.machine(guest);
//! let page = machine.alloc(1)?;
//! let grant = machine.grant(dom0, &page, 0)?;
//! let port = machine.open_port(dom0, Arc::new(Signal::new()))?;
//! // The backend's half.
//! let signal = Arc::new(Signal::new());
//! let link = CommandLink {
//!     ring: host.map(guest, &[grant])?,
//!     channel: host.bind_port(guest, port, signal.clone())?,
//!     signal,
//! };
//! let engine = serve(&host, guest, link, Dialect::PvCalls, Limits::default());
//! // An executor polls `engine` until the guest's device closes. Dropping it frees everything.
//! drop(engine);
//! machine.close_port(port);
//! machine.revoke(grant).expect("the engine unmapped the page");
//! # // SAFETY: its only grant was revoked, and it came from this machine.
//! # unsafe { machine.free(page) };
//! # world.assert_clean();
//! # }
//! # Ok::<(), xen::Errno>(())
//! ```

mod account;
mod commands;
mod connection;
mod data_ring;
mod datagrams;
mod engine;
mod gate;
mod host;
mod listener;
mod pump;
mod socket;

pub use account::Account;
pub use engine::{CommandLink, Violation, serve};
pub use host::{
    Datagrams, Host, Limit, Limits, Listener, Network, Outgoing, Quota, Received, Ring, RingUsage,
    Sent, Socket, Stream,
};
