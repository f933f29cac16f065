//! Reads what the loader left in memory, before anything else uses memory.

use super::modules;
use super::start_info::{MAX_REGIONS, MemmapEntry, MemoryMap, Module, StartInfo};
use crate::config::MAX_LENGTH;
use crate::memory::image;
use crate::memory::ram::Region;
use arrayvec::ArrayVec;
use core::ptr;
use spin::Once;
use zerocopy::FromBytes;

/// What the loader left.
pub struct Loaded {
    /// The command line, or as much of it as anyone reads.
    pub command_line: &'static [u8],
    /// The memory map.
    pub memory_map: MemoryMap,
    /// The memory that is in use, and may not be handed out.
    pub taken: ArrayVec<Region, { modules::MAX + 1 }>,
}

/// Copied here because nothing keeps the original from being overwritten. One byte more than is
/// allowed, so that a line which is too long is seen to be.
static COMMAND_LINE: Once<ArrayVec<u8, { MAX_LENGTH + 1 }>> = Once::new();

/// Reads all that `start_info` leads to.
///
/// # Safety
/// `start_info` must be the address that the loader passed, and everything below 4 GiB mapped to
/// itself. (Loaders put what they pass below 4 GiB: a 32-bit kernel must be able to read it.)
pub unsafe fn read(start_info: u32) -> Loaded {
    // SAFETY: the loader put the structure there; any bytes make an array.
    let bytes = unsafe { ptr::read(ptr::with_exposed_provenance(start_info as usize)) };
    let info = StartInfo::parse(&bytes).expect("no hvm_start_info where the loader said");

    let mut taken = ArrayVec::new();
    taken.push(image::region());
    let (list, count) = info.modules();
    assert!(count <= modules::MAX, "the loader passes {count} modules; {} fit", modules::MAX);
    for n in 0..count {
        // SAFETY: the loader says that its list has this many entries.
        let module: Module = unsafe { entry(list, n) };
        taken.push(module.region());
        let line = module.command_line();
        // SAFETY: the loader says that the text is there, and where it has put the module.
        unsafe { modules::add(module.region(), line.map_or_else(ArrayVec::new, |at| text(at))) };
    }
    let mut memory_map = MemoryMap::new();
    let (memmap, count) = info.memory_map();
    for n in 0..count.min(MAX_REGIONS) {
        // SAFETY: as above.
        let piece: MemmapEntry = unsafe { entry(memmap, n) };
        memory_map.push(piece.region());
    }

    // SAFETY: the loader says that the text is there.
    let command_line = COMMAND_LINE
        .call_once(|| info.command_line().map_or_else(ArrayVec::new, |at| unsafe { text(at) }));
    Loaded { command_line, memory_map, taken }
}

/// Copies a text that a NUL ends, as much of it as fits.
///
/// # Safety
/// It must be there, and mapped.
unsafe fn text<const N: usize>(start: u64) -> ArrayVec<u8, N> {
    let mut line = ArrayVec::new();
    for at in start.. {
        // SAFETY: the text goes on until a NUL, which ends the loop.
        let byte = unsafe { ptr::read(ptr::with_exposed_provenance(at as usize)) };
        if byte == 0 || line.try_push(byte).is_err() {
            break;
        }
    }
    line
}

/// Reads entry `n` of a table at `start`.
///
/// # Safety
/// The table must have such an entry, and be mapped.
unsafe fn entry<T: FromBytes>(start: u64, n: usize) -> T {
    let start: *const T = ptr::with_exposed_provenance(start as usize);
    // SAFETY: the caller's promise; any bytes make a `T`.
    unsafe { ptr::read_unaligned(start.add(n)) }
}
