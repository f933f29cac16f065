//! The table of the medians, and the comparison with the targets.

use crate::idc::COLUMNS;
use crate::{Figures, Rival};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

/// The medians: rival, figure, value.
pub type Results = BTreeMap<String, Figures>;

/// The rows of the table: a figure's name, and its meaning with its unit.
const ROWS: &[(&str, &str)] = &[
    ("out_mib_per_s", "bulk out, MiB/s"),
    ("in_mib_per_s", "bulk in, MiB/s"),
    ("both_mib_per_s", "in and out at once, MiB/s each way"),
    ("round_trip_us", "round trip of 64 bytes, median, us"),
    ("round_trip_p99_us", "  99th percentile, us"),
    ("datagram_round_trip_64_us", "round trip of a datagram, 64 bytes, us"),
    ("datagram_round_trip_1400_us", "  1,400 bytes, us"),
    ("datagram_echoes_64_per_s", "datagrams/s that return, 32 at a time, 64 bytes"),
    ("datagram_echoes_64_lost_percent", "  lost, %"),
    ("datagram_echoes_1400_per_s", "  1,400 bytes"),
    ("datagram_echoes_1400_lost_percent", "  lost, %"),
    ("datagrams_out_64_per_s", "datagrams/s out of a flood, 64 bytes"),
    ("datagrams_out_64_lost_percent", "  lost, %"),
    ("datagrams_out_1400_per_s", "  1,400 bytes"),
    ("datagrams_out_1400_lost_percent", "  lost, %"),
    ("datagrams_in_64_per_s", "datagrams/s into a flood's sink, 64 bytes"),
    ("datagrams_in_64_lost_percent", "  lost, %"),
    ("datagrams_in_1400_per_s", "  1,400 bytes"),
    ("datagrams_in_1400_lost_percent", "  lost, %"),
    ("requests_per_s", "requests/s, 1 kept connection"),
    ("requests_of_64_per_s", "requests/s, 64 kept connections"),
    ("connections_per_s", "connections/s, 64 bytes each"),
    ("connection_us", "connect, 64 bytes, close, us"),
    ("tls_connections_per_s", "TLS handshakes/s, 4 at a time"),
    ("tls_out_mib_per_s", "bulk out over TLS, MiB/s"),
    ("idle_connections", "connections that stay open"),
    ("idle_open_us", "  opening each, us"),
    ("idle_guest_kib", "  the guest's memory for each, KiB"),
    ("idle_dom0_kib", "  dom0's memory for each, KiB"),
    ("idle_round_trip_us", "  round trip with them, us"),
    ("boot_ms", "xl unpause to the first byte, ms"),
    ("init_ms", "  to the guest's init, ms"),
    ("unpause_ms", "  xl unpause itself, ms"),
    ("image_kib", "stripped image, KiB"),
    ("tls_image_kib", "  with TLS, KiB"),
    ("hello_kib", "  of kernel/examples/hello.rs, KiB"),
    ("out_guest_cpu_s_per_gib", "guest CPU per GiB out, s"),
    ("tls_out_guest_cpu_s_per_gib", "guest CPU per GiB out over TLS, s"),
    ("in_guest_cpu_s_per_gib", "guest CPU per GiB in, s"),
    ("out_dom0_cpu_s_per_gib", "dom0 CPU per GiB out, s"),
    ("tls_out_dom0_cpu_s_per_gib", "dom0 CPU per GiB out over TLS, s"),
    ("in_dom0_cpu_s_per_gib", "dom0 CPU per GiB in, s"),
    ("round_trip_guest_cpu_ms_each", "guest CPU per round trip, ms"),
    ("round_trip_dom0_cpu_ms_each", "dom0 CPU per round trip, ms"),
    ("request_guest_cpu_ms_each", "guest CPU per request of 64, ms"),
    ("request_dom0_cpu_ms_each", "dom0 CPU per request of 64, ms"),
    ("connection_guest_cpu_ms_each", "guest CPU per connection, ms"),
    ("tls_connection_guest_cpu_ms_each", "guest CPU per TLS handshake, ms"),
    ("connection_dom0_cpu_ms_each", "dom0 CPU per connection, ms"),
    ("tls_connection_dom0_cpu_ms_each", "dom0 CPU per TLS handshake, ms"),
    ("out_hypercalls_per_mib", "guest's hypercalls per MiB out"),
    ("in_hypercalls_per_mib", "guest's hypercalls per MiB in"),
    ("round_trip_hypercalls_each", "guest's hypercalls per round trip"),
    ("request_hypercalls_each", "guest's hypercalls per request of 64"),
    ("out_notifications_per_mib", "guest's notifications per MiB out"),
    ("in_notifications_per_mib", "guest's notifications per MiB in"),
    ("round_trip_notifications_each", "guest's notifications per round trip"),
    ("request_notifications_each", "guest's notifications per request of 64"),
    ("out_system_calls_per_mib", "xensockd's system calls per MiB out"),
    ("in_system_calls_per_mib", "xensockd's system calls per MiB in"),
    ("round_trip_system_calls_each", "xensockd's system calls per round trip"),
    ("request_system_calls_each", "xensockd's system calls per request of 64"),
];

/// The rows of IDC's table.
const IDC_ROWS: &[(&str, &str)] = &[
    ("out_mib_per_s", "bulk out, MiB/s"),
    ("in_mib_per_s", "bulk in, MiB/s"),
    ("round_trip_us", "round trip of 64 bytes, median, us"),
    ("round_trip_p99_us", "  99th percentile, us"),
    ("messages_per_s", "messages/s, 64 bytes each"),
    ("out_guest_cpu_s_per_gib", "guest CPU per GiB out, s"),
    ("in_guest_cpu_s_per_gib", "guest CPU per GiB in, s"),
    ("round_trip_guest_cpu_ms_each", "guest CPU per round trip, ms"),
    ("message_guest_cpu_ms_each", "guest CPU per message, ms"),
    ("out_client_cpu_s_per_gib", "client's CPU per GiB out, s"),
    ("in_client_cpu_s_per_gib", "client's CPU per GiB in, s"),
    ("round_trip_client_cpu_ms_each", "client's CPU per round trip, ms"),
    ("message_client_cpu_ms_each", "client's CPU per message, ms"),
    ("out_guest_hypercalls_per_mib", "guest's hypercalls per MiB out"),
    ("in_guest_hypercalls_per_mib", "guest's hypercalls per MiB in"),
    ("round_trip_guest_hypercalls_each", "guest's hypercalls per round trip"),
    ("message_guest_hypercalls_each", "guest's hypercalls per message"),
    ("out_guest_notifications_per_mib", "guest's notifications per MiB out"),
    ("in_guest_notifications_per_mib", "guest's notifications per MiB in"),
    ("round_trip_guest_notifications_each", "guest's notifications per round trip"),
    ("message_guest_notifications_each", "guest's notifications per message"),
    ("out_client_notifications_per_mib", "client's notifications per MiB out"),
    ("in_client_notifications_per_mib", "client's notifications per MiB in"),
    ("round_trip_client_notifications_each", "client's notifications per round trip"),
    ("message_client_notifications_each", "client's notifications per message"),
];

/// The table of the sockets. Each figure is followed by its ratio to that of dom0's loopback, or to
/// XenSock's if loopback has none.
pub fn table(results: &Results) -> String {
    let bases = [Rival::Loopback, Rival::XenSock].map(Rival::name);
    grid(results, &Rival::ALL.map(Rival::name), ROWS, &bases)
}

/// The table of IDC.
pub fn idc_table(results: &Results) -> String {
    grid(results, &COLUMNS, IDC_ROWS, &["ring"])
}

/// A table of some figures, of which some are the `bases`: the first one that has a figure is what
/// the others are divided by.
fn grid(results: &Results, columns: &[&str], rows: &[(&str, &str)], bases: &[&str]) -> String {
    let has_row = |(name, _): &&(&str, &str)| {
        columns.iter().any(|column| results.get(*column).is_some_and(|all| all.contains_key(*name)))
    };
    let rows: Vec<_> = rows.iter().filter(has_row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!("{:42}", "");
    for column in columns {
        text += &format!("{column:>20}");
    }
    text.push('\n');
    for (name, meaning) in rows {
        let value = |column: &str| results.get(column)?.get(*name).copied();
        let base = bases.iter().find_map(|base| value(base));
        text += &format!("{meaning:42}");
        for column in columns {
            let cell = value(column).map_or("-".to_owned(), |value| {
                let ratio = base.filter(|base| *base > 0.0).map(|base| value / base);
                let ratio = ratio.map_or(String::new(), |ratio| format!(" {ratio:6.2}x"));
                format!("{}{ratio}", short(value))
            });
            text += &format!("{cell:>20}");
        }
        text.push('\n');
    }
    text
}

/// A number with three or four significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A target, and the value that it is compared with.
pub struct Target {
    what: String,
    /// What was measured, if it was.
    pub value: Option<f64>,
    limit: Limit,
}

#[derive(Clone, Copy)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (word, limit) = match self.limit {
            Limit::AtLeast(limit) => ("at least", limit),
            Limit::AtMost(limit) => ("at most", limit),
            Limit::Below(limit) => ("below", limit),
        };
        let met = self.value.map(|value| match self.limit {
            Limit::AtLeast(limit) => value >= limit,
            Limit::AtMost(limit) => value <= limit,
            Limit::Below(limit) => value < limit,
        });
        let verdict = match met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "no figure",
        };
        let value = self.value.map_or("-".to_owned(), short);
        write!(f, "{:62} {word:>8} {:>6} {value:>8}   {verdict}", self.what, short(limit))
    }
}

/// The targets, in the order of their list in `docs/performance.md`.
pub fn targets(results: &Results) -> Vec<Target> {
    use Limit::{AtLeast, AtMost, Below};
    let of = |rival: Rival, name: &str| results.get(rival.name())?.get(name).copied();
    let ours = |name: &str| of(Rival::XenSock, name);
    let ratio = |name: &str, rival| Some(ours(name)? / of(rival, name)?);
    let sum = |rival, way: &str| {
        let guest = of(rival, &format!("{way}_guest_cpu_s_per_gib"))?;
        Some(guest + of(rival, &format!("{way}_dom0_cpu_s_per_gib"))?)
    };
    let others = [Rival::Netfront, Rival::Linux, Rival::PvcallsBack];
    let mut list = Vec::new();
    let mut add = |what: String, value, limit| list.push(Target { what, value, limit });
    for (way, loopback, other) in [("out", 1.0, 1.5), ("in", 0.9, 1.2)] {
        let name = format!("{way}_mib_per_s");
        let what = format!("bulk {way}, in that of loopback");
        add(what, ratio(&name, Rival::Loopback), AtLeast(loopback));
        for rival in others {
            let what = format!("bulk {way}, in that of {}", rival.name());
            add(what, ratio(&name, rival), AtLeast(other));
        }
    }
    let name = "round_trip_us";
    add("round trip, in that of pvcalls-back".into(), ratio(name, Rival::PvcallsBack), Below(1.0));
    add("round trip, in that of linux".into(), ratio(name, Rival::Linux), AtMost(0.55));
    for way in ["out", "in"] {
        let name = format!("{way}_guest_cpu_s_per_gib");
        let what = format!("guest CPU per GiB {way}, in that of linux");
        add(what, ratio(&name, Rival::Linux), AtMost(0.1));
    }
    for way in ["out", "in"] {
        let what = format!("guest and dom0 CPU per GiB {way}, in that of linux");
        let value = sum(Rival::XenSock, way).zip(sum(Rival::Linux, way));
        add(what, value.map(|(ours, theirs)| ours / theirs), AtMost(0.5));
    }
    for (what, name) in [
        ("that return", "datagram_echoes_64_per_s"),
        ("out", "datagrams_out_64_per_s"),
        ("in", "datagrams_in_64_per_s"),
    ] {
        let what = format!("datagrams/s {what}, 64 bytes, in those of linux");
        add(what, ratio(name, Rival::Linux), AtLeast(2.0));
    }
    let value = ours("datagram_round_trip_64_us").zip(ours("round_trip_us"));
    let value = value.map(|(datagram, stream)| datagram / stream);
    add("round trip of a datagram, in that of a stream".into(), value, AtMost(1.0));
    for size in [64, 1400] {
        let value = ours(&format!("datagram_echoes_{size}_lost_percent"));
        let what = format!("datagrams lost while the receiver keeps up, {size} bytes, %");
        add(what, value, AtMost(0.0));
    }
    let value = ratio("requests_of_64_per_s", Rival::Linux);
    add("requests/s of 64 connections, in those of linux".into(), value, AtLeast(1.5));
    let value = ratio("connection_us", Rival::Loopback);
    add("connect, 64 bytes, close, in those of loopback".into(), value, AtMost(1.5));
    let value = ratio("idle_open_us", Rival::Loopback);
    add("opening a connection that stays, in that of loopback".into(), value, AtMost(2.0));
    for way in ["out", "in"] {
        let value = ours(&format!("{way}_notifications_per_mib"));
        add(format!("notifications per MiB {way}"), value, AtMost(4.0));
    }
    let pair = results.get(NATIVE).and_then(|native| native.values().copied().reduce(f64::min));
    add("native pair, in memcpy's speed, the slowest".into(), pair, AtLeast(0.8));
    add("stripped image, KiB".into(), ours("image_kib"), AtMost(672.0));
    add("stripped image of hello, KiB".into(), ours("hello_kib"), AtMost(320.0));
    let value = ours("boot_ms").zip(of(Rival::Linux, "init_ms"));
    add(
        "xl unpause to the first byte, in linux's to its init".into(),
        value.map(|(ours, theirs)| ours / theirs),
        AtMost(0.04),
    );
    let ratio = |name: &str, idc: &str, to: &str| {
        let of = |column: &str| results.get(column)?.get(name).copied();
        Some(of(idc)? / of(to)?)
    };
    for (idc, ring, least) in
        [("idc", "ring", 0.8), ("idc", "vchan", 1.0), ("idc-guests", "ring-guests", 0.8)]
    {
        for way in ["out", "in"] {
            let value = ratio(&format!("{way}_mib_per_s"), idc, ring);
            add(format!("bulk {way} of {idc}, in that of {ring}"), value, AtLeast(least));
        }
    }
    for (idc, ring) in [("idc", "ring"), ("idc-guests", "ring-guests")] {
        let what = format!("transaction of {idc}, in a round trip of {ring}");
        add(what, ratio("round_trip_us", idc, ring), AtMost(1.3));
    }
    list
}

/// The name of the results that need no Xen.
pub const NATIVE: &str = "native";

/// The figures of the native pair with rings of order 6 or more and event indexes, as the two ends
/// have them, from the output of the benchmark `pair`: lines such as
/// `pair, ring order 6, event indexes, out: 5000 MB/s, ratio to memcpy 0.85, 1.2 events per MiB`.
/// Of several pieces' sizes, the last one's figure counts, which is the largest.
pub fn native(output: &str) -> Figures {
    let figure = |line: &str| {
        let (order, rest) = line.strip_prefix("pair, ring order ")?.split_once(", ")?;
        let (way, rest) = rest.strip_prefix("event indexes, ")?.split_once(": ")?;
        let (_, rest) = rest.split_once("ratio to memcpy ")?;
        let ratio = rest.split(',').next()?.parse().ok()?;
        let large = order.parse::<u32>().ok()? >= 6;
        large.then_some((format!("order_{order}_{way}_to_memcpy"), ratio))
    };
    output.lines().filter_map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let figures = |values: &[(&str, f64)]| -> Figures {
            values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
        };
        [
            ("xensock".to_owned(), figures(&[("out_mib_per_s", 30.0), ("boot_ms", 400.0)])),
            ("loopback".to_owned(), figures(&[("out_mib_per_s", 60.0)])),
            ("linux".to_owned(), figures(&[("init_ms", 16_000.0), ("out_mib_per_s", 20.0)])),
        ]
        .into()
    }

    #[test]
    fn a_table_has_the_figures_that_exist_and_their_ratios() {
        let table = table(&results());
        let row = table.lines().find(|line| line.starts_with("bulk out")).unwrap();
        let words: Vec<_> = row.split_whitespace().skip(3).collect();
        assert_eq!(words, ["30.0", "0.50x", "-", "-", "20.0", "0.33x", "60.0", "1.00x", "-"]);
        assert!(!table.contains("bulk in"), "{table}");
    }

    #[test]
    fn a_target_is_met_missed_or_without_a_figure() {
        let lines: Vec<_> = targets(&results()).iter().map(ToString::to_string).collect();
        let verdict = |start: &str| {
            let line = lines.iter().find(|line| line.starts_with(start)).unwrap();
            line.split_whitespace().last().unwrap().to_owned()
        };
        assert_eq!(verdict("bulk out, in that of loopback"), "missed");
        assert_eq!(verdict("bulk out, in that of linux"), "met");
        assert_eq!(verdict("bulk in, in that of linux"), "figure");
        assert_eq!(verdict("xl unpause"), "met");
    }

    #[test]
    fn the_native_pair_is_read_from_its_output() {
        let output = "memcpy, in pieces of 16 KiB: 9000 MB/s\n\
             pair, ring order 6, plain, out: 1 MB/s, ratio to memcpy 0.10, 1.0 events\n\
             pair, ring order 6, event indexes, in: 5 MB/s, ratio to memcpy 0.75, 1.0 events\n";
        let figures = native(output);
        assert_eq!(figures.len(), 1);
        assert_eq!(figures["order_6_in_to_memcpy"], 0.75);
    }
}
