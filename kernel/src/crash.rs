//! The end of a guest that cannot go on: say why, then end the domain.

use crate::debug_port::DebugPort;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use x86_64::instructions::{hlt, interrupts};

/// Set once the end has begun, for the case that the message itself panics.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Writes `message` to every console that can be written without waiting, and ends the domain.
pub fn end(message: fmt::Arguments) -> ! {
    interrupts::disable();
    if !ENDING.swap(true, Ordering::Relaxed) {
        let _ = writeln!(DebugPort, "xensock-kernel: {message}");
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
