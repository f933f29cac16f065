//! What the guest can tell about itself.
//!
//! Two halves: a [`Snapshot`] of what the kernel knows, taken whenever somebody asks, and
//! [`Counters`] that the running app keeps. All is for one thread.

use alloc::boxed::Box;
use core::cell::Cell;
use core::fmt;
use core::time::Duration;

/// What the kernel knows about itself at one moment. What it cannot know stays 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Time since the kernel started.
    pub uptime: Duration,
    /// Heap bytes in use.
    pub heap_used: u64,
    /// Heap bytes that there are.
    pub heap_total: u64,
    /// The most heap bytes that were ever in use.
    pub heap_high_water: u64,
    /// Objects that were ever allocated in the heap.
    pub heap_allocations: u64,
    /// Pages that nobody uses, outside of the heap.
    pub free_pages: u64,
    /// The least that there ever were of those.
    pub least_free_pages: u64,
    /// Pages that are given back to Xen.
    pub ballooned_pages: u64,
    /// Memory that one more socket costs beneath the app (rings, bookkeeping), in bytes; on each stack, where
    /// there are several.
    pub socket_bytes: u64,
    /// Sockets open now, listening ones left out.
    pub sockets_open: u64,
    /// Sockets that were ever opened, listening ones left out.
    pub sockets_total: u64,
    /// Bytes received through sockets.
    pub bytes_in: u64,
    /// Bytes sent through sockets.
    pub bytes_out: u64,
    /// Events that arrived on event channels.
    pub events_received: u64,
    /// Notifications sent to event channels.
    pub notifications_sent: u64,
    /// Grant references in use.
    pub grants_in_use: u64,
    /// Grant references that there are.
    pub grants_capacity: u64,
    /// Pages that the backend still maps although their connection is over.
    pub quarantined_pages: u64,
    /// Rings that are kept, with their grants and ports, for the next connections.
    pub parked_rings: u64,
    /// Frames that came over network interfaces.
    pub frames_in: u64,
    /// Frames that left over them.
    pub frames_out: u64,
    /// Frames that got nowhere, either way.
    pub frames_dropped: u64,
    /// Event channel ports that are open.
    pub ports_open: u64,
    /// Timers that wait for their time.
    pub timers: u64,
    /// Time since the Unix epoch.
    pub unix_time: Duration,
    /// Hypercalls made.
    pub hypercalls: u64,
    /// How often the CPU has woken from its sleep.
    pub wakeups: u64,
    /// Bytes of console output that found no room.
    pub console_dropped: u64,
}

/// What the running app counts.
#[derive(Debug, Default)]
pub struct Counters {
    connections_open: Cell<u64>,
    connections_total: Cell<u64>,
    connections_failed: Cell<u64>,
    requests: Cell<u64>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
}

/// Wraps rather than panics: a counter must never take the guest down.
fn add(counter: &Cell<u64>, amount: u64) {
    counter.set(counter.get().wrapping_add(amount));
}

impl Counters {
    /// Counts a connection, which is open until the guard is dropped.
    pub fn connection(&self) -> OpenConnection<'_> {
        add(&self.connections_open, 1);
        add(&self.connections_total, 1);
        OpenConnection { counters: self }
    }

    /// Counts a connection that ended with an error.
    pub fn connection_failed(&self) {
        add(&self.connections_failed, 1);
    }

    /// Counts a request.
    pub fn request(&self) {
        add(&self.requests, 1);
    }

    /// Counts bytes that the app read.
    pub fn received(&self, bytes: usize) {
        add(&self.bytes_in, bytes as u64);
    }

    /// Counts bytes that the app wrote.
    pub fn sent(&self, bytes: usize) {
        add(&self.bytes_out, bytes as u64);
    }

    /// Connections that are open now.
    pub fn connections_open(&self) -> u64 {
        self.connections_open.get()
    }

    /// Connections that there ever were.
    pub fn connections_total(&self) -> u64 {
        self.connections_total.get()
    }

    /// Connections that ended with an error: reset, timed out, broken off.
    pub fn connections_failed(&self) -> u64 {
        self.connections_failed.get()
    }

    /// Requests that were understood, those answered with an error included.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Bytes that the app read.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.get()
    }

    /// Bytes that the app wrote.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.get()
    }
}

/// A connection that counts as open.
#[derive(Debug)]
pub struct OpenConnection<'c> {
    counters: &'c Counters,
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        let open = &self.counters.connections_open;
        open.set(open.get().saturating_sub(1));
    }
}

/// The kernel's snapshots and the app's counters, as the apps get them.
pub struct Metrics {
    /// What the app counts.
    pub counters: Counters,
    source: Box<dyn Fn() -> Snapshot>,
}

impl Metrics {
    /// Metrics whose kernel half comes from `source`, which is called for each page shown.
    pub fn new(source: impl Fn() -> Snapshot + 'static) -> Metrics {
        Metrics { counters: Counters::default(), source: Box::new(source) }
    }

    /// The kernel's half, now.
    pub fn snapshot(&self) -> Snapshot {
        (self.source)()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("counters", &self.counters)
            .field("snapshot", &self.snapshot())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;

    #[test]
    fn a_connection_is_open_until_its_guard_goes() {
        let counters = Counters::default();
        let first = counters.connection();
        let second = counters.connection();
        drop(first);
        assert_eq!((counters.connections_open(), counters.connections_total()), (1, 2));
        drop(second);
        assert_eq!((counters.connections_open(), counters.connections_total()), (0, 2));
    }

    #[test]
    fn a_snapshot_is_taken_anew_each_time() {
        let pages = Rc::new(Cell::new(1));
        let seen = pages.clone();
        let metrics =
            Metrics::new(move || Snapshot { free_pages: seen.get(), ..Snapshot::default() });
        assert_eq!(metrics.snapshot().free_pages, 1);
        pages.set(2);
        assert_eq!(metrics.snapshot().free_pages, 2);
    }
}
