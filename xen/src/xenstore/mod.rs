//! A client of xenstore, the tree of small values in which domains find each other.
//!
//! [`connect`] takes the two halves of a byte stream to a xenstored (a domain's [`ring`],
//! `/dev/xen/xenbus`, a fake) and returns a [`Store`] for requests and a [`Driver`] that moves the
//! bytes. Any number of requests, watches and transactions run at once. Everything is for one
//! thread.
//!
//! ```
//! # use futures_executor::LocalPool;
//! # use futures_util::{FutureExt, task::LocalSpawnExt};
//! # use xen::{DomId, Errno, testing::FakeStore, xenstore};
//! # let dom0 = FakeStore::new();
//! # dom0.add_device(("/local/domain/5/device/vif/0", DomId(5)), ("/backend/vif/5/0", DomId(0)));
//! # let (reader, writer) = dom0.connect(DomId(5));
//! # let mut pool = LocalPool::new();
//! # let spawner = pool.spawner();
//! # let spawn = |task| spawner.spawn_local(task).unwrap();
//! let (store, driver) = xenstore::connect(reader, writer);
//! spawn(driver.run().map(drop));
//! # pool.run_until(async {
//! let backend = store.read_string("device/vif/0/backend").await?;
//! let mut watch = store.watch(&format!("{backend}/state")).await?;
//! assert_eq!(watch.next().await, format!("{backend}/state"));
//! # Ok::<(), Errno>(())
//! # }).unwrap();
//! ```
//!
//! A request may be dropped at any time: either it is not sent, or its reply is discarded and what
//! it had acquired (a watch, a transaction) is released.

mod connection;
mod driver;
mod nodes;
mod request;
pub mod ring;
mod store;
mod suspension;
mod table;
mod transaction;
mod watch;
pub mod wire;

pub use driver::{Driver, connect};
pub use nodes::Nodes;
pub use store::Store;
pub use transaction::Transaction;
pub use watch::Watch;
pub use wire::{Access, Permission};
