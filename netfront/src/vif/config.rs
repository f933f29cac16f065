//! The configuration and the statistics of an interface.

use embassy_time::Duration;

/// The largest frame in either direction, in bytes.
pub(super) const LONGEST: usize = 0xffff;

/// The configuration of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Pages for transmitted frames, at least 17: the longest frame takes 16.
    pub transmit_pages: usize,
    /// Pages for received frames, 18 to 256.
    pub receive_pages: usize,
    /// Whether the backend may segment TCP, if it can.
    pub segmentation: bool,
    /// Whether the backend may complete checksums, if it can.
    pub checksums: bool,
    /// How long a backend may take to unmap the interface's pages when a session ends. Pages that
    /// it still maps afterwards are not reused before it has unmapped them.
    pub linger: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            transmit_pages: 64,
            receive_pages: 64,
            segmentation: true,
            checksums: true,
            linger: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// The bytes of memory that a connected interface takes.
    pub fn memory(&self) -> usize {
        (2 + self.transmit_pages + self.receive_pages) * xen::PAGE_SIZE + 2 * LONGEST
    }

    pub(super) fn clamped(self) -> Config {
        Config {
            transmit_pages: self.transmit_pages.clamp(17, 256),
            receive_pages: self.receive_pages.clamp(18, 256),
            ..self
        }
    }
}

/// Statistics of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames received.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Received frames that were not delivered: too long, too short, or with a wrong checksum.
    pub receive_dropped: u64,
    /// Frames transmitted. A frame to be segmented counts once.
    pub transmitted: u64,
    /// Their bytes.
    pub transmitted_bytes: u64,
    /// Frames that were lost: there was no backend, or it dropped them.
    pub transmit_dropped: u64,
    /// Events sent to the backend.
    pub notifications_sent: u64,
    /// How often the link has come up.
    pub sessions: u64,
    /// Pages taken from the machine: in use or in quarantine.
    pub pages: u64,
    /// Pages that a backend still maps although their session is over.
    pub quarantined_pages: u64,
}
