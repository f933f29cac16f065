//! A frontend's configuration and counters.

use crate::wire::{Dialect, Extensions, Family, Orders, Protocol, Record, longest_payload};
use core::ops::RangeInclusive;
use embassy_time::Duration;

/// The order of rings that cannot be resized, if the backend and the budget permit it. Such a ring
/// is a compromise: 128 KiB each way need a quarter of the notifications of order 4, and four times
/// the memory, also while the connection is idle.
const FIXED_ORDER: u32 = 6;

/// Rings that cannot be resized have a smaller order if fewer than this many fit into the budget,
/// but not a smaller one than the dialect's default.
const FIXED_RINGS: usize = 16;

/// The configuration of a frontend.
///
/// # Example
/// ```
/// use xensock::front::Config;
/// use xensock::wire::Extensions;
///
/// // The plain protocol, with rings of two data pages.
/// let extensions = Extensions::empty();
/// let config = Config { extensions, ring_order: Some(1), ..Config::default() };
/// assert_eq!(config.ring_pages(), 3, "and an indexes page");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The protocol, which the device's folder in xenstore determines.
    pub dialect: Dialect,
    /// The extensions to use if the backend supports them.
    pub extensions: Extensions,
    /// The size of data rings: 2 to this power pages, shared by both directions. The backend's
    /// maximum limits it. `None`: a ring begins with the smallest size, grows while its connection
    /// carries bulk, and shrinks again; if the backend cannot resize rings, it has a medium size.
    /// A socket's own [`SocketOption::ReceiveBuffer`](crate::wire::SocketOption) and `SendBuffer`
    /// take precedence. Datagram sockets have another default, as their rings keep their size: see
    /// [`Frontend::bind_udp`](super::Frontend::bind_udp).
    pub ring_order: Option<u32>,
    /// The most pages that rings which have grown and rings of datagram sockets may have together.
    /// Half of it, at most, stays with rings that are kept for the next sockets.
    pub ring_budget: usize,
    /// A ring that has grown shrinks after this time with little traffic.
    pub shrink_after: Duration,
    /// How many connections may wait for a listener's `accept`.
    pub backlog: u32,
    /// How long a request other than ACCEPT and POLL may remain unanswered. A CONNECT may well take
    /// two minutes.
    pub answer_within: Duration,
    /// How long a dropped stream is kept while the backend takes none of its unsent data.
    pub linger: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            dialect: Dialect::PvCalls,
            extensions: Extensions::all(),
            ring_order: None,
            ring_budget: 4096,
            shrink_after: Duration::from_secs(4),
            backlog: 128,
            answer_within: Duration::from_secs(180),
            linger: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// The number of pages of a new connection's data ring, unless the backend or the socket
    /// determines another size.
    pub fn ring_pages(&self) -> usize {
        let protocol = Protocol { dialect: self.dialect, extensions: self.extensions };
        let (min, max) = protocol.orders().into_inner();
        let default = self.dialect.default_order();
        let order = *self.ring_orders(&protocol, &Orders { min, default, max }).start();
        protocol.layout(order).map_or(0, |layout| layout.pages)
    }

    /// The order of a new connection's ring, and the order up to which it may grow.
    pub(super) fn ring_orders(&self, protocol: &Protocol, orders: &Orders) -> RangeInclusive<u32> {
        let possible = |order: u32| order.clamp(orders.min, orders.max);
        if let Some(order) = self.ring_order {
            return possible(order)..=possible(order);
        }
        if protocol.has(Extensions::RESIZE) {
            return orders.min..=orders.max;
        }
        let fits = |order: &u32| {
            protocol
                .layout(*order)
                .is_ok_and(|layout| layout.pages * FIXED_RINGS <= self.ring_budget)
        };
        let least = possible(self.dialect.default_order());
        let order = (least..=possible(FIXED_ORDER)).rev().find(fits).unwrap_or(least);
        order..=order
    }

    /// The order of a datagram socket's ring, if the budget permits it.
    pub(super) fn datagram_order(&self, protocol: &Protocol, orders: &Orders) -> u32 {
        let holds = |&order: &u32| {
            protocol.layout(order).is_ok_and(|layout| {
                let size = layout.input.size.min(layout.output.size) as usize;
                size >= Record::space(longest_payload(Family::V4))
            })
        };
        let order = || (orders.min..=orders.max).find(holds).unwrap_or(orders.max);
        self.ring_order.map_or_else(order, |order| order.clamp(orders.min, orders.max))
    }
}

/// The counters of a frontend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Streams connected or accepted so far.
    pub streams_opened: u64,
    /// Streams that hold a ring now.
    pub streams_open: u64,
    /// Listeners that exist now.
    pub listeners_open: u64,
    /// Datagram sockets that hold a ring now.
    pub datagram_sockets_open: u64,
    /// Datagrams taken out of rings.
    pub datagrams_received: u64,
    /// Datagrams put into rings.
    pub datagrams_sent: u64,
    /// Bytes taken out of rings.
    pub bytes_in: u64,
    /// Bytes put into rings.
    pub bytes_out: u64,
    /// Events sent to the backend.
    pub notifications_sent: u64,
    /// Live grants.
    pub grants: u64,
    /// Pages taken from the machine and not given back: in use, parked, pooled or in quarantine.
    pub pages: u64,
    /// Pages that the backend still maps although their ring is closed.
    pub quarantined_pages: u64,
    /// Rings that are kept, with their grants and ports, for the next connections.
    pub parked_rings: u64,
    /// Pages of data rings: of connections and pending ACCEPTs, of parked rings, and spare ones.
    pub ring_pages: u64,
    /// How often a ring was replaced by one of another size.
    pub rings_resized: u64,
}
