//! The end of a guest that cannot go on: say why, then end the domain.

use crate::debug_port::DebugPort;
use crate::logger::Lines;
use crate::machine;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use x86_64::instructions::{hlt, interrupts};
use xen::hypercall::{Operations, ShutdownReason};

/// Set once the end has begun, for the case that the message itself panics.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Writes `message` to Xen's log and to the console, and ends the domain as crashed.
pub fn end(message: fmt::Arguments) -> ! {
    interrupts::disable();
    if !ENDING.swap(true, Ordering::Relaxed) {
        let _ = writeln!(DebugPort, "xensock-kernel: {message}");
        if let Some(console) = machine::guest().and_then(|guest| guest.console.as_ref()) {
            let _ = writeln!(Lines(console), "xensock-kernel: {message}");
        }
    }
    shut_down(ShutdownReason::Crash)
}

/// Ends the domain.
pub fn shut_down(reason: ShutdownReason) -> ! {
    if let Some(guest) = machine::guest()
        && let Err(error) = guest.xen.shutdown(reason)
    {
        let _ = writeln!(DebugPort, "xensock-kernel: Xen refuses to end the domain: {error}");
    }
    halt()
}

/// Stops for ever.
pub fn halt() -> ! {
    interrupts::disable();
    loop {
        hlt();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    end(format_args!("{info}"))
}
