//! `features.h`: the numbers of features that the hypervisor may have.

/// Events can be delivered as an interrupt vector.
pub const XENFEAT_HVM_CALLBACK_VECTOR: u32 = 8;
/// The PV clock can be used by this domain.
pub const XENFEAT_HVM_SAFE_PVCLOCK: u32 = 9;
