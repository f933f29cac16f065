//! Which memory the kernel may use: the memory map's RAM, less what is taken already.

use arrayvec::ArrayVec;
use xen::PAGE_SIZE;

/// The most separate pieces of free memory that are used; further ones (there are none in practice)
/// would be left alone.
pub const MAX_FREE: usize = 8;

/// Pieces smaller than this are not worth a place in [`Free`].
const SMALLEST: u64 = 64 * 1024;

/// Below 1 MiB lie loaders' tables, and page zero, which must stay unmapped.
pub const LOW_END: u64 = 1 << 20;

/// The end of what four levels of page tables can map to itself.
const ADDRESS_END: u64 = 1 << 47;

/// What a piece of the physical address space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory to use.
    Ram,
    /// Anything else.
    Reserved,
}

/// A piece of the physical address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// What it is.
    pub kind: Kind,
}

/// Pieces of free memory, of whole pages, apart from each other.
pub type Free = ArrayVec<Region, MAX_FREE>;

impl Region {
    /// `size` bytes from `start`, cut off where page tables end.
    pub fn new(start: u64, size: u64, kind: Kind) -> Region {
        let end = start.saturating_add(size).min(ADDRESS_END);
        Region { start: start.min(end), end, kind }
    }

    /// The number of bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The whole pages in it.
    pub fn pages_within(self) -> Region {
        let page = PAGE_SIZE as u64;
        let end = self.end / page * page;
        Region { start: self.start.next_multiple_of(page).min(end), end, ..self }
    }

    /// The whole pages that it touches.
    pub fn pages_around(self) -> Region {
        let page = PAGE_SIZE as u64;
        Region { start: self.start / page * page, end: self.end.next_multiple_of(page), ..self }
    }
}

/// The free RAM above 1 MiB: whole pages that no region in `taken` and none of the map's other kinds
/// touches.
pub fn free(map: &[Region], taken: &[Region]) -> Free {
    let mut free = Free::new();
    let reserved = map.iter().filter(|region| region.kind == Kind::Reserved);
    let is_ram = |region: &&Region| region.kind == Kind::Ram;
    for (index, ram) in map.iter().enumerate().filter(|(_, region)| is_ram(region)) {
        // Entries that overlap are not handed out twice.
        let before = map[..index].iter().filter(is_ram);
        let ram = ram.pages_within();
        let mut at = ram.start.max(LOW_END);
        // Each turn finds the free piece from `at` on and steps over what ends it, so `at` grows.
        while at < ram.end {
            let holes =
                reserved.clone().chain(taken).chain(before.clone()).filter(|hole| !hole.is_empty());
            let holes = holes.map(|hole| hole.pages_around());
            let next = holes.filter(|hole| hole.end > at && hole.start < ram.end);
            let next = next.min_by_key(|hole| hole.start);
            let end = next.map_or(ram.end, |hole| hole.start.max(at));
            if end - at >= SMALLEST && free.try_push(Region { start: at, end, ..ram }).is_err() {
                return free;
            }
            at = next.map_or(ram.end, |hole| hole.end);
        }
    }
    free
}

/// The first address behind everything in the map, and behind the 32-bit space with its devices.
pub fn end_of_everything(map: &[Region]) -> u64 {
    map.iter().map(|region| region.end).fold(1 << 32, u64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ram(start: u64, end: u64) -> Region {
        Region { start, end, kind: Kind::Ram }
    }

    fn taken(start: u64, end: u64) -> Region {
        Region { start, end, kind: Kind::Reserved }
    }

    #[test]
    fn what_is_taken_is_left_out_with_the_pages_it_touches() {
        let map = [ram(0, 16 * MIB), taken(0xfeff_8000, 0xff00_0000)];
        let image = taken(MIB, 2 * MIB + 1);
        let module = taken(8 * MIB + 5, 8 * MIB + 6);
        assert_eq!(
            free(&map, &[module, image]).as_slice(),
            [ram(2 * MIB + 4096, 8 * MIB), ram(8 * MIB + 4096, 16 * MIB)]
        );
    }

    #[test]
    fn low_memory_and_scraps_are_left_alone() {
        let map = [ram(0, 0x9f000), ram(MIB, MIB + 0xf000), ram(3 * MIB + 1, 4 * MIB + 1)];
        assert_eq!(free(&map, &[]).as_slice(), [ram(3 * MIB + 4096, 4 * MIB)]);
    }

    #[test]
    fn overlapping_reservations_do_not_confuse_it() {
        let map = [ram(0, 16 * MIB), taken(4 * MIB, 6 * MIB), taken(5 * MIB, 5 * MIB + 9)];
        assert_eq!(
            free(&map, &[taken(0, 5 * MIB), taken(3, 3)]).as_slice(),
            [ram(6 * MIB, 16 * MIB)]
        );
        assert!(free(&map, &[taken(0, u64::MAX / 2)]).is_empty());
    }

    #[test]
    fn memory_above_4_gib_counts_and_absurd_sizes_are_cut_off() {
        let map = [ram(0, 3 << 30), Region::new(4 << 30, u64::MAX, Kind::Ram)];
        let free = free(&map, &[]);
        assert_eq!(free[1], ram(4 << 30, 1 << 47));
        assert_eq!(end_of_everything(&map), 1 << 47);
        assert_eq!(end_of_everything(&[ram(0, MIB)]), 1 << 32);
        assert!(Region::new(u64::MAX, 5, Kind::Ram).is_empty());
    }

    #[test]
    fn more_pieces_than_there_is_room_for_are_left_alone() {
        let pieces: Vec<_> = (1..20).map(|n| ram(n * MIB, n * MIB + MIB / 2)).collect();
        assert_eq!(free(&pieces, &[]).len(), MAX_FREE);
    }
}
