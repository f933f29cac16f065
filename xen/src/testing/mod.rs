//! Fakes of Xen within one process, for tests of code that is built on this crate (feature
//! `testing`).
//!
//! | fake | stands for |
//! |---|---|
//! | [`World`] | Xen, for frontends and backends: pages, grants and event channels |
//! | [`FakeMachine`] | the [`Machine`](crate::Machine) of a frontend in a world |
//! | [`Peer`] | a [`Neighbour`](crate::Neighbour) in a world: maps grants, binds ports |
//! | [`FakeStore`] | a xenstored, over pipes |
//! | [`FakeXen`] | the [`Hypervisor`](crate::hypercall::Hypervisor): records hypercalls |
//! | [`FakeEvents`] | the hypervisor's side of the event channels' shared words |
//! | [`CountingAllocator`] | the system's allocator: counts |
//! | `model::ModelMemory` | shared memory under the model checker loom (feature `loom`) |
//!
//! Both ends of a world see the same plain memory, so bytes take the same path as between domains.
//!
//! A world is strict where Xen is silent. It panics when a page is freed while it is granted, freed
//! twice or written after it was freed, when a grant is revoked twice, and when a port is used
//! after it was closed. [`World::assert_clean`] panics when anything was left behind.

#[allow(unsafe_code, reason = "is a global allocator")]
mod allocator;
mod events;
#[allow(unsafe_code, reason = "writes to its callers' structures")]
mod hypervisor;
#[allow(unsafe_code, reason = "grants and frees pages of its own")]
mod machine;
#[cfg(feature = "loom")]
#[allow(unsafe_code, reason = "accesses loom's cells")]
pub mod model;
#[allow(unsafe_code, reason = "maps pages of its own")]
mod peer;
#[allow(unsafe_code, reason = "allocates pages; poisons freed ones, to catch late writes")]
mod world;
mod xenstore;

pub use allocator::CountingAllocator;
pub use events::FakeEvents;
pub use hypervisor::{Done, FakeXen, memory, page};
pub use machine::FakeMachine;
pub use peer::{BoundPort, MappedPages, Peer};
pub use world::World;
pub use xenstore::{FakeStore, PipeReader, PipeWriter};
