//! Finds Xen and installs the hypercall page.

use core::arch::x86_64::__cpuid;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};
use xen::abi::cpuid::*;
use xen::hypercall::Hypervisor;

/// Bytes of each entry in the hypercall page.
const ENTRY_SIZE: usize = 32;

// Xen fills this page with code. It comes after the text section, executable and not writable: Xen
// writes to the physical page. It takes no room in the image.
global_asm!(
    ".pushsection .hypercall_page, \"ax\", @nobits",
    ".balign 4096",
    ".global hypercall_page",
    "hypercall_page:",
    ".skip 4096",
    ".size hypercall_page, 4096",
    ".popsection",
);

unsafe extern "C" {
    static hypercall_page: [u8; 4096];
}

static CALLS: AtomicU64 = AtomicU64::new(0);

/// The number of hypercalls since the kernel started.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// The hypervisor. A value exists only after the hypercall page was filled.
#[derive(Clone, Copy, Debug)]
pub struct Xen(());

/// Finds Xen by its CPUID signature and installs the hypercall page. `None` without Xen.
///
/// # Safety
/// The kernel's image must be identity-mapped and executable. Code must run in 64-bit mode, with
/// privilege.
pub unsafe fn install() -> Option<Xen> {
    let base = find()?;
    let msr = __cpuid(base + 2).ebx;
    let page = (&raw const hypercall_page).addr() as u64;
    // SAFETY: CPUID names this register for this purpose. Xen fills the page at the address,
    // which is reserved above.
    unsafe {
        asm!(
            "wrmsr",
            in("ecx") msr,
            in("eax") page as u32,
            in("edx") (page >> 32) as u32,
            options(nostack, preserves_flags),
        );
    }
    Some(Xen(()))
}

fn find() -> Option<u32> {
    (XEN_CPUID_FIRST_LEAF..XEN_CPUID_END_LEAF).step_by(XEN_CPUID_LEAF_STEP as usize).find(|&base| {
        let leaf = __cpuid(base);
        let signature = (leaf.ebx, leaf.ecx, leaf.edx);
        let xen = (XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX);
        signature == xen && leaf.eax >= base + 2
    })
}

// SAFETY: the calls go to Xen.
unsafe impl Hypervisor for Xen {
    #[inline]
    unsafe fn call(&self, number: u32, arguments: [u64; 4]) -> i64 {
        // No locked instruction is needed on one CPU.
        CALLS.store(CALLS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let entry = (&raw const hypercall_page).addr() + number as usize * ENTRY_SIZE;
        let result: i64;
        // SAFETY: a `Xen` exists only once the page is filled. Xen's convention: arguments in
        // RDI, RSI, RDX and R10, which it may clobber if the call uses them; the result in RAX.
        // All other registers are preserved. Memory is accessed as the caller allowed.
        unsafe {
            asm!(
                "call {entry}",
                entry = in(reg) entry,
                inlateout("rdi") arguments[0] => _,
                inlateout("rsi") arguments[1] => _,
                inlateout("rdx") arguments[2] => _,
                inlateout("r10") arguments[3] => _,
                out("rax") result,
                out("r8") _,
                out("r11") _,
                out("rcx") _,
            );
        }
        result
    }
}
