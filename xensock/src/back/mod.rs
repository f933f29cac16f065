//! The backend's protocol engine, without I/O of its own.

mod host;

pub use host::{Channel, Host, Mapping, Stream};
