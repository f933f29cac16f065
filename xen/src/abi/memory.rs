//! `memory.h`: the domain's memory, and special pages in its physical address space.

/// Gives memory back to Xen.
pub const XENMEM_DECREASE_RESERVATION: u32 = 1;
/// Returns the number of pages that the domain has.
pub const XENMEM_CURRENT_RESERVATION: u32 = 3;
/// Populates frames with memory.
pub const XENMEM_POPULATE_PHYSMAP: u32 = 6;
/// Returns the memory map that the toolstack has set.
pub const XENMEM_MEMORY_MAP: u32 = 9;
/// Puts one of Xen's pages at a guest frame.
pub const XENMEM_ADD_TO_PHYSMAP: u32 = 7;

/// The shared info page.
pub const XENMAPSPACE_SHARED_INFO: u32 = 0;
/// A frame of the grant table, which grows if needed.
pub const XENMAPSPACE_GRANT_TABLE: u32 = 1;

structures! {
    /// Argument of [`XENMEM_ADD_TO_PHYSMAP`] (`struct xen_add_to_physmap`).
    AddToPhysmap: 24 {
        /// The domain.
        domid: u16 = 0,
        /// Unused here.
        size: u16 = 2,
        /// `XENMAPSPACE_*`.
        space: u32 = 4,
        /// The index of the page in the space.
        idx: u64 = 8,
        /// The guest frame at which to put it.
        gpfn: u64 = 16,
    }

    /// Argument of [`XENMEM_DECREASE_RESERVATION`] and [`XENMEM_POPULATE_PHYSMAP`]
    /// (`struct xen_memory_reservation`). They return how many extents are done, from the first.
    MemoryReservation: 32 {
        /// The address of a list of guest frames: the first frame of each extent.
        extent_start: u64 = 0,
        /// Entries in the list.
        nr_extents: u64 = 8,
        /// Each extent has 2^order pages, and starts at a multiple of that.
        extent_order: u32 = 16,
        /// `XENMEMF_*`.
        mem_flags: u32 = 20,
        /// The domain.
        domid: u16 = 24,
    }

    /// Argument of [`XENMEM_CURRENT_RESERVATION`] (`struct xen_memory_domain`).
    MemoryDomain: 2 {
        /// The domain.
        domid: u16 = 0,
    }

    /// Argument of [`XENMEM_MEMORY_MAP`] (`struct xen_memory_map`).
    MemoryMap: 16 {
        /// In: entries that fit into the buffer. Out: entries written.
        nr_entries: u32 = 0,
        /// The address of the buffer for [`E820Entry`]s.
        buffer: u64 = 8,
    }
}

/// An entry of a memory map, in the BIOS's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed)]
pub struct E820Entry {
    /// The first address.
    pub addr: u64,
    /// The size in bytes.
    pub size: u64,
    /// The type: [`E820_RAM`] or another one.
    pub kind: u32,
}

/// Usable memory, in an [`E820Entry`].
pub const E820_RAM: u32 = 1;

/// The largest [extents](MemoryReservation::extent_order) that a domain without privileges may name
/// (`CONFIG_DOMU_MAX_ORDER`, unless Xen's command line lowers it): 2 MiB.
pub const DOMU_MAX_ORDER: u32 = 9;

const _: () = assert!(size_of::<E820Entry>() == 20);
