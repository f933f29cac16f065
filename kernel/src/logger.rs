//! Where messages go: to the domain's console, or to Xen's debug port while there is none.

use crate::debug_port::DebugPort;
use crate::machine;
use core::fmt::{self, Write};
use log::{LevelFilter, Log, Metadata, Record};

struct Logger;

static LOGGER: Logger = Logger;

/// Messages can be logged from here on.
pub fn init() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Obeys `log=` on the command line. What is wrong there is for the image to find and to report.
pub fn configure(command_line: &[u8]) {
    let words = command_line.split(u8::is_ascii_whitespace);
    let level = words.filter_map(|word| word.strip_prefix(b"log=")).next();
    if let Some(level) = level.and_then(|level| core::str::from_utf8(level).ok()?.parse().ok()) {
        log::set_max_level(level);
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let _ = match machine::guest() {
            Some(guest) => match &guest.console {
                Some(console) => write(&mut Lines(console), guest.uptime().as_micros(), record),
                None => write(&mut DebugPort, guest.uptime().as_micros(), record),
            },
            None => write(&mut DebugPort, 0, record),
        };
    }

    fn flush(&self) {}
}

fn write(to: &mut impl Write, micros: u128, record: &Record) -> fmt::Result {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    writeln!(to, "[{seconds:>5}.{micros:06}] {:<5} {}", record.level(), record.args())
}

/// Text with the line ends that a terminal wants.
pub struct Lines<W>(pub W);

impl<W: Write> Write for Lines<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    self.0.write_str(line)?;
                    self.0.write_str("\r\n")?;
                }
                None => self.0.write_str(line)?,
            }
        }
        Ok(())
    }
}
