//! `/`: the page for humans. It is self-contained: no scripts, images or external resources.

use super::route::MAX_BYTES;
use crate::{Context, Metric};
use alloc::string::String;
use core::fmt::{self, Write};
use core::time::Duration;

/// The media type of the page.
pub const CONTENT_TYPE: &str = "text/html; charset=utf-8";

/// The most bytes of the page, which are allocated at once.
pub const CAPACITY: usize = 6 << 10;

const BEGINNING: &str = r#"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>XenSock guest</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --ink: #1c2430; --dim: #5b6675; --paper: #f6f7f9; --card: #fff;
  --line: #dde2e8; --accent: #0b6e5f }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --dim: #98a3b3; --paper: #14181e;
  --card: #1c222b; --line: #2e3744; --accent: #5fd0b8 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.9rem; margin: 0 }
h1 + p { margin-top: .3rem; color: var(--dim); max-width: 46rem }
h2 { font-size: 1rem; margin: 0 0 .5rem; color: var(--accent) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem 1.2rem }
dl { display: grid; grid-template-columns: auto auto; gap: .2rem 1rem; margin: 0 }
dt { color: var(--dim) } dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums }
ul { margin: 0; padding-left: 1.1rem } section.wide { margin-top: 1rem }
code, a code { font: .92em ui-monospace, monospace } a { color: var(--accent) }
</style></head><body>
<h1>XenSock guest</h1>
<p>This page comes from a unikernel in a Xen domain. Its bytes travel through granted memory,
announced by event channels.</p>
<div class="cards">
"#;

const LINKS: &str = r#"</div>
<section class="wide"><h2>Other paths</h2><ul>
<li><a href="/healthz"><code>/healthz</code></a>: <code>ok</code></li>
<li><a href="/metrics"><code>/metrics</code></a>: these numbers for Prometheus</li>
<li><a href="/bytes/1000000"><code>/bytes/N</code></a>: N bytes, each its offset modulo 251;
N is up to "#;

const ENDING: &str = r#"</li>
<li><code>POST /sum</code>: the SHA-256 of the request's body, as in
<code>curl --data-binary @file http://…/sum</code></li>
<li><code>POST /sink</code>: the length of the request's body</li>
</ul></section>
</body></html>
"#;

/// Appends the page to `out`.
pub fn write(out: &mut String, context: &Context) {
    out.push_str(BEGINNING);
    // Writing to a `String` cannot fail.
    let _ = cards(out, &context.metrics());
    let _ = write!(out, "{LINKS}{MAX_BYTES}{ENDING}");
}

fn cards(out: &mut String, metrics: &[Metric]) -> fmt::Result {
    let get = |name| metrics.iter().find(|metric| metric.0 == name).map_or(0, |metric| metric.2);
    card(out, "Guest", |out| {
        row(out, "Version", env!("CARGO_PKG_VERSION"))?;
        row(out, "Uptime", Time(Duration::from_secs(get("uptime_seconds"))))?;
        row(out, "Timers", get("timers"))
    })?;
    card(out, "Memory", |out| {
        row(out, "Heap in use", Size(get("heap_used_bytes")))?;
        row(out, "Most heap ever in use", Size(get("heap_high_water_bytes")))?;
        row(out, "Heap", Size(get("heap_total_bytes")))?;
        row(out, "Free pages", get("free_pages"))?;
        row(out, "Pages given back to Xen", get("ballooned_pages"))
    })?;
    card(out, "Connections", |out| {
        row(out, "Open", get("app_connections_open"))?;
        row(out, "Total", get("app_connections_total"))?;
        row(out, "Failed", get("app_connections_failed_total"))?;
        row(out, "Requests", get("app_requests_total"))
    })?;
    card(out, "Bytes", |out| {
        row(out, "Received", Size(get("app_received_bytes_total")))?;
        row(out, "Sent", Size(get("app_sent_bytes_total")))?;
        row(out, "Received, all sockets", Size(get("socket_received_bytes_total")))?;
        row(out, "Sent, all sockets", Size(get("socket_sent_bytes_total")))
    })?;
    card(out, "Xen", |out| {
        row(out, "Events received", get("events_total"))?;
        row(out, "Notifications sent", get("notifications_total"))?;
        row(out, "Ports open", get("ports_open"))?;
        let (used, all) = (get("grants_in_use"), get("grants_capacity"));
        row(out, "Grants", format_args!("{used} of {all}"))
    })
}

fn card(
    out: &mut String,
    title: &str,
    rows: impl FnOnce(&mut String) -> fmt::Result,
) -> fmt::Result {
    writeln!(out, "<section><h2>{title}</h2><dl>")?;
    rows(out)?;
    out.write_str("</dl></section>\n")
}

fn row(out: &mut String, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(out, "<dt>{name}</dt><dd>{value}</dd>")
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
    use super::*;
    use crate::Environment;
    use alloc::format;
    use alloc::string::ToString;
    use alloc::vec::Vec;

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
            let names = ["heap_used_bytes", "events_total", "grants_in_use", "grants_capacity"];
            names.map(|name| (name, "", u64::MAX)).to_vec()
        }
    }

    #[test]
    fn the_page_is_well_formed_and_self_contained() {
        let mut page = String::with_capacity(CAPACITY);
        write(&mut page, &Context::new(Full));
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        for tag in ["section", "dl", "dt", "dd", "ul", "li", "div", "h1", "h2", "code", "p", "a"] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        for elsewhere in ["src=", "url(", "@import", "<script", "href=\"http"] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        for path in ["/metrics", "/healthz", "/bytes/", "/sum", "/sink"] {
            assert!(page.contains(path), "{path}");
        }
        assert!(page.len() <= CAPACITY, "{}", page.len());
    }
}
