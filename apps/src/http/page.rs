//! `/`: the page for humans, and a demonstration for their browsers. It is one file: all that it
//! loads later are measurements of this guest.

use crate::Context;
use alloc::string::String;
use core::fmt::{self, Write};
use core::time::Duration;

/// The media type of the page.
pub const CONTENT_TYPE: &str = "text/html; charset=utf-8";

/// The most bytes of the page's numbers, or of `/metrics`, which are allocated at once.
pub const CAPACITY: usize = 6 << 10;

/// Forbids the browser everything that the page does not contain (W3C's Content Security Policy).
/// The hashes are those of its style and its script. If one changes, a test prints the new policy.
pub const POLICY: &str = "Content-Security-Policy: default-src 'none'; connect-src 'self'; \
img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
style-src 'sha256-W5Zsaa72xX4/JSNbgNWx0uk254KE3c4zJ36o0nfTN9c='; \
script-src 'sha256-0V08fgh6tDDu3WOLFqpicvpqXuxb/HkGiVQU/dJLX4s='\r\n";

/// The page. The numbers replace `{cards}`.
const PAGE: &str = include_str!("page.html");

/// The groups of numbers: a title, and each number's label and metric.
const CARDS: [(&str, &[(&str, &str)]); 6] = [
    (
        concat!("XenSock ", env!("CARGO_PKG_VERSION")),
        &[
            ("Uptime", "uptime_seconds"),
            ("Hypercalls", "hypercalls_total"),
            ("Wake-ups of the idle CPU", "wakeups_total"),
            ("Timers", "timers"),
        ],
    ),
    (
        "Connections",
        &[
            ("Open", "app_connections_open"),
            ("Total", "app_connections_total"),
            ("Failed", "app_connections_failed_total"),
            ("Requests", "app_requests_total"),
        ],
    ),
    (
        "Bytes",
        &[
            ("Received", "app_received_bytes_total"),
            ("Sent", "app_sent_bytes_total"),
            ("Received, all sockets", "socket_received_bytes_total"),
            ("Sent, all sockets", "socket_sent_bytes_total"),
        ],
    ),
    (
        "Memory",
        &[
            ("Heap in use", "heap_used_bytes"),
            ("Most heap ever in use", "heap_high_water_bytes"),
            ("Heap", "heap_total_bytes"),
            ("Free pages", "free_pages"),
            ("Ballooned pages", "ballooned_pages"),
        ],
    ),
    (
        "Event channels",
        &[
            ("Events received", "events_total"),
            ("Notifications sent", "notifications_total"),
            ("Ports open", "ports_open"),
        ],
    ),
    (
        "Grants",
        &[
            ("In use", "grants_in_use"),
            ("Capacity", "grants_capacity"),
            ("Rings kept for reuse", "parked_rings"),
        ],
    ),
];

/// What precedes and what follows the numbers.
pub fn frame() -> (&'static str, &'static str) {
    PAGE.split_once("{cards}").unwrap_or((PAGE, ""))
}

/// Appends the numbers to `out`. Each has its metric's name as its id, by which the script finds
/// it.
pub fn cards(out: &mut String, context: &Context) {
    let metrics = context.metrics();
    for (title, rows) in CARDS {
        // Writing to a `String` cannot fail.
        let _ = writeln!(out, "<section><h2>{title}</h2><dl>");
        for (label, name) in rows {
            let value =
                metrics.iter().find(|metric| metric.0 == *name).map_or(0, |metric| metric.2);
            let value = Value(name, value);
            let _ = writeln!(out, "<dt>{label}</dt><dd id=\"{name}\">{value}</dd>");
        }
        out.push_str("</dl></section>\n");
    }
}

/// A metric, for humans. Its name contains its unit.
struct Value<'n>(&'n str, u64);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Value(name, value) = *self;
        if name.contains("_seconds") {
            Time(Duration::from_secs(value)).fmt(f)
        } else if name.contains("_bytes") {
            Size(value).fmt(f)
        } else {
            value.fmt(f)
        }
    }
}

/// A number of bytes, for humans.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let steps = (self.0.max(1).ilog2() / 10) as usize;
        if steps == 0 {
            return write!(f, "{} B", self.0);
        }
        // Integers only, because floats are slow in the kernel. Rounded down.
        let shift = 10 * steps as u32;
        let tenths = (u128::from(self.0) * 10) >> shift;
        write!(f, "{}.{} {}", tenths / 10, tenths % 10, units[steps - 1])
    }
}

/// A duration, for humans.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds} s"),
            (0, 0, _) => write!(f, "{minutes} min {} s", seconds % 60),
            (0, _, _) => write!(f, "{hours} h {} min", minutes % 60),
            _ => write!(f, "{days} d {} h", hours % 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::route::MAX_BYTES;
    use super::*;
    use crate::{Environment, Metric};
    use alloc::format;
    use alloc::string::ToString;
    use alloc::vec::Vec;
    use base64::prelude::{BASE64_STANDARD, Engine};
    use sha2::{Digest, Sha256};

    #[test]
    fn sizes_and_times_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (1 << 20, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7265, "2 h 1 min"), (90000, "1 d 1 h")]
        {
            assert_eq!(Time(Duration::from_secs(seconds)).to_string(), text);
        }
    }

    /// A guest whose numbers are as long as they get.
    struct Full;

    impl Environment for Full {
        fn metrics(&self) -> Vec<Metric> {
            CARDS.iter().flat_map(|card| card.1).map(|row| (row.1, "", u64::MAX)).collect()
        }
    }

    fn page() -> String {
        let mut numbers = String::new();
        cards(&mut numbers, &Context::new(Full));
        assert!(numbers.len() <= CAPACITY, "{}", numbers.len());
        let (before, after) = frame();
        [before, &numbers, after].concat()
    }

    /// What the only `<tag>` contains.
    fn inside<'p>(page: &'p str, tag: &str) -> &'p str {
        let (_, rest) = page.split_once(&format!("<{tag}>")).unwrap();
        let (inside, rest) = rest.split_once(&format!("</{tag}>")).unwrap();
        assert!(!rest.contains(&format!("<{tag}")));
        inside
    }

    #[test]
    fn the_page_is_well_formed_and_self_contained() {
        let page = page();
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        assert!(!page.contains("{cards}"));
        for tag in [
            "html",
            "head",
            "body",
            "header",
            "main",
            "section",
            "style",
            "script",
            "dl",
            "dt",
            "dd",
            "ul",
            "li",
            "div",
            "h1",
            "h2",
            "h3",
            "code",
            "p",
            "a",
            "b",
            "small",
            "span",
            "button",
            "figure",
            "figcaption",
            "svg",
        ] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
            assert!(opened > 0, "{tag}");
        }
        for elsewhere in ["src=", "url(", "@import", "import(", "href=\"http", "://"] {
            let page = page.replace("http://…/sum", "");
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        for path in ["/metrics", "/healthz", "/bytes/", "/sum", "/sink"] {
            assert!(page.contains(path), "{path}");
        }
        assert!(page.contains(&MAX_BYTES.to_string()));
    }

    #[test]
    fn the_script_finds_the_elements_that_it_names() {
        let page = page();
        let ids: Vec<&str> =
            page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids[..at].contains(id), "{id}");
        }
        for rest in inside(&page, "script").split("$(\"").skip(1) {
            let id = rest.split('"').next().unwrap();
            assert!(ids.contains(&id), "{id}");
        }
    }

    #[test]
    fn the_policy_permits_the_style_and_the_script() {
        let page = page();
        for tag in ["style", "script"] {
            let hash = BASE64_STANDARD.encode(Sha256::digest(inside(&page, tag)));
            let rule = format!("{tag}-src 'sha256-{hash}'");
            assert!(POLICY.contains(&rule), "the policy needs {rule}");
        }
        // Attributes with style or script have no hash.
        for attribute in [" style=", " on"] {
            let (before, _) = page.split_once("<script>").unwrap();
            assert!(!before.contains(&format!("{attribute}=\"")), "{attribute}");
        }
    }
}
