//! The logger: writes to the domain's console, or to Xen's debug port as long as there is none.
//! Early messages appear on the console later.

use crate::machine::{self, Guest};
use crate::{command_line, time};
use arrayvec::ArrayVec;
use core::arch::asm;
use core::fmt::{self, Write};
use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;

struct Logger;

static LOGGER: Logger = Logger;

/// Messages logged before the console works, as far as they fit.
static EARLY: Mutex<ArrayVec<u8, 4096>> = Mutex::new(ArrayVec::new_const());

/// Enables logging.
pub fn init() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Sets the level of `log=` on the command line. The image reports an invalid one.
pub fn configure(command_line: &[u8]) {
    let level = command_line::value(command_line, "log");
    if let Some(level) = level.and_then(|level| level.parse().ok()) {
        log::set_max_level(level);
    }
}

/// Changes the level at run time, to the one named in `level`.
pub fn change(level: &[u8]) {
    let level = level.trim_ascii();
    match core::str::from_utf8(level).ok().and_then(|level| level.parse::<LevelFilter>().ok()) {
        Some(level) => {
            log::set_max_level(level.max(LevelFilter::Info));
            log::info!("log level: {level}");
            log::set_max_level(level);
        }
        None => log::warn!(
            "invalid log level {}: write off, error, warn, info, debug or trace",
            level.escape_ascii()
        ),
    }
}

/// Writes early messages to the console.
pub fn flush_early(guest: &Guest) {
    if let Some(console) = &guest.console {
        console.write(&EARLY.lock().take());
    }
}

/// Writes to the debug port, and keeps the text for the console.
struct Early;

impl Write for Early {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut early = EARLY.lock();
        let fits = text.len().min(early.remaining_capacity());
        // The first messages matter more than later ones.
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
                Some(console) => write(&mut Lines(console), time::uptime().as_micros(), record),
                None => write(&mut DebugPort, time::uptime().as_micros(), record),
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

/// Writes text with the line ends of a terminal.
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

/// The number of Xen's debug port.
const DEBUG_PORT: u16 = 0xe9;

/// Writes to Xen's debug port: each byte appears in the hypervisor's log. Needs no set-up.
pub struct DebugPort;

impl Write for DebugPort {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: under Xen and QEMU the port is a debug console and nothing else; on other
        // machines the write has no effect. The bytes are only read. One instruction for all
        // bytes causes one exit to Xen instead of one for each.
        unsafe {
            asm!(
                "rep outsb",
                in("dx") DEBUG_PORT,
                inout("rsi") text.as_ptr() => _,
                inout("rcx") text.len() => _,
                options(nostack, readonly, preserves_flags),
            );
        }
        Ok(())
    }
}
