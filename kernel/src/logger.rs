//! Where messages go: to the domain's console, or to Xen's debug port while there is none. The console
//! gets the messages from before its time, too.

use crate::debug_port::DebugPort;
use crate::machine::{self, Guest};
use arrayvec::ArrayVec;
use core::fmt::{self, Write};
use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;

struct Logger;

static LOGGER: Logger = Logger;

/// Messages from before the console's time, as far as they fit.
static EARLY: Mutex<ArrayVec<u8, 4096>> = Mutex::new(ArrayVec::new_const());

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

/// Changes the level at run time to what the text names.
pub fn change(level: &[u8]) {
    let level = level.trim_ascii();
    match core::str::from_utf8(level).ok().and_then(|level| level.parse::<LevelFilter>().ok()) {
        Some(level) => {
            log::set_max_level(level.max(LevelFilter::Info));
            log::info!("log level: {level}");
            log::set_max_level(level);
        }
        None => log::warn!(
            "log level {}: there are off, error, warn, info, debug and trace",
            level.escape_ascii()
        ),
    }
}

/// Shows on the console what was logged before it was there.
pub fn flush_early(guest: &Guest) {
    if let Some(console) = &guest.console {
        console.write(&EARLY.lock().take());
    }
}

/// A writer to the debug port that keeps what it writes for the console.
struct Early;

impl Write for Early {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut early = EARLY.lock();
        let fits = text.len().min(early.remaining_capacity());
        // The beginning tells more than the end.
        let _ = early.try_extend_from_slice(&text.as_bytes()[..fits]);
        DebugPort.write_str(text)
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
            None => write(&mut Lines(Early), 0, record),
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
