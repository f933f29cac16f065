//! A xenstored for tests: a tree in memory, with watches, transactions and permissions, that speaks
//! the wire format to any number of clients.
//!
//! It answers while a request is written to it, on the writer's own stack: nothing has to be
//! polled. Bytes go through its pipes in small pieces, so that a client which expects whole messages
//! fails.

mod change;
mod pipe;
mod server;
mod store;
mod tree;

pub use pipe::{PipeReader, PipeWriter};
pub use store::FakeStore;
