//! Who is to be met: a place and a service.

use alloc::string::String;
use core::net::SocketAddr;
use xen::DomId;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Where the other end is.
    pub place: Place,
    /// What both ends call the service.
    pub service: Service,
}

/// Where the other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A domain of this host.
    Domain(DomId),
    /// An address of a network.
    Host(SocketAddr),
    /// Wherever the first visitor of the service comes from.
    Anyone,
}

/// The name of a service, and which of several connections of the same two ends is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    name: String,
    instance: u32,
}
