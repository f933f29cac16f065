//! What the frontend counts, for whoever shows it.

use xen::Counter;

/// The live counters.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) streams_opened: Counter,
    pub(super) streams_open: Counter,
    pub(super) listeners_open: Counter,
    pub(super) bytes_in: Counter,
    pub(super) bytes_out: Counter,
    pub(super) notifications_sent: Counter,
    pub(super) grants: Counter,
    pub(super) pages: Counter,
    pub(super) quarantined_pages: Counter,
    pub(super) parked_rings: Counter,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Streams that were ever connected or accepted.
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
    /// Grants in force.
    pub grants: u64,
    /// Pages taken from the machine and not given back: in use, parked, pooled or in quarantine.
    pub pages: u64,
    /// Pages that the backend still maps although their ring is closed.
    pub quarantined_pages: u64,
    /// Rings that are kept, with their grants and ports, for the next connections.
    pub parked_rings: u64,
}

impl Counters {
    pub(super) fn read(&self) -> Statistics {
        Statistics {
            streams_opened: self.streams_opened.get(),
            streams_open: self.streams_open.get(),
            listeners_open: self.listeners_open.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            notifications_sent: self.notifications_sent.get(),
            grants: self.grants.get(),
            pages: self.pages.get(),
            quarantined_pages: self.quarantined_pages.get(),
            parked_rings: self.parked_rings.get(),
        }
    }
}
