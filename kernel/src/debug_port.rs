//! Xen's debug port: a byte written to I/O port 0xe9 comes out in the hypervisor's own log, from the
//! first instruction on and without any setting up.

use core::arch::asm;
use core::fmt;

/// The port's number.
const PORT: u16 = 0xe9;

/// A writer to the debug port.
pub struct DebugPort;

impl fmt::Write for DebugPort {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: under Xen (and QEMU) the port is a debug console and nothing else; where it is nothing at
        // all, the write has no effect. The bytes are only read. One instruction for all of them takes one
        // exit to Xen, and not one for each.
        unsafe {
            asm!(
                "rep outsb",
                in("dx") PORT,
                inout("rsi") text.as_ptr() => _,
                inout("rcx") text.len() => _,
                options(nostack, readonly, preserves_flags),
            );
        }
        Ok(())
    }
}
