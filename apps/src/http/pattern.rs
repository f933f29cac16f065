//! The bytes that `/bytes/N` gives: at offset `i` stands `i` mod 251.
//!
//! They are written straight from a table in the kernel's image, so a download costs neither memory
//! nor arithmetic. 251 is prime, so a page or a ring that is lost or repeated shows.

/// The pattern repeats after this many bytes.
pub const PERIOD: u64 = 251;

/// The most bytes that one write gets.
const SLICE: usize = 64 << 10;

static TABLE: [u8; SLICE + PERIOD as usize] = table();

const fn table() -> [u8; SLICE + PERIOD as usize] {
    let mut table = [0; SLICE + PERIOD as usize];
    let mut at = 0;
    while at < table.len() {
        table[at] = (at % PERIOD as usize) as u8;
        at += 1;
    }
    table
}

/// As many bytes as one write should get, of those from `offset` up to `end`.
pub fn slice(offset: u64, end: u64) -> &'static [u8] {
    let start = (offset % PERIOD) as usize;
    let length = end.saturating_sub(offset).min(SLICE as u64) as usize;
    &TABLE[start..start + length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_continue_each_other() {
        let end = 1_000_003;
        let mut offset = 0;
        while offset < end {
            let slice = slice(offset, end);
            assert!(!slice.is_empty());
            for (at, byte) in slice.iter().enumerate() {
                assert_eq!(u64::from(*byte), (offset + at as u64) % 251);
            }
            offset += slice.len() as u64;
        }
        assert_eq!(offset, end);
        assert!(slice(end, end).is_empty());
    }

    #[test]
    fn a_far_offset_is_as_good_as_a_near_one() {
        let far = slice(u64::MAX - 1, u64::MAX);
        assert_eq!(far, [((u64::MAX - 1) % 251) as u8]);
    }
}
