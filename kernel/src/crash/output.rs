//! Where crash reports go: to Xen's own log, and to the domain's console.

use super::patience::Patience;
use crate::logger::{DebugPort, Lines};
use crate::machine::{self, Guest};
use core::fmt::{self, Write};
use xen::hypercall::Operations;

static PATIENCE: Patience = Patience::new();

/// Writes to Xen's log, then to the console.
pub fn everywhere(text: fmt::Arguments) {
    let _ = DebugPort.write_fmt(text);
    if let Some(guest) = machine::guest() {
        let _ = Lines(Console(guest)).write_fmt(text);
    }
}

/// Waits until the console's reader has taken everything, within the bounds of patience.
pub fn flush() {
    let Some(guest) = machine::guest() else { return };
    let Some(console) = &guest.console else { return };
    while console.is_drained() == Ok(false) && nap(guest) {
        console.write_some(&[]);
    }
}

/// The console, to which nothing is lost while its reader lives.
struct Console(&'static Guest);

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let console = self.0.console.as_ref().ok_or(fmt::Error)?;
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            match console.write_some(bytes) {
                0 if nap(self.0) => {}
                0 => return Err(fmt::Error),
                written => bytes = &bytes[written..],
            }
        }
        Ok(())
    }
}

/// Sleeps for a moment; false when patience is at its end.
fn nap(guest: &Guest) -> bool {
    let Some(end) = PATIENCE.nap(guest.clock.now()) else { return false };
    // Should Xen refuse, this goes on without sleep, to the same end.
    let _ = guest.xen.poll_until(guest.clock.system_time_of(end));
    true
}
