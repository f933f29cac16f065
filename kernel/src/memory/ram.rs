//! The memory map, and the free memory in it.

use arrayvec::ArrayVec;
use xen::PAGE_SIZE;

/// The most separate pieces of free memory that are used. Further ones, which do not occur in
/// practice, are ignored.
pub const MAX_FREE: usize = 8;

/// The smallest piece of free memory that is used.
const SMALLEST: u64 = 64 * 1024;

/// The memory below 1 MiB contains loaders' tables, and page zero, which must stay unmapped.
pub const LOW_END: u64 = 1 << 20;

/// The end of the addresses that four levels of page tables can identity-map.
const ADDRESS_END: u64 = 1 << 47;

/// The kind of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Usable memory.
    Ram,
    /// Anything else.
    Reserved,
}

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// The end: the address after the last one.
    pub end: u64,
    /// The kind.
    pub kind: Kind,
}

/// The most regions in the intersection of two maps.
pub const MAX_AGREED: usize = 128;

/// The intersection of two memory maps.
pub type Agreed = ArrayVec<Region, MAX_AGREED>;

/// Pieces of free memory: whole pages, not adjacent.
pub type Free = ArrayVec<Region, MAX_FREE>;

impl Region {
    /// `size` bytes from `start`, up to the end of what page tables can map.
    pub fn new(start: u64, size: u64, kind: Kind) -> Region {
        let end = start.saturating_add(size).min(ADDRESS_END);
        Region { start: start.min(end), end, kind }
    }

    /// The number of bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The whole pages inside.
    pub fn pages_within(self) -> Region {
        let page = PAGE_SIZE as u64;
        let end = self.end / page * page;
        Region { start: self.start.next_multiple_of(page).min(end), end, ..self }
    }

    /// All pages that it overlaps.
    pub fn pages_around(self) -> Region {
        let page = PAGE_SIZE as u64;
        Region { start: self.start / page * page, end: self.end.next_multiple_of(page), ..self }
    }
}

/// The most modules. Xen's toolstack passes one.
pub const MAX_MODULES: usize = 8;

/// The longest command line of a module (`HVMLOADER_MODULE_CMDLINE_SIZE` in Xen's toolstack).
/// Longer ones are cut off.
pub const MAX_MODULE_LINE: usize = 1024;

/// A module that the loader put into memory.
pub struct LoadedModule {
    /// Its memory.
    pub region: Region,
    /// Its command line.
    pub command_line: ArrayVec<u8, MAX_MODULE_LINE>,
}

/// The intersection of two memory maps of the same domain: memory is RAM if both say so, and
/// reserved if either says so. If one map is empty, the other one is the result.
pub fn agreed(one: &[Region], other: &[Region]) -> Agreed {
    let mut agreed = Agreed::new();
    if one.is_empty() || other.is_empty() {
        agreed.extend(one.iter().chain(other).copied().take(MAX_AGREED));
        return agreed;
    }
    // Reserved regions come first: RAM that does not fit is merely not used.
    let is_ram = |region: &&Region| region.kind == Kind::Ram;
    agreed.extend(one.iter().chain(other).filter(|region| !is_ram(region)).copied());
    for ram in one.iter().filter(is_ram) {
        for also in other.iter().filter(is_ram) {
            let (start, end) = (ram.start.max(also.start), ram.end.min(also.end));
            if start < end && agreed.try_push(Region { start, end, kind: Kind::Ram }).is_err() {
                return agreed;
            }
        }
    }
    agreed
}

/// The free RAM above 1 MiB: whole pages that overlap no region in `taken` and no reserved region
/// of the map.
pub fn free(map: &[Region], taken: &[Region]) -> Free {
    let mut free = Free::new();
    each_piece(map, taken, |piece| {
        let piece = Region { start: piece.start.max(LOW_END).min(piece.end), ..piece };
        if piece.len() >= SMALLEST {
            // A piece that does not fit is not used.
            let _ = free.try_push(piece);
        }
    });
    free
}

/// The number of whole pages of RAM in a map.
pub fn pages(map: &[Region]) -> u64 {
    let mut bytes = 0;
    each_piece(map, &[], |piece| bytes += piece.len());
    bytes / PAGE_SIZE as u64
}

/// The number of reserved pages in a map, at most `limit`.
pub fn reserved_pages(map: &[Region], limit: u64) -> u64 {
    let reserved = map.iter().filter(|region| region.kind == Kind::Reserved);
    let pages = reserved.map(|region| region.pages_around().len() / PAGE_SIZE as u64);
    pages.fold(0, u64::saturating_add).min(limit)
}

/// Removes pages from free memory, highest first, and returns them. At least `keep` pages stay.
pub fn cut(free: &mut Free, pages: u64, keep: u64) -> Free {
    let page = PAGE_SIZE as u64;
    let all: u64 = free.iter().map(Region::len).sum();
    let mut left = pages.saturating_mul(page).min(all.saturating_sub(keep * page));
    let mut cut = Free::new();
    while left > 0 {
        let Some(highest) = free.iter_mut().max_by_key(|piece| piece.end) else { break };
        let start = highest.end - highest.len().min(left);
        let piece = Region { start, ..*highest };
        highest.end = start;
        left -= piece.len();
        free.retain(|piece| !piece.is_empty());
        cut.push(piece);
    }
    cut
}

/// Calls `found` for each piece of RAM, in whole pages, that overlaps no other region of the map
/// and none in `taken`.
fn each_piece(map: &[Region], taken: &[Region], mut found: impl FnMut(Region)) {
    let reserved = map.iter().filter(|region| region.kind == Kind::Reserved);
    let is_ram = |region: &&Region| region.kind == Kind::Ram;
    for (index, ram) in map.iter().enumerate().filter(|(_, region)| is_ram(region)) {
        // Entries that overlap an earlier one count once.
        let before = map[..index].iter().filter(is_ram);
        let ram = ram.pages_within();
        let mut at = ram.start;
        // Each turn finds the free piece from `at` on, and skips the hole that ends it.
        while at < ram.end {
            let holes =
                reserved.clone().chain(taken).chain(before.clone()).filter(|hole| !hole.is_empty());
            let holes = holes.map(|hole| hole.pages_around());
            let next = holes.filter(|hole| hole.end > at && hole.start < ram.end);
            let next = next.min_by_key(|hole| hole.start);
            let end = next.map_or(ram.end, |hole| hole.start.max(at));
            if end > at {
                found(Region { start: at, end, ..ram });
            }
            at = next.map_or(ram.end, |hole| hole.end);
        }
    }
}

/// The first address after all regions of the map and after the 32-bit address space.
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
    fn taken_regions_are_left_out_with_all_pages_they_overlap() {
        let map = [ram(0, 16 * MIB), taken(0xfeff_8000, 0xff00_0000)];
        let image = taken(MIB, 2 * MIB + 1);
        let module = taken(8 * MIB + 5, 8 * MIB + 6);
        assert_eq!(
            free(&map, &[module, image]).as_slice(),
            [ram(2 * MIB + 4096, 8 * MIB), ram(8 * MIB + 4096, 16 * MIB)]
        );
    }

    #[test]
    fn low_memory_and_small_pieces_are_not_used() {
        let map = [ram(0, 0x9f000), ram(MIB, MIB + 0xf000), ram(3 * MIB + 1, 4 * MIB + 1)];
        assert_eq!(free(&map, &[]).as_slice(), [ram(3 * MIB + 4096, 4 * MIB)]);
    }

    #[test]
    fn reservations_may_overlap() {
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
    fn only_memory_that_both_maps_call_ram_is_ram() {
        let one = [ram(0, 16 * MIB), taken(0xfeff_8000, 0xff00_0000), ram(4 << 30, 5 << 30)];
        let other = [ram(0, 8 * MIB), taken(8 * MIB, 9 * MIB), ram(9 * MIB, 20 * MIB)];
        let both = agreed(&one, &other);
        assert_eq!(free(&both, &[]).as_slice(), [ram(MIB, 8 * MIB), ram(9 * MIB, 16 * MIB)]);
        assert_eq!(pages(&both), 15 * MIB / 4096);
        assert_eq!(agreed(&other, &one).len(), both.len());
        // A region that is reserved in one map is not RAM, and is not counted twice.
        let within = [ram(0, 16 * MIB), taken(2 * MIB, 3 * MIB)];
        assert_eq!(pages(&agreed(&within, &[ram(0, 16 * MIB)])), 15 * MIB / 4096);
        assert_eq!(pages(&agreed(&within, &within)), 15 * MIB / 4096);
    }

    #[test]
    fn one_map_may_be_missing() {
        let map = [ram(0, 16 * MIB), taken(0xfeff_8000, 0xff00_0000)];
        assert_eq!(agreed(&map, &[]).as_slice(), map);
        assert_eq!(agreed(&[], &map).as_slice(), map);
        assert!(agreed(&[], &[]).is_empty());
        // A map without RAM counts as a map.
        assert_eq!(pages(&agreed(&map, &[taken(0, MIB)])), 0);
    }

    #[test]
    fn very_long_maps_lose_ram_but_no_reservation() {
        let many: Vec<_> = (0..64).map(|n| taken(n * MIB, n * MIB + 4096)).collect();
        let mut long = many.clone();
        long[63] = ram(0, 100 * MIB);
        let agreed = agreed(&long, &long);
        assert_eq!(agreed.iter().filter(|region| region.kind == Kind::Reserved).count(), 126);
        assert_eq!(pages(&agreed), 100 * MIB / 4096 - 63);
    }

    #[test]
    fn a_surplus_is_removed_from_the_top() {
        let pieces: Free = [ram(MIB, 3 * MIB), ram(8 * MIB, 12 * MIB)].into_iter().collect();
        let mut free = pieces.clone();
        assert_eq!(cut(&mut free, 256, 0).as_slice(), [ram(11 * MIB, 12 * MIB)]);
        assert_eq!(free.as_slice(), [ram(MIB, 3 * MIB), ram(8 * MIB, 11 * MIB)]);
        let gone = cut(&mut free, 1024, 0);
        assert_eq!(gone.as_slice(), [ram(8 * MIB, 11 * MIB), ram(2 * MIB, 3 * MIB)]);
        assert_eq!(free.as_slice(), [ram(MIB, 2 * MIB)]);
        // Some memory stays, however large the surplus is.
        let mut free = pieces;
        cut(&mut free, u64::MAX, 300);
        assert_eq!(free.iter().map(Region::len).sum::<u64>(), 300 * 4096);
        assert!(cut(&mut free, 0, 0).is_empty());
    }

    #[test]
    fn reserved_pages_are_counted_up_to_a_limit() {
        let map = [ram(0, 16 * MIB), taken(0xfeff_8000, 0xff00_0000), taken(MIB + 1, MIB + 2)];
        assert_eq!(reserved_pages(&map, 100), 9);
        assert_eq!(reserved_pages(&map, 5), 5);
    }

    #[test]
    fn pieces_that_do_not_fit_are_not_used() {
        let pieces: Vec<_> = (1..20).map(|n| ram(n * MIB, n * MIB + MIB / 2)).collect();
        assert_eq!(free(&pieces, &[]).len(), MAX_FREE);
    }
}
