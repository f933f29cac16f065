//! `arch-x86/hvm/start_info.h`: what a PVH kernel is told at its start.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`HvmStartInfo::magic`].
pub const XEN_HVM_START_MAGIC_VALUE: u32 = 0x336e_c578;
/// Memory to use.
pub const XEN_HVM_MEMMAP_TYPE_RAM: u32 = 1;
/// Memory to leave alone.
pub const XEN_HVM_MEMMAP_TYPE_RESERVED: u32 = 2;
/// ACPI tables, which may be reused once read.
pub const XEN_HVM_MEMMAP_TYPE_ACPI: u32 = 3;
/// Memory that ACPI keeps across sleep.
pub const XEN_HVM_MEMMAP_TYPE_NVS: u32 = 4;
/// Broken memory.
pub const XEN_HVM_MEMMAP_TYPE_UNUSABLE: u32 = 5;

/// The structure whose address is in `EBX` at the entry (`struct hvm_start_info`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HvmStartInfo {
    /// [`XEN_HVM_START_MAGIC_VALUE`].
    pub magic: u32,
    /// 1 or higher when the memory map is there.
    pub version: u32,
    /// `SIF_*`.
    pub flags: u32,
    /// Modules beside the kernel.
    pub nr_modules: u32,
    /// The address of as many [`HvmModlistEntry`].
    pub modlist_paddr: u64,
    /// The address of the command line, which a zero byte ends.
    pub cmdline_paddr: u64,
    /// The address of ACPI's root table.
    pub rsdp_paddr: u64,
    /// The address of the memory map.
    pub memmap_paddr: u64,
    /// Its entries, each an [`HvmMemmapTableEntry`].
    pub memmap_entries: u32,
    /// Unused.
    pub reserved: u32,
}

/// A module (`struct hvm_modlist_entry`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HvmModlistEntry {
    /// Where it begins.
    pub paddr: u64,
    /// Its bytes.
    pub size: u64,
    /// The address of its command line.
    pub cmdline_paddr: u64,
    /// Unused.
    pub reserved: u64,
}

/// A range of the memory map (`struct hvm_memmap_table_entry`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HvmMemmapTableEntry {
    /// Where it begins.
    pub addr: u64,
    /// Its bytes.
    pub size: u64,
    /// `XEN_HVM_MEMMAP_TYPE_*`.
    pub kind: u32,
    /// Unused.
    pub reserved: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<HvmStartInfo>() == 56);
    assert!(offset_of!(HvmStartInfo, memmap_paddr) == 40);
    assert!(size_of::<HvmModlistEntry>() == 32);
    assert!(size_of::<HvmMemmapTableEntry>() == 24);
};
