//! `elfnote.h`: the note by which a kernel's image names its entry point.

/// The notes' owner.
pub const XEN_ELFNOTE_NAME: &[u8; 4] = b"Xen\0";
/// The note's type: a 32-bit physical address, entered in protected mode without paging.
pub const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
