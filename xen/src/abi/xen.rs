//! `xen.h` and `arch-x86/xen.h`: hypercall numbers, virtual interrupts, the shared info page.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Memory reservations and the physical address space.
pub const __HYPERVISOR_MEMORY_OP: u32 = 12;
/// The hypervisor's version and features.
pub const __HYPERVISOR_XEN_VERSION: u32 = 17;
/// Grant tables.
pub const __HYPERVISOR_GRANT_TABLE_OP: u32 = 20;
/// Operations on a virtual CPU.
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

/// The calling domain.
pub const DOMID_SELF: u16 = 0x7ff0;
/// Not a domain.
pub const DOMID_INVALID: u16 = 0x7ff4;

structures! {
    /// How to compute the system time from the TSC (`struct vcpu_time_info`).
    #[derive(Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    VcpuTimeInfo: 32 {
        /// Odd while Xen changes the rest; different after every change.
        version: u32 = 0,
        /// Unused.
        pad0: u32 = 4,
        /// The TSC at the moment of the last update.
        tsc_timestamp: u64 = 8,
        /// Nanoseconds since the host's boot at that moment.
        system_time: u64 = 16,
        /// Nanoseconds per (shifted) tick, in units of 2^-32.
        tsc_to_system_mul: u32 = 24,
        /// Shift of the ticks before that: to the left, or to the right if negative.
        tsc_shift: i8 = 28,
        /// Not used here.
        flags: u8 = 29,
        /// Unused.
        pad1: [u8; 2] = 30,
    }

    /// A virtual CPU's part of the shared info page (`struct vcpu_info`).
    VcpuInfo: 64 {
        /// Not zero if an event is pending. The guest clears it before it looks for events.
        evtchn_upcall_pending: u8 = 0,
        /// Not zero to mask upcalls.
        evtchn_upcall_mask: u8 = 1,
        /// A bit per word of [`SharedInfo::evtchn_pending`]: the word has new bits.
        evtchn_pending_sel: u64 = 8,
        /// `struct arch_vcpu_info`, for PV guests only.
        arch: [u64; 2] = 16,
        /// The clock.
        time: VcpuTimeInfo = 32,
    }

    /// The page that Xen and a domain share (`struct shared_info`).
    SharedInfo: 3136 {
        /// The information of the first virtual CPUs (`XEN_LEGACY_MAX_VCPUS`).
        vcpu_info: [VcpuInfo; 32] = 0,
        /// A bit per port: an event is pending.
        evtchn_pending: [u64; 64] = 2048,
        /// A bit per port: the port is masked.
        evtchn_mask: [u64; 64] = 2560,
        /// Odd while the wall clock changes; different after every change.
        wc_version: u32 = 3072,
        /// Seconds from the Unix epoch to the domain's boot, the low half.
        wc_sec: u32 = 3076,
        /// Nanoseconds, in addition to the seconds.
        wc_nsec: u32 = 3080,
        /// The high half of the seconds.
        wc_sec_hi: u32 = 3084,
        /// `struct arch_shared_info`, for PV guests only.
        arch: [u64; 6] = 3088,
    }
}
