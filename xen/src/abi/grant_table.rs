//! `grant_table.h`: version 1 of the grant table, and mapping what other domains grant.

/// The first entries belong to the toolstack.
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;

/// The entry grants nothing.
pub const GTF_INVALID: u16 = 0;
/// The domain may map the frame.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// The mask of an entry's type.
pub const GTF_TYPE_MASK: u16 = 3;
/// The domain may only read.
pub const GTF_READONLY: u16 = 1 << 2;
/// Set by Xen: the frame is mapped, or being read.
pub const GTF_READING: u16 = 1 << 3;
/// Set by Xen: the frame is mapped for writing, or being written.
pub const GTF_WRITING: u16 = 1 << 4;

/// Maps frames that other domains granted.
pub const GNTTABOP_MAP_GRANT_REF: u32 = 0;
/// Ends such mappings.
pub const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
/// Queries the table's size and limit.
pub const GNTTABOP_QUERY_SIZE: u32 = 6;
/// Sets the table's version.
pub const GNTTABOP_SET_VERSION: u32 = 8;

/// Maps the frame for the processor: in a translated domain, at a guest frame.
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;

/// Success.
pub const GNTST_OKAY: i16 = 0;
/// Any failure without a number of its own, such as a grant for another domain.
pub const GNTST_GENERAL_ERROR: i16 = -1;
/// There is no such domain.
pub const GNTST_BAD_DOMAIN: i16 = -2;
/// The domain's table has no such entry.
pub const GNTST_BAD_GNTREF: i16 = -3;
/// There is no such mapping.
pub const GNTST_BAD_HANDLE: i16 = -4;
/// The mapping is forbidden.
pub const GNTST_PERMISSION_DENIED: i16 = -8;
/// The frame is not in memory now.
pub const GNTST_EAGAIN: i16 = -12;
/// The domain's table of mappings is full.
pub const GNTST_NO_SPACE: i16 = -13;

structures! {
    /// An entry of the table (`struct grant_entry_v1`), written by the granting domain except for
    /// [`GTF_READING`] and [`GTF_WRITING`].
    GrantEntryV1: 8 {
        /// `GTF_*`.
        flags: u16 = 0,
        /// The domain that may map the frame.
        domid: u16 = 2,
        /// The granted frame.
        frame: u32 = 4,
    }

    /// One of the arguments of [`GNTTABOP_MAP_GRANT_REF`] (`struct gnttab_map_grant_ref`).
    GnttabMapGrantRef: 32 {
        /// The address at which the frame is to appear.
        host_addr: u64 = 0,
        /// `GNTMAP_*`.
        flags: u32 = 8,
        /// The entry in the granting domain's table.
        grant: u32 = 12,
        /// The granting domain.
        dom: u16 = 16,
        /// Out: `GNTST_*`.
        status: i16 = 18,
        /// Out: the mapping.
        handle: u32 = 20,
        /// Out: the address for devices, if one was asked for.
        dev_bus_addr: u64 = 24,
    }

    /// One of the arguments of [`GNTTABOP_UNMAP_GRANT_REF`] (`struct gnttab_unmap_grant_ref`).
    GnttabUnmapGrantRef: 24 {
        /// The address at which the frame appears.
        host_addr: u64 = 0,
        /// The address for devices, or zero.
        dev_bus_addr: u64 = 8,
        /// The mapping.
        handle: u32 = 16,
        /// Out: `GNTST_*`.
        status: i16 = 20,
    }

    /// Argument of [`GNTTABOP_QUERY_SIZE`] (`struct gnttab_query_size`).
    GnttabQuerySize: 16 {
        /// The domain.
        dom: u16 = 0,
        /// Out: its number of frames.
        nr_frames: u32 = 4,
        /// Out: the limit for its frames.
        max_nr_frames: u32 = 8,
        /// Out: `GNTST_*`.
        status: i16 = 12,
    }

    /// Argument of [`GNTTABOP_SET_VERSION`] (`struct gnttab_set_version`).
    GnttabSetVersion: 4 {
        /// In: the requested version. Out: the present version.
        version: u32 = 0,
    }
}
