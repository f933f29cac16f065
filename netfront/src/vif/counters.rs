//! What the interface counts, for whoever shows it.

use xen::Counter;

/// The live counters.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) received: Counter,
    pub(super) received_bytes: Counter,
    pub(super) receive_dropped: Counter,
    pub(super) transmitted: Counter,
    pub(super) transmitted_bytes: Counter,
    pub(super) transmit_dropped: Counter,
    pub(super) notifications_sent: Counter,
    pub(super) sessions: Counter,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames received.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that came and were not delivered: too long, too short, or with a wrong checksum.
    pub receive_dropped: u64,
    /// Frames transmitted; one that is to be cut into segments counts once.
    pub transmitted: u64,
    /// Their bytes.
    pub transmitted_bytes: u64,
    /// Frames that went nowhere: there was no backend, or it dropped them.
    pub transmit_dropped: u64,
    /// Events sent to the backend.
    pub notifications_sent: u64,
    /// How often the link has come up.
    pub sessions: u64,
    /// Pages that are granted.
    pub pages: u64,
    /// Pages that a backend has mapped although their session is over.
    pub quarantined_pages: u64,
}

impl Counters {
    pub(super) fn read(&self, (pages, quarantined): (usize, usize)) -> Statistics {
        Statistics {
            received: self.received.get(),
            received_bytes: self.received_bytes.get(),
            receive_dropped: self.receive_dropped.get(),
            transmitted: self.transmitted.get(),
            transmitted_bytes: self.transmitted_bytes.get(),
            transmit_dropped: self.transmit_dropped.get(),
            notifications_sent: self.notifications_sent.get(),
            sessions: self.sessions.get(),
            pages: pages as u64,
            quarantined_pages: quarantined as u64,
        }
    }
}
