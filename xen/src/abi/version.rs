//! `version.h`: what hypervisor this is.

/// The version: the major number in the upper half word of the result, the minor in the lower.
pub const XENVER_VERSION: u32 = 0;
