//! The memory map, asked of Xen itself: for loaders that pass none, which are those older than
//! version 1 of `hvm_start_info`.

use super::start_info::{MAX_REGIONS, MemoryMap};
use crate::memory::ram::{Kind, Region};
use arrayvec::ArrayVec;
use xen::Errno;
use xen::abi::xen::__HYPERVISOR_MEMORY_OP;
use xen::hypercall::Hypervisor;

/// The memory operation (`XENMEM_memory_map` in `memory.h`).
const XENMEM_MEMORY_MAP: u64 = 9;

/// `struct xen_memory_map`.
#[repr(C)]
struct XenMemoryMap {
    /// In: places in the buffer. Out: places filled.
    entries: u32,
    buffer: u64,
}

/// An entry of an E820 map, as BIOSes write it.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Entry {
    address: u64,
    size: u64,
    kind: u32,
}

const _: () = assert!(size_of::<XenMemoryMap>() == 16);
const _: () = assert!(size_of::<Entry>() == 20);

/// Asks for the memory map that the toolstack set.
pub fn ask(xen: &impl Hypervisor) -> Result<MemoryMap, Errno> {
    let mut buffer = [Entry { address: 0, size: 0, kind: 0 }; MAX_REGIONS];
    let address = (&raw mut buffer).expose_provenance() as u64;
    let mut map = XenMemoryMap { entries: MAX_REGIONS as u32, buffer: address };
    let pointer = (&raw mut map).expose_provenance() as u64;
    // SAFETY: the structure is this operation's, and names a buffer with as many places as it says; both
    // live and are not borrowed during the call.
    let result = unsafe { xen.call(__HYPERVISOR_MEMORY_OP, [XENMEM_MEMORY_MAP, pointer, 0, 0]) };
    Errno::check(result)?;
    let filled = buffer.iter().take(map.entries as usize);
    let regions = filled.map(|entry| {
        let kind = if entry.kind == 1 { Kind::Ram } else { Kind::Reserved };
        Region::new(entry.address, entry.size, kind)
    });
    Ok(regions.collect::<ArrayVec<_, MAX_REGIONS>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hypervisor that knows this one operation.
    struct Fake(Vec<Entry>);

    // SAFETY: it writes to the buffer that it is given and to nothing else.
    unsafe impl Hypervisor for Fake {
        unsafe fn call(&self, number: u32, arguments: [u64; 4]) -> i64 {
            assert_eq!((number, arguments[0]), (__HYPERVISOR_MEMORY_OP, 9));
            let map = core::ptr::with_exposed_provenance_mut::<XenMemoryMap>(arguments[1] as usize);
            // SAFETY: the caller passes this structure.
            let map = unsafe { &mut *map };
            assert!(self.0.len() <= map.entries as usize);
            let buffer = core::ptr::with_exposed_provenance_mut::<Entry>(map.buffer as usize);
            for (n, entry) in self.0.iter().enumerate() {
                // SAFETY: the buffer has that many places.
                unsafe { buffer.add(n).write_unaligned(*entry) };
            }
            map.entries = self.0.len() as u32;
            0
        }
    }

    #[test]
    fn xen_tells_the_memory_map() {
        let entry = |address, size, kind| Entry { address, size, kind };
        let fake = Fake(vec![entry(0, 0x0100_0000, 1), entry(0xfeff_8000, 0x8000, 2)]);
        let map = ask(&fake).unwrap();
        assert_eq!(map[0], Region { start: 0, end: 0x0100_0000, kind: Kind::Ram });
        assert_eq!(map[1].kind, Kind::Reserved);
        assert_eq!(map.len(), 2);
    }
}
