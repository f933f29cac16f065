//! `xen.h` and `arch-x86/xen.h`: hypercall numbers, virtual interrupts, the shared info page.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Memory reservations and the physical address space.
pub const __HYPERVISOR_MEMORY_OP: u32 = 12;
/// The hypervisor's version and features.
pub const __HYPERVISOR_XEN_VERSION: u32 = 17;
/// Grant tables.
pub const __HYPERVISOR_GRANT_TABLE_OP: u32 = 20;
/// A virtual CPU's own affairs.
pub const __HYPERVISOR_VCPU_OP: u32 = 24;
/// Scheduling and shutting down.
pub const __HYPERVISOR_SCHED_OP: u32 = 29;
/// Event channels.
pub const __HYPERVISOR_EVENT_CHANNEL_OP: u32 = 32;
/// Parameters of HVM and PVH domains.
pub const __HYPERVISOR_HVM_OP: u32 = 34;

/// The timer set by
/// [`vcpu::VCPUOP_SET_SINGLESHOT_TIMER`](super::vcpu::VCPUOP_SET_SINGLESHOT_TIMER).
pub const VIRQ_TIMER: u32 = 0;

/// The calling domain, whatever its number.
pub const DOMID_SELF: u16 = 0x7ff0;
/// No domain at all.
pub const DOMID_INVALID: u16 = 0x7ff4;

/// The virtual CPUs whose information lies in the shared info page.
pub const XEN_LEGACY_MAX_VCPUS: usize = 32;

/// How to compute the system time from the TSC (`struct vcpu_time_info`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VcpuTimeInfo {
    /// Odd while Xen changes the rest; different after every change.
    pub version: u32,
    /// Unused.
    pub pad0: u32,
    /// The TSC at the moment of the last update.
    pub tsc_timestamp: u64,
    /// Nanoseconds since boot at that moment.
    pub system_time: u64,
    /// Nanoseconds a (shifted) tick, as a fraction of 2^32.
    pub tsc_to_system_mul: u32,
    /// By how many bits to shift ticks to the left, or if negative to the right, before.
    pub tsc_shift: i8,
    /// Not used here.
    pub flags: u8,
    /// Unused.
    pub pad1: [u8; 2],
}

/// What x86 adds to a virtual CPU's information (`struct arch_vcpu_info`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ArchVcpuInfo {
    /// PV guests only.
    pub cr2: u64,
    /// Unused.
    pub pad: u64,
}

/// A virtual CPU's part of the shared info page (`struct vcpu_info`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VcpuInfo {
    /// Not zero when an event waits; cleared by the guest before it looks for events.
    pub evtchn_upcall_pending: u8,
    /// Not zero to hold upcalls back.
    pub evtchn_upcall_mask: u8,
    /// A bit for each word of [`SharedInfo::evtchn_pending`] that has news.
    pub evtchn_pending_sel: u64,
    /// What x86 adds.
    pub arch: ArchVcpuInfo,
    /// The clock.
    pub time: VcpuTimeInfo,
}

/// What x86 adds to the shared info page (`struct arch_shared_info`); of use to PV guests only.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ArchSharedInfo {
    /// Entries of the p2m table.
    pub max_pfn: u64,
    /// The p2m table's frames.
    pub pfn_to_mfn_frame_list_list: u64,
    /// Why an NMI came.
    pub nmi_reason: u64,
    /// The address space of `p2m_vaddr`.
    pub p2m_cr3: u64,
    /// The p2m table's address.
    pub p2m_vaddr: u64,
    /// Changes of the p2m table.
    pub p2m_generation: u64,
}

/// The page that Xen and a domain share (`struct shared_info`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SharedInfo {
    /// The first virtual CPUs' information.
    pub vcpu_info: [VcpuInfo; XEN_LEGACY_MAX_VCPUS],
    /// A bit for each port: an event is pending.
    pub evtchn_pending: [u64; 64],
    /// A bit for each port: events cause no upcall.
    pub evtchn_mask: [u64; 64],
    /// Odd while the wall clock changes; different after every change.
    pub wc_version: u32,
    /// Seconds from the Unix epoch to the domain's boot, the low half.
    pub wc_sec: u32,
    /// Nanoseconds beside the seconds.
    pub wc_nsec: u32,
    /// The high half of the seconds.
    pub wc_sec_hi: u32,
    /// What x86 adds.
    pub arch: ArchSharedInfo,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<VcpuTimeInfo>() == 32);
    assert!(offset_of!(VcpuTimeInfo, tsc_to_system_mul) == 24);
    assert!(offset_of!(VcpuTimeInfo, flags) == 29);
    assert!(size_of::<VcpuInfo>() == 64);
    assert!(offset_of!(VcpuInfo, evtchn_pending_sel) == 8);
    assert!(offset_of!(VcpuInfo, time) == 32);
    assert!(offset_of!(SharedInfo, evtchn_pending) == 2048);
    assert!(offset_of!(SharedInfo, evtchn_mask) == 2560);
    assert!(offset_of!(SharedInfo, wc_version) == 3072);
    assert!(offset_of!(SharedInfo, wc_sec_hi) == 3084);
    assert!(size_of::<SharedInfo>() == 3136);
};
