//! The numbers as text, in the OpenMetrics format, which is one of Prometheus's.

use super::{Datagrams, GuestNumbers, Numbers, Reason};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use rustix::process::{Resource, getrlimit};
use std::sync::atomic::AtomicU64;
use xensock::back::Limits;

/// The most characters of a guest's name.
const MAX_NAME: usize = 64;

/// Names and values.
type Labels = Vec<(&'static str, String)>;

/// All numbers.
pub fn text(daemon: &Numbers, guests: &[GuestNumbers]) -> String {
    let mut registry = Registry::default();
    daemon.register(&mut registry, guests.len());
    register(&mut registry, guests);
    let mut text = String::new();
    // It fails only if a string cannot be written to.
    let _ = encode(&mut text, &registry);
    text
}

fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

impl Numbers {
    fn register(&self, registry: &mut Registry, guests: usize) {
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("xensockd_build", "The daemon", version);
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge: Gauge = Gauge::default();
            gauge.set(value);
            registry.register(name, help, gauge);
        };
        for (name, help, value) in [
            ("xensockd_guests", "Guests that have a device", signed(guests)),
            ("xensockd_devices", "Connected devices of guests", signed(self.devices)),
            ("xensockd_threads", "Threads that serve guests", signed(self.threads)),
            ("xensockd_mappings", "Mappings of guests' memory", signed(self.mappings)),
            ("xensockd_event_channels", "Bound event channels", signed(self.event_channels)),
            (
                "xensockd_kept_listeners",
                "Listening sockets of the daemon before that wait for their guests",
                signed(self.kept),
            ),
        ] {
            gauge(name, help, value);
        }
        if let Some(files) = self.files {
            gauge("process_open_fds", "Open files", signed(files));
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            gauge("process_max_fds", "The most open files", signed(most));
        }
    }
}

fn register(registry: &mut Registry, guests: &[GuestNumbers]) {
    let labels = |guest: &GuestNumbers, more: &[(&'static str, &str)]| -> Labels {
        let name = guest.name.chars().take(MAX_NAME).collect();
        let more = more.iter().map(|(name, value)| (*name, value.to_string()));
        [("guest", name), ("domain", guest.domain.to_string())].into_iter().chain(more).collect()
    };
    let gauges = [("sockets", "Open sockets"), ("ring_pages", "Mapped pages of data rings")];
    let [sockets, ring_pages] = gauges.map(|(name, help)| {
        let family = Family::<Labels, Gauge>::default();
        registry.register(format!("xensockd_guest_{name}"), help, family.clone());
        family
    });
    let limits = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    registry.register(
        "xensockd_guest_limit",
        "The most that a guest may have, by the setting of the rules",
        limits.clone(),
    );
    let counters = [
        ("received", "Received bytes", Some(Unit::Bytes)),
        ("sent", "Sent bytes", Some(Unit::Bytes)),
        ("connections", "Opened connections, by the end that opened them", None),
        ("datagrams", "Datagrams, by what became of them", None),
        ("requests", "Requests of the guest's devices", None),
        ("refused", "Calls that were refused, by the setting that does not allow them", None),
    ];
    let [received, sent, connections, datagrams, requests, refused] =
        counters.map(|(name, help, unit)| {
            let (family, name) =
                (Family::<Labels, Counter>::default(), format!("xensockd_guest_{name}"));
            match unit {
                Some(unit) => registry.register_with_unit(name, help, unit, family.clone()),
                None => registry.register(name, help, family.clone()),
            }
            family
        });
    for guest in guests {
        let (own, traffic) = (labels(guest, &[]), &guest.traffic);
        sockets.get_or_create(&own).set(signed(guest.sockets));
        ring_pages.get_or_create(&own).set(signed(guest.ring_pages));
        received.get_or_create(&own).inc_by(traffic.received.get());
        sent.get_or_create(&own).inc_by(traffic.sent.get());
        requests.get_or_create(&own).inc_by(guest.requests);
        for (by, count) in [("peer", &traffic.accepted), ("guest", &traffic.connected)] {
            connections.get_or_create(&labels(guest, &[("by", by)])).inc_by(count.get());
        }
        for (outcome, name) in Datagrams::ALL {
            let count = traffic.datagrams[outcome as usize].get();
            datagrams.get_or_create(&labels(guest, &[("outcome", name)])).inc_by(count);
        }
        for (reason, name) in Reason::ALL {
            let count = traffic.refused[reason as usize].get();
            refused.get_or_create(&labels(guest, &[("reason", name)])).inc_by(count);
        }
        let Limits { sockets, pages, backlog, .. } = guest.limits;
        for (setting, most) in [
            ("sockets", Some(sockets as f64)),
            ("ring-pages", Some(pages as f64)),
            ("backlog", Some(backlog as f64)),
            ("connections-per-second", guest.limits.connections_per_second.map(f64::from)),
            ("bytes-in-per-second", guest.limits.bytes_in_per_second.map(|most| most as f64)),
            ("bytes-out-per-second", guest.limits.bytes_out_per_second.map(|most| most as f64)),
        ] {
            if let Some(most) = most {
                limits.get_or_create(&labels(guest, &[("setting", setting)])).set(most);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{OpenFiles, Traffic};
    use std::collections::BTreeSet;

    /// The numbers of a daemon with these guests.
    fn numbers(names: &[&str]) -> String {
        let guest = |(domain, name): (u16, &&str)| {
            let traffic = Traffic::default();
            traffic.refuse(Reason::Listen);
            traffic.received.set(u64::MAX);
            GuestNumbers {
                domain,
                name: name.to_string(),
                sockets: 3,
                ring_pages: 0,
                limits: Limits { bytes_in_per_second: Some(7), ..Limits::default() },
                requests: 5,
                traffic,
            }
        };
        let guests: Vec<_> = (1..).zip(names).map(guest).collect();
        text(&Numbers { files: OpenFiles::open().count(), ..Numbers::default() }, &guests)
    }

    #[test]
    fn each_guest_has_its_numbers() {
        let text = numbers(&["web", ""]);
        for line in [
            "xensockd_guests 2",
            "xensockd_guest_sockets{guest=\"web\",domain=\"1\"} 3",
            "xensockd_guest_sockets{guest=\"\",domain=\"2\"} 3",
            "xensockd_guest_requests_total{guest=\"web\",domain=\"1\"} 5",
            "xensockd_guest_received_bytes_total{guest=\"web\",domain=\"1\"} \
             18446744073709551615",
            "xensockd_guest_refused_total{guest=\"web\",domain=\"1\",reason=\"listen\"} 1",
            "xensockd_guest_refused_total{guest=\"web\",domain=\"1\",reason=\"connect\"} 0",
            "xensockd_guest_limit{guest=\"web\",domain=\"1\",setting=\"bytes-in-per-second\"} 7.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "no {line} in {text}");
        }
        assert!(!text.contains("connections-per-second\"} 1"), "it is unlimited");
    }

    #[test]
    fn a_name_cannot_add_lines_or_labels_and_is_short() {
        let evil = "a\"} 1\nxensockd_guests{x=\"\\";
        let text = numbers(&[evil, &"é".repeat(10_000)]);
        let guests = text.lines().filter(|line| line.starts_with("xensockd_guests"));
        assert_eq!(guests.count(), 1, "{text}");
        assert!(text.contains(r#"{guest="a\"} 1\nxensockd_guests{x=\"\\",domain="1"}"#), "{text}");
        assert!(text.lines().all(|line| line.len() < 300), "{text}");
    }

    #[test]
    fn the_dashboard_asks_for_all_numbers_and_for_no_others() {
        let dashboard = include_str!("../../dist/xensockd-dashboard.json");
        serde_json::from_str::<serde_json::Value>(dashboard).unwrap();
        let words = dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let is_number = |word: &&str| word.starts_with("xensockd_") || word.starts_with("process_");
        let asked: BTreeSet<_> = words.filter(is_number).collect();
        let text = numbers(&["web"]);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let there: BTreeSet<_> = lines.filter_map(|line| line.split(['{', ' ']).next()).collect();
        assert_eq!(asked, there);
    }
}
