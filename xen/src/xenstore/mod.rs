//! A client of xenstore, the tree of small values in which domains find each other.
//!
//! [`connect`] takes the two halves of any byte stream that leads to a xenstored (a domain's
//! [`ring`], `/dev/xen/xenbus`, a fake) and gives a [`Store`] to ask with and a [`Driver`] that moves
//! the bytes. Any number of requests, watches and transactions go on at once. Everything is for one
//! thread.
//!
//! ```
//! # use xen::{DomId, Errno, testing::FakeStore, xenstore};
//! # fn spawn<T>(task: impl Future<Output = T>) {}
//! # async fn example() -> Result<(), Errno> {
//! # let (reader, writer) = FakeStore::new().connect(DomId(0));
//! let (store, driver) = xenstore::connect(reader, writer);
//! spawn(driver.run());
//! let backend = store.read_string("device/pvcalls/0/backend").await?;
//! let mut watch = store.watch(&format!("{backend}/state")).await?;
//! let changed = watch.next().await;
//! # Ok(())
//! # }
//! ```
//!
//! A request may be dropped at any time: it is either not sent at all or its answer is discarded,
//! and what it had acquired (a watch, a transaction) is given back.

mod connection;
mod driver;
mod nodes;
mod request;
pub mod ring;
mod store;
mod suspension;
mod transaction;
mod watch;
pub mod wire;

pub use driver::{Driver, connect};
pub use nodes::Nodes;
pub use store::Store;
pub use transaction::Transaction;
pub use watch::Watch;
pub use wire::{Access, Permission};
