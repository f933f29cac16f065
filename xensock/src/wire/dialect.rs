//! The two published protocols, and their differences.

use super::layout::{Format, Layout};
use super::message::RingGrants;
use super::pvcalls::RING_LIST;
use super::{draft1, pvcalls};
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use xen::{Errno, GrantRef, Shared};

/// A protocol as it was published. [`Protocol`](super::Protocol) adds the extensions that two ends
/// agreed on.
///
/// ```
/// use xensock::wire::Dialect;
///
/// assert_eq!(Dialect::PvCalls.device(), "pvcalls");
/// // The two directions of a ring of order 4 share its 16 data pages evenly.
/// let layout = Dialect::PvCalls.layout(4)?;
/// assert_eq!((layout.data_pages, layout.input.size, layout.output.size), (16, 32768, 32768));
/// # Ok::<(), xen::Errno>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// PV Calls version 1.
    PvCalls,
    /// XenSock draft 1, the predecessor of PV Calls.
    Draft1,
}

impl Dialect {
    /// Both dialects, the preferred one first.
    pub const ALL: [Dialect; 2] = [Dialect::PvCalls, Dialect::Draft1];

    /// The device type: the name of its folder in xenstore.
    pub const fn device(self) -> &'static str {
        match self {
            Dialect::PvCalls => "pvcalls",
            Dialect::Draft1 => "xensock",
        }
    }

    pub(super) fn format(self) -> &'static Format {
        match self {
            Dialect::PvCalls => &pvcalls::FORMAT,
            Dialect::Draft1 => &draft1::FORMAT,
        }
    }

    /// Whether a command creates sockets. Otherwise CONNECT, BIND and SETSOCKOPT do.
    pub fn has_socket_command(self) -> bool {
        self == Dialect::PvCalls
    }

    /// Whether a RELEASE can say that the ring will be used again.
    pub fn can_reuse_rings(self) -> bool {
        self == Dialect::PvCalls
    }

    /// The possible orders of a data ring. `resizable`: whether
    /// [`Extensions::RESIZE`](super::Extensions::RESIZE) is in force.
    pub fn orders(self, resizable: bool) -> RangeInclusive<u32> {
        match self {
            Dialect::PvCalls => 1..=pvcalls::MAX_ORDER,
            Dialect::Draft1 if resizable => draft1::MIN_ORDER..=draft1::ORDER,
            Dialect::Draft1 => draft1::ORDER..=draft1::ORDER,
        }
    }

    /// The default order of a data ring.
    pub fn default_order(self) -> u32 {
        match self {
            Dialect::PvCalls => pvcalls::DEFAULT_ORDER,
            Dialect::Draft1 => draft1::ORDER,
        }
    }

    /// The layout of a data ring of this order, with event indexes. [`Errno::EINVAL`] if the
    /// dialect has no such order.
    pub fn layout(self, order: u32) -> Result<Layout, Errno> {
        if !self.orders(true).contains(&order) {
            return Err(Errno::EINVAL);
        }
        Ok(match self {
            Dialect::PvCalls => pvcalls::layout(order),
            Dialect::Draft1 => draft1::layout(order),
        })
    }

    /// Describes a data ring to the backend, and returns what the request that offers it carries.
    /// `indexes` is the ring's indexes page, all zeros; `grants` are those of all pages of its
    /// [`Layout`], in order.
    pub fn offer_ring(self, indexes: Shared<'_>, order: u32, grants: &[GrantRef]) -> RingGrants {
        match self {
            Dialect::PvCalls => pvcalls::offer_ring(indexes, order, grants),
            Dialect::Draft1 => RingGrants::Region(grants.into()),
        }
    }

    /// Reads the order and the data pages' grants from a copy of an indexes page
    /// ([`RingGrants::Indexes`]). [`Errno::EINVAL`] if the order is larger than `max_order` or
    /// impossible.
    pub fn read_ring(
        self,
        indexes: &[u8; RING_LIST],
        max_order: u32,
    ) -> Result<(u32, Vec<GrantRef>), Errno> {
        match self {
            Dialect::PvCalls => {
                let max_order = max_order.min(pvcalls::MAX_ORDER);
                pvcalls::read_ring(indexes, max_order).ok_or(Errno::EINVAL)
            }
            // This dialect has no indexes page with grants.
            Dialect::Draft1 => Err(Errno::EINVAL),
        }
    }
}
