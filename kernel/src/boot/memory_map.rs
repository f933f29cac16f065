//! The memory maps of Xen and of the loader. The loader's is missing before version 1 of
//! `hvm_start_info`, and the two may differ.

use crate::memory::ram::{Kind, Region};
use arrayvec::ArrayVec;
use pvh::start_info::MemmapTableEntry;
use xen::Errno;
use xen::abi::memory::{E820_RAM, E820Entry};
use xen::hypercall::Operations;

/// The most entries of a memory map that are used. Xen makes fewer than ten.
const MAX_REGIONS: usize = 64;

/// A memory map.
pub type MemoryMap = ArrayVec<Region, MAX_REGIONS>;

/// The loader's memory map. Its types are those of E820.
pub fn of_loader(entries: &[MemmapTableEntry]) -> MemoryMap {
    let regions = entries.iter().take(MAX_REGIONS);
    regions.map(|entry| region(entry.addr, entry.size, entry.ty)).collect()
}

/// The memory map that the toolstack has set, from Xen.
pub fn ask(xen: &impl Operations) -> Result<MemoryMap, Errno> {
    let mut entries = [E820Entry::default(); MAX_REGIONS];
    let count = xen.memory_map(&mut entries)?;
    let entries = entries.iter().take(count);
    Ok(entries.map(|entry| region(entry.addr, entry.size, entry.kind)).collect())
}

fn region(start: u64, size: u64, kind: u32) -> Region {
    Region::new(start, size, if kind == E820_RAM { Kind::Ram } else { Kind::Reserved })
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::testing::FakeXen;

    #[test]
    fn the_memory_map_is_read_from_xen() {
        let entry = |addr, size, kind| E820Entry { addr, size, kind };
        let xen = FakeXen::new();
        xen.memory_map.replace(vec![entry(0, 0x0100_0000, 1), entry(0xfeff_8000, 0x8000, 2)]);
        let map = ask(&xen).unwrap();
        assert_eq!(map[0], Region { start: 0, end: 0x0100_0000, kind: Kind::Ram });
        assert_eq!(map[1].kind, Kind::Reserved);
        assert_eq!(map.len(), 2);
    }
}
