//! Calls into the hypervisor.
//!
//! [`Hypervisor`] is the one raw entry; the operations that a guest needs are methods upon it with
//! plain arguments and results, so that the rest of the crate needs no `unsafe` and runs in tests
//! over a fake. `install` finds Xen and gives the real one.

mod operations;
#[cfg(target_arch = "x86_64")]
mod page;

pub use operations::{Operations, ShutdownReason, Version};
#[cfg(target_arch = "x86_64")]
pub use page::{NoXen, Xen, calls, install};

/// Something that takes hypercalls.
///
/// # Safety
/// An implementer promises that a call has the effect which Xen's headers describe for its number
/// and arguments, and no other.
pub unsafe trait Hypervisor {
    /// Makes hypercall `number` (`__HYPERVISOR_*`) and returns its result, an error negated.
    ///
    /// # Safety
    /// The arguments must be what the call expects: a pointer among them points to a structure of
    /// the right type that lives and is not otherwise borrowed during the call, and what the call
    /// does to the domain's memory must be something that its owner allows.
    unsafe fn call(&self, number: u32, arguments: [u64; 4]) -> i64;
}

// SAFETY: it only passes calls on.
unsafe impl<H: Hypervisor + ?Sized> Hypervisor for &H {
    unsafe fn call(&self, number: u32, arguments: [u64; 4]) -> i64 {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { (**self).call(number, arguments) }
    }
}
