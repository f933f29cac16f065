//! Fields of a slot, little-endian, at constant offsets within its size.

/// The `N` bytes at `at`.
pub(super) fn bytes<const N: usize>(slot: &[u8], at: usize) -> [u8; N] {
    slot[at..at + N].try_into().expect("a slice of N bytes")
}

pub(super) fn u32_at(slot: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(slot, at))
}

pub(super) fn u64_at(slot: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(slot, at))
}

pub(super) fn put<const N: usize>(slot: &mut [u8], at: usize, value: [u8; N]) {
    slot[at..at + N].copy_from_slice(&value);
}
