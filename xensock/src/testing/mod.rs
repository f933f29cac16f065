//! A fake backend: a domain with backends in a [`World`](xen::testing::World) of fakes.
//!
//! [`FakeDom0`] is its [`Host`](crate::back::Host). [`FakeNet`] is the network on which the
//! backends open their sockets, and the test its own.

mod backend;
mod datagrams;
mod dom0;
mod net;
mod pipe;

pub use backend::backend;
pub use datagrams::FakeDatagrams;
pub use dom0::FakeDom0;
pub use net::{FakeListener, FakeNet, FakeStream};
