//! `grant_table.h`: version 1 of the grant table.

/// The first entries belong to the toolstack.
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;

/// The entry grants nothing.
pub const GTF_INVALID: u16 = 0;
/// The domain may map the frame.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// The bits that say what an entry is.
pub const GTF_TYPE_MASK: u16 = 3;
/// The domain may only read.
pub const GTF_READONLY: u16 = 1 << 2;
/// Set by Xen: the frame is mapped, or being read.
pub const GTF_READING: u16 = 1 << 3;
/// Set by Xen: the frame is mapped for writing, or being written.
pub const GTF_WRITING: u16 = 1 << 4;

/// Asks how large the table is and may become.
pub const GNTTABOP_QUERY_SIZE: u32 = 6;
/// Sets the table's version.
pub const GNTTABOP_SET_VERSION: u32 = 8;

/// Everything went well.
pub const GNTST_OKAY: i16 = 0;

/// An entry of the table (`struct grant_entry_v1`), written by the granting domain except for
/// [`GTF_READING`] and [`GTF_WRITING`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GrantEntryV1 {
    /// `GTF_*`.
    pub flags: u16,
    /// The domain that is granted something.
    pub domid: u16,
    /// The frame that it is granted.
    pub frame: u32,
}

/// Argument of [`GNTTABOP_QUERY_SIZE`] (`struct gnttab_query_size`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GnttabQuerySize {
    /// Whose table.
    pub dom: u16,
    /// Out: its frames.
    pub nr_frames: u32,
    /// Out: the most frames that it may have.
    pub max_nr_frames: u32,
    /// Out: `GNTST_*`.
    pub status: i16,
}

/// Argument of [`GNTTABOP_SET_VERSION`] (`struct gnttab_set_version`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GnttabSetVersion {
    /// In: the version wanted. Out: the version in force.
    pub version: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<GrantEntryV1>() == 8);
    assert!(offset_of!(GrantEntryV1, frame) == 4);
    assert!(size_of::<GnttabQuerySize>() == 16);
    assert!(offset_of!(GnttabQuerySize, status) == 12);
    assert!(size_of::<GnttabSetVersion>() == 4);
};
