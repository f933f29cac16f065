//! `memory.h`: putting special pages into the guest's physical address space.

/// Puts a page of Xen's at a guest frame.
pub const XENMEM_ADD_TO_PHYSMAP: u32 = 7;
/// Takes a page out of the guest's physical address space.
pub const XENMEM_REMOVE_FROM_PHYSMAP: u32 = 15;

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

/// Argument of [`XENMEM_REMOVE_FROM_PHYSMAP`] (`struct xen_remove_from_physmap`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RemoveFromPhysmap {
    /// Whose address space.
    pub domid: u16,
    /// The guest frame.
    pub gpfn: u64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<AddToPhysmap>() == 24);
    assert!(offset_of!(AddToPhysmap, idx) == 8);
    assert!(size_of::<RemoveFromPhysmap>() == 16);
};
