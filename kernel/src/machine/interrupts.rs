//! Critical sections, for the crates that ask for them.
//!
//! Interrupts are on only while the CPU sleeps, so code that runs is in a critical section already;
//! this holds even if that should change.

use critical_section::{Impl, RawRestoreState, set_impl};
use x86_64::instructions::interrupts;

struct InterruptsOff;

set_impl!(InterruptsOff);

// SAFETY: with one CPU and interrupts off, nothing else runs until they are restored.
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
