//! Reads `hvm_start_info` and everything it refers to, before other code uses that memory.

use super::memory_map::{self, MemoryMap};
use crate::memory::ram::{Kind, LoadedModule, MAX_MODULES, Region};
use arrayvec::ArrayVec;
use core::ffi::CStr;
use pvh::start_info::reader::{MemMap, StartInfoReader};

/// The most bytes of the command line that are kept.
pub const COMMAND_LINE_SIZE: usize = 4097;

/// The command line.
pub type CommandLine = ArrayVec<u8, COMMAND_LINE_SIZE>;

/// The loader's data. Texts are copied, because the originals may be overwritten.
pub struct Loaded {
    /// The command line, up to [`COMMAND_LINE_SIZE`].
    pub command_line: CommandLine,
    /// The memory map; empty if the structure is older than version 1.
    pub memory_map: MemoryMap,
    /// The modules.
    pub modules: ArrayVec<LoadedModule, MAX_MODULES>,
}

/// Reads `hvm_start_info` and everything it refers to.
pub fn read<M: MemMap>(info: &StartInfoReader<'_, M>) -> Loaded {
    let count = info.raw().nr_modules;
    assert!(count as usize <= MAX_MODULES, "the loader passes {count} modules; {MAX_MODULES} fit");
    let modules = info.modlist().map(|module| LoadedModule {
        region: Region::new(module.raw().paddr, module.raw().size, Kind::Reserved),
        command_line: text(module.cmdline()),
    });
    Loaded {
        command_line: text(info.cmdline()),
        memory_map: memory_map::of_loader(info.memmap()),
        modules: modules.collect(),
    }
}

/// A copy of a text, cut off after `N` bytes.
fn text<const N: usize>(line: Option<&CStr>) -> ArrayVec<u8, N> {
    line.unwrap_or_default().to_bytes().iter().copied().take(N).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::alloc::Layout;
    use pvh::start_info::{
        MemmapTableEntry, MemmapType, ModlistEntry, START_MAGIC_VALUE, StartInfo,
    };

    /// The memory of a machine that is about to boot.
    #[repr(C)]
    struct Left {
        info: StartInfo,
        modules: [ModlistEntry; 2],
        memmap: [MemmapTableEntry; 3],
        line: [u8; 8192],
        module_line: [u8; 16],
    }

    /// Its address there.
    const BASE: usize = 0x1_0000;

    struct Physical<'a>(&'a Left);

    impl MemMap for Physical<'_> {
        fn ptr(&self, address: usize, _: Layout) -> *const u8 {
            let offset = address.checked_sub(BASE).filter(|offset| *offset < size_of::<Left>());
            let start = core::ptr::from_ref(self.0).cast::<u8>();
            offset.map_or(core::ptr::null(), |offset| start.wrapping_add(offset))
        }
    }

    fn at(offset: usize) -> u64 {
        (BASE + offset) as u64
    }

    fn left(version: u32) -> Box<Left> {
        let entry = |addr, size, ty| MemmapTableEntry { addr, size, ty, reserved: 0 };
        let module =
            |paddr, size, cmdline_paddr| ModlistEntry { paddr, size, cmdline_paddr, reserved: 0 };
        let mut left = Left {
            info: StartInfo {
                magic: START_MAGIC_VALUE,
                version,
                nr_modules: 2,
                modlist_paddr: at(core::mem::offset_of!(Left, modules)),
                cmdline_paddr: at(core::mem::offset_of!(Left, line)),
                memmap_paddr: at(core::mem::offset_of!(Left, memmap)),
                memmap_entries: 3,
                ..StartInfo::default()
            },
            modules: [
                module(0x80_0000, 5, at(core::mem::offset_of!(Left, module_line))),
                module(0x90_0000, 0, 0),
            ],
            memmap: [
                entry(0, 0xa_0000, MemmapType::Ram.into()),
                entry(0xfeff_8000, 0x8000, MemmapType::Reserved.into()),
                entry(1 << 32, 1 << 30, 77),
            ],
            line: [0; 8192],
            module_line: [0; 16],
        };
        left.line[..8].copy_from_slice(b"app=http");
        left.module_line[..3].copy_from_slice(b"key");
        Box::new(left)
    }

    #[allow(unsafe_code, reason = "the reader follows addresses, here into `Left`")]
    fn reader(left: &Left) -> Option<StartInfoReader<'_, Physical<'_>>> {
        // SAFETY: `Physical` finds everything that the structure refers to.
        unsafe { StartInfoReader::from_paddr(BASE as u32, Physical(left)) }
    }

    #[test]
    fn everything_from_the_loader_is_found() {
        let left = left(1);
        let loaded = read(&reader(&left).unwrap());
        assert_eq!(loaded.command_line.as_slice(), b"app=http");
        let regions: Vec<_> = loaded.modules.iter().map(|module| module.region).collect();
        assert_eq!((regions[0].start, regions[0].len(), regions[1].len()), (0x80_0000, 5, 0));
        assert_eq!(loaded.modules[0].command_line.as_slice(), b"key");
        assert!(loaded.modules[1].command_line.is_empty());
        let kinds: Vec<_> = loaded.memory_map.iter().map(|region| region.kind).collect();
        assert_eq!(kinds, [Kind::Ram, Kind::Reserved, Kind::Reserved], "only type 1 is RAM");
    }

    #[test]
    fn version_0_has_no_memory_map_and_absent_lists_are_empty() {
        let mut left = left(0);
        left.info.cmdline_paddr = 0;
        left.info.nr_modules = 0;
        left.info.modlist_paddr = 0;
        let loaded = read(&reader(&left).unwrap());
        assert!(loaded.memory_map.is_empty() && loaded.modules.is_empty());
        assert!(loaded.command_line.is_empty());
    }

    #[test]
    fn a_line_that_is_too_long_keeps_one_byte_too_many() {
        let mut left = left(1);
        left.line[..8000].fill(b'x');
        let loaded = read(&reader(&left).unwrap());
        assert_eq!(loaded.command_line.len(), COMMAND_LINE_SIZE);
    }

    #[test]
    fn a_wrong_magic_number_is_refused() {
        let mut left = left(1);
        left.info.magic ^= 1;
        assert!(reader(&left).is_none());
    }
}
