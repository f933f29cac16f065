//! `/metrics`: all numbers in Prometheus' text format, version 0.0.4.

use crate::metrics::Metrics;
use alloc::string::String;
use core::fmt::Write;

/// The media type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Puts the numbers into `out`.
pub fn write(out: &mut String, metrics: &Metrics) {
    let now = metrics.snapshot();
    let app = &metrics.counters;
    let mut one = |name: &str, kind: &str, help: &str, value: u64| {
        // Writing to a `String` cannot fail.
        let _ = write!(
            out,
            "# HELP xensock_{name} {help}\n# TYPE xensock_{name} {kind}\nxensock_{name} {value}\n"
        );
    };
    one("uptime_seconds", "gauge", "Time since the kernel started.", now.uptime.as_secs());
    one("heap_used_bytes", "gauge", "Heap bytes in use.", now.heap_used);
    one("heap_total_bytes", "gauge", "Heap bytes that there are.", now.heap_total);
    one("heap_high_water_bytes", "gauge", "Most heap bytes ever in use.", now.heap_high_water);
    one("heap_allocations_total", "counter", "Objects ever allocated.", now.heap_allocations);
    one("free_pages", "gauge", "Pages that nobody uses, outside of the heap.", now.free_pages);
    one("free_pages_least", "gauge", "Fewest free pages ever.", now.least_free_pages);
    one("ballooned_pages", "gauge", "Pages given back to Xen.", now.ballooned_pages);
    one("sockets_open", "gauge", "Sockets open now.", now.sockets_open);
    one("sockets_total", "counter", "Sockets ever opened.", now.sockets_total);
    one("socket_received_bytes_total", "counter", "Bytes received by sockets.", now.bytes_in);
    one("socket_sent_bytes_total", "counter", "Bytes sent by sockets.", now.bytes_out);
    one("events_total", "counter", "Events that arrived on event channels.", now.events_received);
    one("notifications_total", "counter", "Notifications sent.", now.notifications_sent);
    one("grants_in_use", "gauge", "Grant references in use.", now.grants_in_use);
    one("grants_capacity", "gauge", "Grant references that there are.", now.grants_capacity);
    one("quarantined_pages", "gauge", "Pages of closed rings still mapped.", now.quarantined_pages);
    one("parked_rings", "gauge", "Rings kept for the next connections.", now.parked_rings);
    one(
        "frames_received_total",
        "counter",
        "Frames of network interfaces, received.",
        now.frames_in,
    );
    one("frames_sent_total", "counter", "Frames of network interfaces, sent.", now.frames_out);
    one("frames_dropped_total", "counter", "Frames that got nowhere.", now.frames_dropped);
    one("ports_open", "gauge", "Event channel ports that are open.", now.ports_open);
    one("timers", "gauge", "Timers that wait for their time.", now.timers);
    one("unix_time_seconds", "gauge", "The wall clock.", now.unix_time.as_secs());
    one("hypercalls_total", "counter", "Hypercalls made.", now.hypercalls);
    one("wakeups_total", "counter", "How often the idle CPU has woken.", now.wakeups);
    one("console_dropped_bytes_total", "counter", "Console output lost.", now.console_dropped);
    one("app_connections_open", "gauge", "The app's connections now.", app.connections_open());
    one("app_connections_total", "counter", "The app's connections.", app.connections_total());
    one(
        "app_connections_failed_total",
        "counter",
        "The app's connections that ended with an error.",
        app.connections_failed(),
    );
    one("app_requests_total", "counter", "Requests that were understood.", app.requests());
    one("app_received_bytes_total", "counter", "Bytes that the app read.", app.bytes_in());
    one("app_sent_bytes_total", "counter", "Bytes that the app wrote.", app.bytes_out());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Snapshot;
    use alloc::vec::Vec;

    #[test]
    fn each_number_has_its_help_its_type_and_a_name_of_its_own() {
        let metrics = Metrics::new(|| Snapshot { ports_open: 42, ..Snapshot::default() });
        let mut text = String::new();
        write(&mut text, &metrics);
        let lines: Vec<&str> = text.lines().collect();
        let mut names = Vec::new();
        for group in lines.chunks(3) {
            let [help, kind, value] = group else { panic!("{group:?}") };
            let (name, number) = value.split_once(' ').unwrap();
            assert!(help.starts_with("# HELP ") && help[7..].starts_with(name), "{help}");
            let kind = kind.strip_prefix("# TYPE ").unwrap().strip_prefix(name).unwrap();
            assert_eq!(kind == " counter", name.ends_with("_total"), "{name}");
            assert!(kind == " counter" || kind == " gauge", "{kind}");
            number.parse::<u64>().unwrap();
            assert!(!names.contains(&name), "{name}");
            names.push(name);
        }
        assert!(names.len() > 15);
        assert!(text.contains("\nxensock_ports_open 42\n"));
    }
}
