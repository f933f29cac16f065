//! What the daemon and its guests have done, in numbers for Prometheus.
//!
//! The numbers are counted while guests are served, by a thread for itself and without locks. They
//! are collected, and become text, only when somebody asks.

mod server;
mod text;

pub use server::serve;
pub use text::text;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, open, seek};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use xensock::back::Limits;

/// Why a call of a guest is refused.
#[derive(Clone, Copy, Debug)]
pub enum Reason {
    /// It may not connect there.
    Connect,
    /// It may not listen there.
    Listen,
    /// It may not share ports.
    SharePorts,
    /// It has too many sockets.
    Sockets,
    /// It has too many pages of rings.
    RingPages,
    /// It opens connections too fast.
    ConnectionsPerSecond,
    /// The address belongs to another one, or is not this domain's.
    Address,
    /// This domain has no more files, memory or buffers.
    Shortage,
}

impl Reason {
    /// Each with its name, which is that of a setting where there is one.
    const ALL: [(Reason, &str); 8] = [
        (Reason::Connect, "connect"),
        (Reason::Listen, "listen"),
        (Reason::SharePorts, "share-ports"),
        (Reason::Sockets, "sockets"),
        (Reason::RingPages, "ring-pages"),
        (Reason::ConnectionsPerSecond, "connections-per-second"),
        (Reason::Address, "address"),
        (Reason::Shortage, "shortage"),
    ];
}

/// What the sockets of a guest have done, since it has had a device.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Bytes that the guest has received.
    pub received: Cell<u64>,
    /// Bytes that the guest has sent.
    pub sent: Cell<u64>,
    /// Connections that it has accepted.
    pub accepted: Cell<u64>,
    /// Connections that it has opened.
    pub connected: Cell<u64>,
    /// Datagrams, by what became of them.
    datagrams: [Cell<u64>; Datagrams::ALL.len()],
    refused: [Cell<u64>; Reason::ALL.len()],
}

/// What became of datagrams.
#[derive(Clone, Copy, Debug)]
enum Datagrams {
    /// The guest has received them.
    Received,
    /// They were sent.
    Sent,
    /// There was no room for them, or they were longer than the ring.
    Dropped,
    /// The rules do not allow them.
    Refused,
}

impl Datagrams {
    /// Each with its name.
    const ALL: [(Datagrams, &str); 4] = [
        (Datagrams::Received, "received"),
        (Datagrams::Sent, "sent"),
        (Datagrams::Dropped, "dropped"),
        (Datagrams::Refused, "refused"),
    ];
}

impl Traffic {
    /// Counts datagrams that were received.
    pub fn datagrams_received(&self, count: usize) {
        self.count_datagrams(Datagrams::Received, count as u64);
    }

    /// Counts datagrams that were sent.
    pub fn datagrams_sent(&self, count: usize) {
        self.count_datagrams(Datagrams::Sent, count as u64);
    }

    /// Counts datagrams for which there was no room.
    pub fn datagrams_dropped(&self, count: u32) {
        self.count_datagrams(Datagrams::Dropped, count.into());
    }

    /// Counts a datagram that the rules do not allow, either way.
    pub fn datagrams_refused(&self) {
        self.count_datagrams(Datagrams::Refused, 1);
    }

    fn count_datagrams(&self, outcome: Datagrams, count: u64) {
        let all = &self.datagrams[outcome as usize];
        all.set(all.get() + count);
    }

    /// Counts a refused call.
    pub fn refuse(&self, reason: Reason) {
        let count = &self.refused[reason as usize];
        count.set(count.get() + 1);
    }
}

/// The numbers of a guest.
#[derive(Clone, Debug)]
pub struct GuestNumbers {
    /// Its domain.
    pub domain: u16,
    /// Its name, or nothing.
    pub name: String,
    /// Its sockets.
    pub sockets: usize,
    /// The mapped pages of its data rings.
    pub ring_pages: usize,
    /// The most of what it may have.
    pub limits: Limits,
    /// The requests of its devices.
    pub requests: u64,
    /// What its sockets have done.
    pub traffic: Traffic,
}

/// The numbers of the daemon.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// Its threads.
    pub threads: usize,
    /// Connected devices.
    pub devices: u64,
    /// Mappings of guests' memory.
    pub mappings: u64,
    /// Bound event channels.
    pub event_channels: u64,
    /// Listening sockets of an earlier daemon.
    pub kept: usize,
    /// Open files, if they can be counted.
    pub files: Option<usize>,
}

/// The folder of this process's open files, which is opened while that is allowed.
pub struct OpenFiles(Option<OwnedFd>);

impl OpenFiles {
    /// Opens the folder.
    pub fn open() -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open("/proc/self/fd", flags, Mode::empty());
        let failed = |error: &_| log::warn!("open files cannot be counted: {error}");
        OpenFiles(folder.inspect_err(failed).ok())
    }

    /// Their number, which includes the folder itself.
    pub fn count(&self) -> Option<usize> {
        let folder = self.0.as_ref()?;
        seek(folder, SeekFrom::Start(0)).ok()?;
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(folder, &mut space);
        let mut count = 0;
        while let Some(entry) = entries.next() {
            let name = entry.ok()?;
            count += usize::from(name.file_name().to_bytes()[0] != b'.');
        }
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn all_entries_of_the_folder_are_counted_each_time_anew() {
        let path = std::env::temp_dir().join(format!("xensockd-files-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let files = OpenFiles(Some(File::open(&path).unwrap().into()));
        assert_eq!(files.count(), Some(0));
        // So many that Linux does not tell of all of them at once.
        (0..500).for_each(|number| drop(File::create(path.join(number.to_string())).unwrap()));
        assert_eq!(files.count(), Some(500));
        fs::remove_file(path.join("7")).unwrap();
        assert_eq!(files.count(), Some(499));
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn open_files_are_counted() {
        let files = OpenFiles::open();
        let folder = files.0.as_ref().unwrap();
        let more: Vec<_> = (0..100).map(|_| folder.try_clone().unwrap()).collect();
        // Other tests open and close files meanwhile, but not these.
        let count = files.count().unwrap();
        assert!(count > more.len(), "{count}");
    }
}
