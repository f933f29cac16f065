//! Finds Xen, and the page through which it is called.

use core::arch::x86_64::__cpuid;
use core::arch::{asm, global_asm};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use xen::abi::cpuid::*;
use xen::hypercall::Hypervisor;

/// Bytes of each entry in the hypercall page.
const ENTRY_SIZE: usize = 32;

// Xen fills this page with code. It lies among the code so that it is mapped executable, and need
// not be mapped writable: Xen writes to the physical page. `ud2` until then.
global_asm!(
    ".pushsection .text.hypercall_page, \"ax\", @progbits",
    ".balign 4096",
    ".global hypercall_page",
    "hypercall_page:",
    ".fill 2048, 2, 0x0b0f",
    ".size hypercall_page, 4096",
    ".popsection",
);

unsafe extern "C" {
    static hypercall_page: [u8; 4096];
}

/// There is no Xen below this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoXen;

impl fmt::Display for NoXen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no CPUID leaf from 0x40000000 to 0x4000ff00 bears the signature XenVMMXenVMM: \
             start this kernel as a PVH domain of Xen",
        )
    }
}

impl core::error::Error for NoXen {}

/// How many calls were made.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// How many hypercalls this domain has made since it began.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// The hypervisor that this domain runs on: proof that the hypercall page is filled.
#[derive(Clone, Copy, Debug)]
pub struct Xen(());

/// Finds Xen by its CPUID signature and installs the hypercall page.
///
/// # Safety
/// The kernel's image must lie at the physical addresses that equal its virtual ones, and be mapped
/// executable. Code must run in 64-bit mode, with privilege.
pub unsafe fn install() -> Result<Xen, NoXen> {
    let base = find().ok_or(NoXen)?;
    let msr = __cpuid(base + 2).ebx;
    let page = (&raw const hypercall_page).addr() as u64;
    // SAFETY: Xen named this register for this purpose; it fills the page that the address names,
    // which is reserved for it above.
    unsafe {
        asm!(
            "wrmsr",
            in("ecx") msr,
            in("eax") page as u32,
            in("edx") (page >> 32) as u32,
            options(nostack, preserves_flags),
        );
    }
    Ok(Xen(()))
}

fn find() -> Option<u32> {
    (XEN_CPUID_FIRST_LEAF..XEN_CPUID_END_LEAF).step_by(XEN_CPUID_LEAF_STEP as usize).find(|&base| {
        let leaf = __cpuid(base);
        let signature = (leaf.ebx, leaf.ecx, leaf.edx);
        let xen = (XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX);
        signature == xen && leaf.eax >= base + 2
    })
}

// SAFETY: the calls go to Xen itself.
unsafe impl Hypervisor for Xen {
    #[inline]
    unsafe fn call(&self, number: u32, arguments: [u64; 4]) -> i64 {
        // There is one CPU: no locked instruction is needed.
        CALLS.store(CALLS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let entry = (&raw const hypercall_page).addr() + number as usize * ENTRY_SIZE;
        let result: i64;
        // SAFETY: a `Xen` exists only once the page is filled. Xen's convention: arguments in RDI,
        // RSI, RDX, R10, of which it may spoil those that it uses; the result in RAX. All else is
        // kept. Memory is read and written as the caller allowed.
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
