//! `arch-x86/cpuid.h`: the CPUID leaves by which a domain finds Xen.

/// The first leaf where a hypervisor may describe itself.
pub const XEN_CPUID_FIRST_LEAF: u32 = 0x4000_0000;
/// The end of the leaves at which Xen may be. It is not at the first one if it also offers another
/// interface.
pub const XEN_CPUID_END_LEAF: u32 = 0x4001_0000;
/// The distance between two such leaves.
pub const XEN_CPUID_LEAF_STEP: u32 = 0x100;
/// `EBX` of Xen's first leaf.
pub const XEN_CPUID_SIGNATURE_EBX: u32 = 0x566e_6558;
/// `ECX` of Xen's first leaf.
pub const XEN_CPUID_SIGNATURE_ECX: u32 = 0x6558_4d4d;
/// `EDX` of Xen's first leaf.
pub const XEN_CPUID_SIGNATURE_EDX: u32 = 0x4d4d_566e;
