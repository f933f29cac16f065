//! `grant_table.h`: version 1 of the grant table.

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

/// Queries the table's size and limit.
pub const GNTTABOP_QUERY_SIZE: u32 = 6;
/// Sets the table's version.
pub const GNTTABOP_SET_VERSION: u32 = 8;

/// Success.
pub const GNTST_OKAY: i16 = 0;

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
