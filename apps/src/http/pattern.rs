//! The bytes of `/bytes/N`: the byte at offset `i` is `i` mod 251.
//!
//! They are written from a constant table, so a download needs neither memory nor arithmetic. 251
//! is prime, so a lost or repeated page is visible.

/// The pattern repeats after this many bytes.
pub const PERIOD: u64 = 251;

/// The most bytes of one write.
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

/// The bytes for the next write, of those from `offset` up to `end`.
pub fn slice(offset: u64, end: u64) -> &'static [u8] {
    let start = (offset % PERIOD) as usize;
    let length = end.saturating_sub(offset).min(SLICE as u64) as usize;
    &TABLE[start..start + length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_slices_form_the_pattern() {
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
    fn a_large_offset_works() {
        let far = slice(u64::MAX - 1, u64::MAX);
        assert_eq!(far, [((u64::MAX - 1) % 251) as u8]);
    }
}
