//! Xen's debug port: a byte written to I/O port 0xe9 comes out in the hypervisor's own log, from the
//! first instruction on and without any setting up.

use core::fmt;
use x86_64::instructions::port::PortWriteOnly;

/// A writer to the debug port.
pub struct DebugPort;

impl fmt::Write for DebugPort {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut port = PortWriteOnly::<u8>::new(0xe9);
        for byte in text.bytes() {
            // SAFETY: under Xen (and QEMU) the port is a debug console and nothing else; where it is
            // nothing at all, the write has no effect.
            unsafe { port.write(byte) };
        }
        Ok(())
    }
}
