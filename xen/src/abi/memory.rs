//! `memory.h`: the domain's memory, and special pages in its physical address space.

/// Gives memory back to Xen.
pub const XENMEM_DECREASE_RESERVATION: u32 = 1;
/// Tells how many pages the domain has.
pub const XENMEM_CURRENT_RESERVATION: u32 = 3;
/// Takes memory from Xen.
pub const XENMEM_POPULATE_PHYSMAP: u32 = 6;
/// Tells the memory map that the toolstack has set.
pub const XENMEM_MEMORY_MAP: u32 = 9;
/// Puts a page of Xen's at a guest frame.
pub const XENMEM_ADD_TO_PHYSMAP: u32 = 7;

/// The shared info page.
pub const XENMAPSPACE_SHARED_INFO: u32 = 0;
/// A frame of the grant table, which grows to have it.
pub const XENMAPSPACE_GRANT_TABLE: u32 = 1;

/// Argument of [`XENMEM_ADD_TO_PHYSMAP`] (`struct xen_add_to_physmap`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AddToPhysmap {
    /// Whose address space.
    pub domid: u16,
    /// Unused here.
    pub size: u16,
    /// `XENMAPSPACE_*`.
    pub space: u32,
    /// Which page of the space.
    pub idx: u64,
    /// The guest frame that it shall have.
    pub gpfn: u64,
}

/// Argument of [`XENMEM_DECREASE_RESERVATION`] and [`XENMEM_POPULATE_PHYSMAP`]
/// (`struct xen_memory_reservation`). They return how many extents are done, from the first.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemoryReservation {
    /// Where a list lies of the guest frames at which extents begin.
    pub extent_start: u64,
    /// Entries in the list.
    pub nr_extents: u64,
    /// Each extent has 2^order pages, and its first frame is a multiple of that.
    pub extent_order: u32,
    /// `XENMEMF_*`.
    pub mem_flags: u32,
    /// Whose memory.
    pub domid: u16,
}

/// Argument of [`XENMEM_CURRENT_RESERVATION`] (`struct xen_memory_domain`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemoryDomain {
    /// Whose memory.
    pub domid: u16,
}

/// Argument of [`XENMEM_MEMORY_MAP`] (`struct xen_memory_map`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemoryMap {
    /// In: places in the buffer. Out: places that are filled.
    pub nr_entries: u32,
    /// Where places for [`E820Entry`]s lie.
    pub buffer: u64,
}

/// An entry of a memory map, as BIOSes write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed)]
pub struct E820Entry {
    /// The first address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// What it is: [`E820_RAM`] or something else.
    pub kind: u32,
}

/// Memory to use, in an [`E820Entry`].
pub const E820_RAM: u32 = 1;

/// The largest [extents](MemoryReservation::extent_order) that a domain without privileges may name
/// (`CONFIG_DOMU_MAX_ORDER`, unless Xen's command line lowers it): 2 MiB.
pub const DOMU_MAX_ORDER: u32 = 9;

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<MemoryReservation>() == 32);
    assert!(offset_of!(MemoryReservation, extent_order) == 16);
    assert!(offset_of!(MemoryReservation, domid) == 24);
    assert!(size_of::<MemoryDomain>() == 2);
    assert!(size_of::<MemoryMap>() == 16);
    assert!(offset_of!(MemoryMap, buffer) == 8);
    assert!(size_of::<E820Entry>() == 20);
    assert!(size_of::<AddToPhysmap>() == 24);
    assert!(offset_of!(AddToPhysmap, idx) == 8);
};
