//! What to say where there is no Xen.

use crate::crash;
use core::fmt::Write;
use uart_16550::{Config, Uart16550Tty};
use xen::hypercall::NoXen;

/// Says on the first serial port what this is and how to start it, and stops.
pub fn stop(error: &NoXen) -> ! {
    // SAFETY: without Xen nothing else drives the port; if there is none, reads give 0xff and `new_port`
    // or the initialization says so.
    if let Ok(mut uart) = unsafe { Uart16550Tty::new_port(0x3f8, Config::default()) } {
        let _ = write!(
            uart,
            "xensock-kernel: there is no Xen here: {error}.\n\
             This is the kernel of a Xen domain, and its sockets live in dom0: start it with\n\
             `xl create` from a configuration that says type=\"pvh\" and kernel=\"(this file)\".\n\
             Nothing more happens here.\n"
        );
    }
    crash::halt()
}
