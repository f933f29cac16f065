//! A domain's access to other domains: their granted pages, and the event channels they offer.

use crate::{DomId, Errno, GrantRef, Port, Shared, Signal};
use alloc::sync::Arc;
use core::convert::Infallible;

/// A domain that maps other domains' pages and binds their ports.
///
/// Implemented by a guest's kernel, by a Linux process, and by `testing::Peer`.
pub trait Neighbour {
    /// Mapped pages.
    type Mapping: Mapping;
    /// A bound event channel.
    type Channel: Channel;

    /// Maps pages that `owner` granted, in the order of `refs`, for reading and writing.
    fn map(&self, owner: DomId, refs: &[GrantRef]) -> Result<Self::Mapping, Errno>;

    /// Binds to an event channel that `owner` offers. Events raise `signal`.
    fn bind_port(
        &self,
        owner: DomId,
        port: Port,
        signal: Arc<Signal>,
    ) -> Result<Self::Channel, Errno>;

    /// Has the byte at `offset` of the mapping cleared, and then an event sent, when the mapping
    /// ends. A mapping has one such notification; the latest counts.
    ///
    /// The other domain thus learns that a process was killed. The default does nothing, as in a
    /// guest: when a guest ends, Xen unmaps its pages, and xenstored removes its nodes.
    fn set_unmap_notify(
        &self,
        mapping: &Self::Mapping,
        offset: usize,
        channel: &Self::Channel,
    ) -> Result<(), Errno> {
        let _ = (mapping, offset, channel);
        Ok(())
    }
}

/// Pages of another domain, mapped one after the other. Dropping it unmaps them.
pub trait Mapping {
    /// All of the bytes.
    fn shared(&self) -> Shared<'_>;
}

/// An event channel that another domain offered, bound. Dropping it unbinds it.
pub trait Channel {
    /// Sends an event to the other domain.
    fn notify(&self);
}

/// No neighbour, for a guest that maps nothing: there is no value of this type.
impl Neighbour for Infallible {
    type Mapping = Infallible;
    type Channel = Infallible;

    fn map(&self, _owner: DomId, _refs: &[GrantRef]) -> Result<Infallible, Errno> {
        match *self {}
    }

    fn bind_port(
        &self,
        _owner: DomId,
        _port: Port,
        _signal: Arc<Signal>,
    ) -> Result<Infallible, Errno> {
        match *self {}
    }
}

impl Mapping for Infallible {
    fn shared(&self) -> Shared<'_> {
        match *self {}
    }
}

impl Channel for Infallible {
    fn notify(&self) {
        match *self {}
    }
}
