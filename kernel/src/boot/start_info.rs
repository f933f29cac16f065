//! What the loader tells: `hvm_start_info` and the tables it points to.
//!
//! The layouts are those of `xen/include/public/arch-x86/hvm/start_info.h`. Nothing here reads
//! physical memory by itself: whoever does hands in bytes, and gets values.

use crate::memory::ram::{Kind, Region};
use arrayvec::ArrayVec;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;

/// The most entries of a memory map that are looked at. Xen makes fewer than ten.
pub const MAX_REGIONS: usize = 64;

/// A memory map.
pub type MemoryMap = ArrayVec<Region, MAX_REGIONS>;

/// `struct hvm_start_info`, version 1.
#[derive(Clone, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct StartInfo {
    magic: U32,
    version: U32,
    flags: U32,
    nr_modules: U32,
    modlist: U64,
    cmdline: U64,
    rsdp: U64,
    memmap: U64,
    memmap_entries: U32,
    reserved: U32,
}

/// `struct hvm_modlist_entry`.
#[derive(Clone, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Module {
    paddr: U64,
    size: U64,
    cmdline: U64,
    reserved: U64,
}

/// `struct hvm_memmap_table_entry`.
#[derive(Clone, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MemmapEntry {
    addr: U64,
    size: U64,
    kind: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<StartInfo>() == 56);
const _: () = assert!(size_of::<Module>() == 32);
const _: () = assert!(size_of::<MemmapEntry>() == 24);

impl StartInfo {
    /// Reads the structure, unless its magic number says that it is something else.
    pub fn parse(bytes: &[u8; size_of::<StartInfo>()]) -> Option<StartInfo> {
        let info = StartInfo::read_from_bytes(bytes).ok()?;
        (info.magic.get() == MAGIC).then_some(info)
    }

    /// Where the command line lies, if there is one: text that a NUL ends.
    pub fn command_line(&self) -> Option<u64> {
        Some(self.cmdline.get()).filter(|address| *address != 0)
    }

    /// Where the module list lies, and how many [`Module`]s it has.
    pub fn modules(&self) -> (u64, usize) {
        (self.modlist.get(), self.nr_modules.get() as usize)
    }

    /// Where the memory map lies, and how many [`MemmapEntry`]s it has; before version 1, none.
    pub fn memory_map(&self) -> (u64, usize) {
        if self.version.get() == 0 {
            return (0, 0);
        }
        (self.memmap.get(), self.memmap_entries.get() as usize)
    }
}

impl Module {
    /// The module's memory.
    pub fn region(&self) -> Region {
        Region::new(self.paddr.get(), self.size.get(), Kind::Reserved)
    }

    /// Where its command line lies, if there is one: text that a NUL ends.
    pub fn command_line(&self) -> Option<u64> {
        Some(self.cmdline.get()).filter(|address| *address != 0)
    }
}

impl MemmapEntry {
    /// The entry's memory. Types are those of E820, and so are those of `XENMEM_memory_map`.
    pub fn region(&self) -> Region {
        let kind = if self.kind.get() == 1 { Kind::Ram } else { Kind::Reserved };
        Region::new(self.addr.get(), self.size.get(), kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(version: u32) -> [u8; 56] {
        let mut bytes = [0; 56];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        bytes[12] = 1;
        bytes[16..24].copy_from_slice(&0x2000u64.to_le_bytes());
        bytes[24..32].copy_from_slice(&0x1000u64.to_le_bytes());
        bytes[40..48].copy_from_slice(&0x3000u64.to_le_bytes());
        bytes[48] = 5;
        bytes
    }

    #[test]
    fn fields_lie_where_the_header_puts_them() {
        let info = StartInfo::parse(&bytes(1)).unwrap();
        assert_eq!(info.command_line(), Some(0x1000));
        assert_eq!(info.modules(), (0x2000, 1));
        assert_eq!(info.memory_map(), (0x3000, 5));
    }

    #[test]
    fn version_0_has_no_memory_map() {
        assert_eq!(StartInfo::parse(&bytes(0)).unwrap().memory_map(), (0, 0));
    }

    #[test]
    fn another_magic_number_is_refused() {
        let mut bytes = bytes(1);
        bytes[0] ^= 1;
        assert!(StartInfo::parse(&bytes).is_none());
    }

    #[test]
    fn a_module_has_bytes_and_perhaps_a_command_line() {
        let mut bytes = [0; 32];
        bytes[2] = 1;
        bytes[8] = 5;
        let module = Module::read_from_bytes(&bytes).unwrap();
        assert_eq!((module.region().start, module.region().len()), (0x10000, 5));
        assert_eq!(module.command_line(), None);
        bytes[17] = 0x20;
        assert_eq!(Module::read_from_bytes(&bytes).unwrap().command_line(), Some(0x2000));
    }

    #[test]
    fn only_type_1_is_ram() {
        let mut bytes = [0; 24];
        bytes[8] = 1;
        for (kind, is_ram) in [(0, false), (1, true), (2, false), (7, false)] {
            bytes[16] = kind;
            let region = MemmapEntry::read_from_bytes(&bytes).unwrap().region();
            assert_eq!(region.kind == Kind::Ram, is_ram);
        }
    }
}
