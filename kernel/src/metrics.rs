//! The guest's numbers.

/// A number: its name, its meaning, and its value.
pub type Metric = (&'static str, &'static str, u64);

macro_rules! snapshot {
    ($(#[doc = $help:literal] $name:ident,)*) => {
        /// The guest's numbers at one moment. Names that end in `_total` are counters.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $(#[doc = $help] pub $name: u64,)*
        }

        impl Snapshot {
            /// All numbers, with their fields' names and documentation.
            pub fn metrics(&self) -> impl Iterator<Item = Metric> {
                [$((stringify!($name), $help.trim_ascii(), self.$name),)*].into_iter()
            }
        }
    };
}

snapshot! {
    /// Time since the kernel started.
    uptime_seconds,
    /// Heap bytes in use.
    heap_used_bytes,
    /// Heap bytes, used and free.
    heap_total_bytes,
    /// Most heap bytes ever in use.
    heap_high_water_bytes,
    /// Objects ever allocated.
    heap_allocations_total,
    /// Free pages outside of the heap.
    free_pages,
    /// Fewest free pages ever.
    free_pages_least,
    /// Pages given back to Xen.
    ballooned_pages,
    /// Bytes that one more socket takes: rings or buffers, and bookkeeping.
    socket_bytes,
    /// Sockets open now, without listening ones.
    sockets_open,
    /// Sockets ever opened, without listening ones.
    sockets_total,
    /// Bytes received by sockets.
    socket_received_bytes_total,
    /// Bytes sent by sockets.
    socket_sent_bytes_total,
    /// Events received on event channels.
    events_total,
    /// Notifications sent.
    notifications_total,
    /// Grant references in use.
    grants_in_use,
    /// Grant references, used and free.
    grants_capacity,
    /// Pages of other domains that are mapped.
    foreign_pages,
    /// Pages of closed connections that the backend still maps.
    quarantined_pages,
    /// Rings kept for the next connections.
    parked_rings,
    /// Pages of data rings, in use or kept.
    ring_pages,
    /// Changes of a data ring's size.
    rings_resized_total,
    /// Frames received by network interfaces.
    frames_received_total,
    /// Frames sent by network interfaces.
    frames_sent_total,
    /// Frames dropped, in either direction.
    frames_dropped_total,
    /// Event channel ports that are open.
    ports_open,
    /// Pending timers.
    timers,
    /// The wall clock.
    unix_time_seconds,
    /// Hypercalls made.
    hypercalls_total,
    /// How often the idle CPU has woken.
    wakeups_total,
    /// Bytes of console output lost.
    console_dropped_bytes_total,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_its_own_help() {
        let metrics: Vec<_> = Snapshot::default().metrics().collect();
        assert!(metrics.len() > 15);
        for (at, (name, help, _)) in metrics.iter().enumerate() {
            assert!(help.ends_with('.') && !help.starts_with(' '), "{name}: {help}");
            assert!(metrics[..at].iter().all(|(_, other, _)| other != help), "{name}");
        }
    }

    #[test]
    fn the_page_for_humans_shows_existing_numbers() {
        let page = include_str!("../../apps/src/http/page.rs");
        let names = page.split("get(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        for name in names.filter(|name| !name.starts_with("app_")) {
            assert!(Snapshot::default().metrics().any(|metric| metric.0 == name), "{name}");
        }
    }
}
