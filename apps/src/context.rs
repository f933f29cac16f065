//! The guest as the apps see it, and the numbers that the apps count.

use crate::http::pattern::Pattern;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::OnceCell;
use core::time::Duration;
use xen::{Counted, Counter};

/// A number: its name for Prometheus without the prefix `xensock_`, its meaning, and its value now.
/// Names that end in `_total` are counters, all others are gauges.
pub type Metric = (&'static str, &'static str, u64);

/// The guest that runs an app. The defaults are for tests on a host.
pub trait Environment {
    /// All numbers of the guest.
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }

    /// Free memory, in bytes.
    fn free_memory(&self) -> u64 {
        0
    }

    /// The memory that each further socket takes beneath the app (rings, bookkeeping), in bytes.
    fn socket_memory(&self) -> u64 {
        0
    }

    /// Whether an app may allocate `bytes`. An allocation that fails ends the guest, so apps ask
    /// before each large one that a peer can cause.
    fn has_room(&self, _bytes: usize) -> bool {
        true
    }

    /// The files that the toolstack has put beside the guest (xl's `ramdisk=`).
    fn files(&self) -> Vec<&'static [u8]> {
        Vec::new()
    }

    /// What tells the time since the Unix epoch, if it is known.
    fn clock(&self) -> fn() -> Option<Duration> {
        || None
    }

    /// Called when an app listens on its port.
    fn listening(&self) {}
}

impl Environment for () {}

/// The numbers that the running app counts.
#[derive(Debug, Default)]
pub struct Counters {
    pub connections_open: Counter,
    pub connections_total: Counter,
    pub connections_failed: Counter,
    pub requests: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
}

/// The environment and the counters of one app. For a single thread.
pub struct Context {
    /// The app's numbers.
    pub counters: Counters,
    pattern: OnceCell<Pattern>,
    environment: Box<dyn Environment>,
}

impl Context {
    /// A context in `environment` with all counters at 0.
    pub fn new(environment: impl Environment + 'static) -> Context {
        Context {
            counters: Counters::default(),
            pattern: OnceCell::new(),
            environment: Box::new(environment),
        }
    }

    /// The bytes of `/bytes/N`, computed when an app first asks for them.
    pub(crate) fn pattern(&self) -> &Pattern {
        self.pattern.get_or_init(Pattern::new)
    }

    /// All numbers of the guest and of the app.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut metrics = self.environment.metrics();
        let app = &self.counters;
        metrics.extend([
            ("app_connections_open", "The app's open connections.", app.connections_open.get()),
            ("app_connections_total", "The app's connections.", app.connections_total.get()),
            (
                "app_connections_failed_total",
                "The app's connections that ended with an error.",
                app.connections_failed.get(),
            ),
            ("app_requests_total", "Requests that were understood.", app.requests.get()),
            ("app_received_bytes_total", "Bytes that the app read.", app.bytes_in.get()),
            ("app_sent_bytes_total", "Bytes that the app wrote.", app.bytes_out.get()),
        ]);
        metrics
    }

    /// Counts a connection, which is open until the guard is dropped.
    pub fn connection(&self) -> Counted<&Counter> {
        self.counters.connections_total.add(1);
        Counted::new(&self.counters.connections_open)
    }

    /// The most connections of a server: as many as fit into half of the free memory, if each takes
    /// `app_bytes` on top of its socket.
    pub fn connection_limit(&self, app_bytes: usize) -> usize {
        let each = self.environment.socket_memory().saturating_add(app_bytes as u64).max(1);
        // The lower bound is for an environment that does not know its memory.
        (self.environment.free_memory() / 2 / each).clamp(16, 65536) as usize
    }

    /// Whether an app may allocate `bytes`; see [`Environment::has_room`].
    pub fn has_room(&self, bytes: usize) -> bool {
        self.environment.has_room(bytes)
    }

    /// A buffer of `size` zeroes, or `None` if memory is short.
    pub fn buffer(&self, size: usize) -> Option<Box<[u8]>> {
        let mut buffer = Vec::new();
        if !self.has_room(size) || buffer.try_reserve_exact(size).is_err() {
            return None;
        }
        buffer.resize(size, 0);
        Some(buffer.into_boxed_slice())
    }

    /// The first file beside the guest.
    #[cfg(feature = "tls")]
    pub(crate) fn file(&self) -> Option<&'static [u8]> {
        self.environment.files().into_iter().find(|file| !file.is_empty())
    }

    /// See [`Environment::clock`].
    #[cfg(feature = "tls")]
    pub(crate) fn clock(&self) -> fn() -> Option<Duration> {
        self.environment.clock()
    }

    pub(crate) fn listening(&self) {
        self.environment.listening();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;
    use alloc::rc::Rc;
    use alloc::vec;
    use core::cell::Cell;

    #[test]
    fn a_connection_is_open_until_its_guard_is_dropped() {
        let context = Context::new(());
        let Counters { connections_open: open, connections_total: total, .. } = &context.counters;
        let first = context.connection();
        let second = context.connection();
        drop(first);
        assert_eq!((open.get(), total.get()), (1, 2));
        drop(second);
        assert_eq!((open.get(), total.get()), (0, 2));
    }

    #[test]
    fn metrics_are_read_anew_each_time() {
        struct Pages(Rc<Cell<u64>>);
        impl Environment for Pages {
            fn metrics(&self) -> Vec<Metric> {
                vec![("free_pages", "Free pages.", self.0.get())]
            }
        }
        let pages = Rc::new(Cell::new(1));
        let context = Context::new(Pages(pages.clone()));
        assert_eq!(context.metrics()[0].2, 1);
        pages.set(2);
        assert_eq!(context.metrics()[0].2, 2);
    }

    #[test]
    fn a_guest_of_64_mib_has_room_for_200_connections() {
        struct Guest;
        impl Environment for Guest {
            fn free_memory(&self) -> u64 {
                47 << 20
            }

            // The rings of draft 1's default order would be 256 KiB; PV Calls' order 4 is 64 KiB.
            fn socket_memory(&self) -> u64 {
                68 << 10
            }
        }
        let limit = Context::new(Guest).connection_limit(http::CONNECTION_MEMORY);
        assert!((200..400).contains(&limit), "{limit}");
        assert_eq!(Context::new(()).connection_limit(1 << 14), 16);
    }
}
