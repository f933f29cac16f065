//! The processor: segments, the event interrupt, sleep, random numbers, and values for a single
//! CPU.
//!
//! Interrupts are enabled only while the CPU sleeps. The only interrupt is the event channels'
//! upcall, which writes one byte and no Rust value (`upcall.S`).

mod random;
mod segments;

pub use random::random;
pub use segments::{Stack, init as init_segments};

use core::arch::global_asm;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use critical_section::{Impl, RawRestoreState, set_impl};
use x86_64::instructions::interrupts;

global_asm!(include_str!("upcall.S"));

unsafe extern "C" {
    fn event_upcall();
    /// Sleeps until an interrupt. A pending one ends the sleep at once.
    pub safe fn halt_until_interrupt();
}

/// The vector of the event channels' upcall. Any vector above the exceptions' would do.
pub const EVENT_VECTOR: u8 = 0xf3;

/// The byte in which Xen notes that an upcall was made (`evtchn_upcall_pending`).
#[unsafe(export_name = "upcall_pending")]
static UPCALL_PENDING: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// The address of the handler for [`EVENT_VECTOR`].
pub fn event_handler() -> u64 {
    event_upcall as *const () as u64
}

/// Sets the byte that the upcall clears. No upcall may be made before.
///
/// # Safety
/// The byte must be `evtchn_upcall_pending` of this vCPU, and stay mapped and writable.
pub unsafe fn set_upcall_pending(byte: *mut u8) {
    UPCALL_PENDING.store(byte, Ordering::Release);
}

/// A value that all code may use although its type is for a single thread.
#[derive(Debug)]
pub struct OneCpu<T>(T);

// SAFETY: the guest has one vCPU. It is interrupted by the upcall only, which touches no Rust
// value, and by exceptions, which do not return. So no value is shared between threads or sent to
// another. This crate links for the guest alone.
unsafe impl<T> Sync for OneCpu<T> {}
// SAFETY: as above.
unsafe impl<T> Send for OneCpu<T> {}

impl<T> OneCpu<T> {
    pub const fn new(value: T) -> OneCpu<T> {
        OneCpu(value)
    }

    pub fn get(&self) -> &T {
        &self.0
    }
}

/// Critical sections, for crates that need them. Running code is always in one, because
/// interrupts are enabled only during sleep.
struct InterruptsOff;

set_impl!(InterruptsOff);

// SAFETY: with one CPU and interrupts off, nothing else runs until `release`.
unsafe impl Impl for InterruptsOff {
    unsafe fn acquire() -> RawRestoreState {
        let were_on = interrupts::are_enabled();
        interrupts::disable();
        were_on
    }

    unsafe fn release(were_on: RawRestoreState) {
        if were_on {
            interrupts::enable();
        }
    }
}
