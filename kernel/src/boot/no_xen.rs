//! What to say where there is no Xen.

use crate::crash;
use core::arch::x86_64::__cpuid;
use core::fmt::Write;
use uart_16550::{Config, Uart16550Tty};

/// Hypervisors introduce themselves at one of these CPUID leaves (`XEN_CPUID_FIRST_LEAF` and on).
const LEAVES: core::ops::Range<u32> = 0x4000_0000..0x4001_0000;

/// The first of Xen's CPUID leaves, if this is a Xen guest.
pub fn xen_leaf() -> Option<u32> {
    LEAVES.step_by(0x100).find(|leaf| {
        let answer = __cpuid(*leaf);
        [answer.ebx, answer.ecx, answer.edx].map(u32::to_le_bytes) == [*b"XenV", *b"MMXe", *b"nVMM"]
    })
}

/// Says on the first serial port what this is and how to start it, and stops.
pub fn stop() -> ! {
    // SAFETY: without Xen nothing else drives the port; if there is none, reads give 0xff and `new_port`
    // or the initialization says so.
    if let Ok(mut uart) = unsafe { Uart16550Tty::new_port(0x3f8, Config::default()) } {
        let _ = write!(
            uart,
            "xensock-kernel: there is no Xen here.\n\
             This is the kernel of a Xen domain, and its sockets live in dom0: start it with\n\
             `xl create` from a configuration that says type=\"pvh\" and kernel=\"(this file)\".\n\
             Nothing more happens here.\n"
        );
    }
    crash::halt()
}
