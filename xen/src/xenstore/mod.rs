//! A client of xenstore, the tree of small values in which domains find each other.
//!
//! [`connect`] takes the two halves of any byte stream that leads to a xenstored (a domain's
//! [`ring`], `/dev/xen/xenbus`, a fake) and gives a [`Store`] to ask with and a [`Driver`] that moves
//! the bytes. Any number of requests, watches and transactions go on at once. Everything is for one
//! thread.
//!
//! ```ignore
//! let (store, driver) = xenstore::connect(reader, writer);
//! // Elsewhere: driver.run().await
//! let backend = store.read_string("device/vif/0/backend").await?;
//! let mut watch = store.watch(&format!("{backend}/state")).await?;
//! watch.next().await;
//! ```
//!
//! A request may be dropped at any time: it is either not sent at all or its answer is discarded,
//! and what it had acquired (a watch, a transaction) is given back.

mod connection;
#[cfg(any(test, feature = "double"))]
pub mod double;
mod driver;
mod nodes;
pub mod ring;
mod transaction;
mod watch;
pub mod wire;

pub use driver::{Driver, connect};
pub use nodes::{Nodes, Store};
pub use transaction::Transaction;
pub use watch::Watch;
pub use wire::{Access, Permission};
