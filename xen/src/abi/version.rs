//! `version.h`: the hypervisor's version.

/// Returns the version: the major number in the upper half of the word, the minor in the lower.
pub const XENVER_VERSION: u32 = 0;
