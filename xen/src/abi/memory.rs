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

structures! {
    /// Argument of [`XENMEM_ADD_TO_PHYSMAP`] (`struct xen_add_to_physmap`).
    AddToPhysmap: 24 {
        /// Whose address space.
        domid: u16 = 0,
        /// Unused here.
        size: u16 = 2,
        /// `XENMAPSPACE_*`.
        space: u32 = 4,
        /// Which page of the space.
        idx: u64 = 8,
        /// The guest frame that it shall have.
        gpfn: u64 = 16,
    }

    /// Argument of [`XENMEM_DECREASE_RESERVATION`] and [`XENMEM_POPULATE_PHYSMAP`]
    /// (`struct xen_memory_reservation`). They return how many extents are done, from the first.
    MemoryReservation: 32 {
        /// Where a list lies of the guest frames at which extents begin.
        extent_start: u64 = 0,
        /// Entries in the list.
        nr_extents: u64 = 8,
        /// Each extent has 2^order pages, and its first frame is a multiple of that.
        extent_order: u32 = 16,
        /// `XENMEMF_*`.
        mem_flags: u32 = 20,
        /// Whose memory.
        domid: u16 = 24,
    }

    /// Argument of [`XENMEM_CURRENT_RESERVATION`] (`struct xen_memory_domain`).
    MemoryDomain: 2 {
        /// Whose memory.
        domid: u16 = 0,
    }

    /// Argument of [`XENMEM_MEMORY_MAP`] (`struct xen_memory_map`).
    MemoryMap: 16 {
        /// In: places in the buffer. Out: places that are filled.
        nr_entries: u32 = 0,
        /// Where places for [`E820Entry`]s lie.
        buffer: u64 = 8,
    }
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
    assert!(size_of::<E820Entry>() == 20);
};
