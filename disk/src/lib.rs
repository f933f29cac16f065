//! A disk that domains serve to each other over IDC: the example of a driver whose two ends are
//! symmetric, and can be stacked.
//!
//! A [`server`] serves [`Blocks`] to any number of clients. A [`Disk`](client::Disk) is a client's
//! end and is `Blocks` itself, and so is a [`Cache`](cache::Cache) of other `Blocks`: a server of a
//! cache of a client's end is a stacked backend.
//!
//! ```text
//!    file  <-  server  <=  Disk  <-  Cache  <-  server  <=  Disk
//!              dom0        a guest                          another guest, or one far away
//! ```
//!
//! Bytes move between the ends' buffers by references. The parameters of transactions have only
//! the references, so the client's memory is used while its registration lasts and no longer.
//!
//! | module | content |
//! |---|---|
//! | [`protocol`] | what clients ask |
//! | [`blocks`] | what is served |
//! | [`server`] | the serving end |
//! | [`client`] | the asking end |
//! | [`cache`] | the blocks that were used last |
//! | [`neighbours`] | who talks with this domain, and how much |
//! | [`page`] | that, over HTTP |
#![no_std]
#![forbid(unsafe_code)]
#![allow(async_fn_in_trait, reason = "everything is for one thread")]

extern crate alloc;

pub mod blocks;
pub mod cache;
pub mod client;
pub mod neighbours;
pub mod page;
pub mod protocol;
mod ranges;
pub mod server;

pub use blocks::Blocks;
pub use protocol::{BLOCK, Failure};
