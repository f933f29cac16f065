//! A fake of the backend's domain, over the fakes of Xen (`xen::testing`), and of its network.
//!
//! A [`Dom0`] is a backend's [`Host`](crate::back::Host) in a [`World`](xen::testing::World). [`Net`] is the
//! network on which the backend opens its sockets, and the test its own.

mod backend;
mod dom0;
mod net;
mod pipe;

pub use backend::backend;
pub use dom0::Dom0;
pub use net::{Acceptor, Net, Socket};
