//! Where messages go: Xen's debug port, until the console is up.

use crate::debug_port::DebugPort;
use core::fmt::Write;
use log::{LevelFilter, Log, Metadata, Record};

struct Logger;

static LOGGER: Logger = Logger;

/// Messages can be logged from here on.
pub fn init() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let _ = writeln!(DebugPort, "{:<5} {}: {}", record.level(), record.target(), record.args());
    }

    fn flush(&self) {}
}
