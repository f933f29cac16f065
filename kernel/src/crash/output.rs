//! Writes crash reports to Xen's log and to the domain's console.

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

/// Waits until the console's reader has read everything, for a limited time.
pub fn flush() {
    let Some(guest) = machine::guest() else { return };
    let Some(console) = &guest.console else { return };
    while console.is_drained() == Ok(false) && nap(guest) {
        console.write_some(&[]);
    }
}

/// The console. Waits for its reader, for a limited time.
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

/// Sleeps for a moment; false if the time is over.
fn nap(guest: &Guest) -> bool {
    let Some(end) = PATIENCE.nap(guest.clock.now()) else { return false };
    // If Xen refuses, the caller's loop continues without sleep, and still ends.
    let _ = guest.xen.poll_until(guest.clock.system_time_of(end));
    true
}
