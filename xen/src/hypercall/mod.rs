//! Calls into the hypervisor.
//!
//! [`Hypervisor`] is the raw entry, which a kernel implements with its hypercall page.
//! [`Operations`] are the hypercalls that a guest needs, with plain arguments and results.

mod operations;

use crate::{Errno, Gfn, Shared};

pub use operations::{Operations, ShutdownReason, Version};

/// Makes hypercalls.
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

/// Provides guest frames for structures that Xen maps or uses: the grant table, the event queues.
///
/// # Safety
/// An implementer promises that the page is the frame, that it stays mapped for ever, and that
/// nothing else uses it. There may be no memory behind it yet, if Xen puts a page there.
pub unsafe trait FrameSource {
    /// Gives a page away for ever, with any content. [`Errno::ENOMEM`] if none is left.
    fn take(&self) -> Result<(Gfn, Shared<'static>), Errno>;
}

// SAFETY: it only passes calls on.
unsafe impl<H: Hypervisor + ?Sized> Hypervisor for &H {
    unsafe fn call(&self, number: u32, arguments: [u64; 4]) -> i64 {
        // SAFETY: the caller's promise is passed on.
        unsafe { (**self).call(number, arguments) }
    }
}
