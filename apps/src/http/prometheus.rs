//! `/metrics`: all numbers in Prometheus' text format, version 0.0.4.

use crate::Context;
use alloc::string::String;
use core::fmt::Write;

/// The media type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Appends the numbers to `out`.
pub fn write(out: &mut String, context: &Context) {
    for (name, help, value) in context.metrics() {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        // Writing to a `String` cannot fail.
        let _ = write!(
            out,
            "# HELP xensock_{name} {help}\n# TYPE xensock_{name} {kind}\nxensock_{name} {value}\n"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Environment, Metric};
    use alloc::vec;
    use alloc::vec::Vec;

    struct Ports;

    impl Environment for Ports {
        fn metrics(&self) -> Vec<Metric> {
            vec![("ports_open", "Open ports.", 42), ("events_total", "Events received.", 9)]
        }
    }

    #[test]
    fn each_number_has_its_own_help_type_and_name() {
        let mut text = String::new();
        write(&mut text, &Context::new(Ports));
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
        assert_eq!(names.len(), 8);
        assert!(text.contains("\nxensock_ports_open 42\n"));
    }
}
