//! A double of Xen within one process and one thread, for the tests of frontends and backends.
//!
//! [`World`] keeps grants, event channels and pages as Xen would; a [`Guest`] is a frontend's
//! [`Machine`](crate::Machine) in it, and a [`Peer`] what a backend's domain can do. Both ends see the same
//! plain memory, so a byte takes the way that it takes between domains, without Xen.
//!
//! The double is strict where Xen is silent. It panics when a page is freed while it is granted, freed
//! twice or written after it was freed, when a grant is revoked twice, when a port is used after it
//! was closed; and [`World::assert_clean`] panics when anything was left behind.

mod guest;
mod peer;
mod world;

pub use guest::Guest;
pub use peer::{BoundPort, MappedPages, Peer};
pub use world::World;
