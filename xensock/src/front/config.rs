//! A frontend's configuration and counters.

use crate::wire::{Dialect, Extensions, Protocol};
use embassy_time::Duration;

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
    /// maximum limits it. `None`: the backend's default. A socket's own
    /// [`SocketOption::ReceiveBuffer`](crate::wire::SocketOption) and `SendBuffer` take precedence.
    pub ring_order: Option<u32>,
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
            backlog: 128,
            answer_within: Duration::from_secs(180),
            linger: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// The number of pages of a connection's data ring, unless the backend or the socket determines
    /// another size.
    pub fn ring_pages(&self) -> usize {
        let protocol = Protocol { dialect: self.dialect, extensions: self.extensions };
        let order = self.ring_order.unwrap_or(self.dialect.default_order());
        let orders = protocol.orders();
        let layout = protocol.layout(order.clamp(*orders.start(), *orders.end()));
        layout.map_or(0, |layout| layout.pages)
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
}
