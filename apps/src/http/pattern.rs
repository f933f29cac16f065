//! The bytes of `/bytes/N`: the byte at offset `i` is `i` mod 251.
//!
//! They are written from a table, so a download needs neither memory nor arithmetic. 251 is prime,
//! so a lost or repeated page is visible.

use alloc::boxed::Box;

/// The pattern repeats after this many bytes.
pub const PERIOD: u64 = 251;

/// The most bytes of one write.
const SLICE: usize = 64 << 10;

/// The table. (A constant would take as much in the image as in memory.)
pub struct Pattern(Box<[u8]>);

impl Pattern {
    /// Computes the table.
    pub fn new() -> Pattern {
        Pattern((0..SLICE as u64 + PERIOD).map(|at| (at % PERIOD) as u8).collect())
    }

    /// The bytes for the next write, of those from `offset` up to `end`.
    pub fn slice(&self, offset: u64, end: u64) -> &[u8] {
        let start = (offset % PERIOD) as usize;
        let length = end.saturating_sub(offset).min(SLICE as u64) as usize;
        &self.0[start..start + length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_slices_form_the_pattern() {
        let pattern = Pattern::new();
        let end = 1_000_003;
        let mut offset = 0;
        while offset < end {
            let slice = pattern.slice(offset, end);
            assert!(!slice.is_empty());
            for (at, byte) in slice.iter().enumerate() {
                assert_eq!(u64::from(*byte), (offset + at as u64) % 251);
            }
            offset += slice.len() as u64;
        }
        assert_eq!(offset, end);
        assert!(pattern.slice(end, end).is_empty());
    }

    #[test]
    fn a_large_offset_works() {
        let pattern = Pattern::new();
        let far = pattern.slice(u64::MAX - 1, u64::MAX);
        assert_eq!(far, [((u64::MAX - 1) % 251) as u8]);
    }
}
