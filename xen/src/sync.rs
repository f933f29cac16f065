//! The memory order between domains: the one fence that the rings use, and the model of memory on which
//! they are checked.
//!
//! Built with the feature `loom`, the fence and [`Shared`](crate::Shared) are [loom]'s: a test makes a
//! [`Memory`] and takes the rings, as they are, through every order in which the two ends' accesses can
//! happen and every value that each can see; outside of a model this fence panics then. Otherwise it is
//! `core`'s and nothing more.
//!
//! [loom]: https://docs.rs/loom

#[cfg(not(feature = "loom"))]
pub use core::sync::atomic::fence;

#[cfg(feature = "loom")]
mod model;
#[cfg(feature = "loom")]
pub use loom;
#[cfg(feature = "loom")]
pub use model::{Memory, Site, fence, sites, weaken};
