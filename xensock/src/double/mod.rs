//! A double of Xen and of a network, within one process and one thread.
//!
//! [`World`] keeps grants, event channels and pages as Xen would; a [`Guest`] is a frontend's
//! [`Machine`](crate::Machine) in it and a [`Dom0`] a backend's [`Host`](crate::back::Host). Both ends see the
//! same plain memory, so a byte takes the way that it takes between domains, without Xen. [`Net`] is
//! the network on which the backend opens its sockets, and the test its own.
//!
//! The double is strict where Xen is silent. It panics when a page is freed while it is granted, freed
//! twice or written after it was freed, when a grant is revoked twice, when a port is used after it
//! was closed; and [`World::assert_clean`] panics when anything was left behind.

mod backend;
mod dom0;
mod guest;
mod net;
mod pipe;
mod world;

pub use backend::backend;
pub use dom0::{BoundPort, Dom0, MappedPages};
pub use guest::Guest;
pub use net::{Acceptor, Net, Socket};
pub use world::World;
