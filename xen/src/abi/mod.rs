//! Xen's public interface as Rust types: one file per header of `xen/include/public`.
//!
//! Constants keep Xen's names, structures take Rust's spelling of them. Sizes and offsets are
//! asserted at compile time. Nothing here does anything.

pub mod xs_wire;
