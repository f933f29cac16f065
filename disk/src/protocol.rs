//! What clients ask, as the parameters of transactions. All numbers are little-endian.
//!
//! | bytes | content |
//! |---|---|
//! | 0 | 1 SIZE, 2 READ, 3 WRITE, 4 FLUSH |
//! | 1..4 | 0 |
//! | 4..8 | the number of blocks, from 1 to [`MAX_BLOCKS`]; 0 for SIZE and FLUSH |
//! | 8..16 | the first block; 0 for SIZE and FLUSH |
//! | 16..88 | only for READ and WRITE: a reference to a buffer of the client's |
//!
//! READ is complete when the bytes are in the buffer, which must allow this. WRITE is complete when
//! the bytes were written as far as the server's domain can lose them; after a FLUSH it cannot. The
//! status of SIZE is the number of blocks, in 8 bytes; the others have none. The error code of each
//! is a [`Failure`] or 0.

use idc::{Quota, RemoteBuffer, Rights};
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

/// The bytes of a block.
pub const BLOCK: usize = 4096;

/// The most blocks of one transaction.
pub const MAX_BLOCKS: u32 = 64;

/// The bytes of a request without a reference, and the most bytes of a request.
const SHORT: usize = 16;
const LONG: usize = SHORT + RemoteBuffer::LEN;

/// The bytes of SIZE's status.
pub(crate) const SIZE: usize = 8;

/// What a server receives: this many transactions at a time.
pub fn server_quota(transactions: u16) -> Quota {
    Quota { transactions, parameters: LONG as u32, ..Quota::default() }
}

/// What a client receives.
pub fn client_quota(transactions: u16) -> Quota {
    Quota { transactions, status: SIZE as u32, ..Quota::default() }
}

/// Blocks that follow each other: at least one, at most [`MAX_BLOCKS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first block.
    pub first: u64,
    /// The number of blocks.
    pub count: u32,
}

impl Span {
    /// The bytes of the blocks.
    pub fn bytes(self) -> usize {
        self.count as usize * BLOCK
    }

    /// The block after the last one.
    pub fn end(self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// How many blocks the disk has.
    Size,
    /// Copy blocks into the buffer.
    Read(Span, RemoteBuffer),
    /// Replace blocks by the buffer's content.
    Write(Span, RemoteBuffer),
    /// Keep what was written, even if the server's domain ends.
    Flush,
}

/// Why the server has not done what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[repr(u32)]
pub enum Failure {
    /// The parameters are not a request, or the buffer is too short or allows too little.
    #[error("the server does not understand the request")]
    Malformed = 1,
    /// The disk has fewer blocks.
    #[error("the disk has fewer blocks")]
    OutOfRange = 2,
    /// The disk cannot be read or written there, or memory is short.
    #[error("the disk failed")]
    Failed = 3,
    /// The server does not reach the client's buffer.
    #[error("the server does not reach the client's buffer")]
    Unreachable = 4,
}

impl Failure {
    /// The failure with this code, or an unknown one.
    pub(crate) fn from_code(code: u32) -> Self {
        let all = [Failure::Malformed, Failure::OutOfRange, Failure::Unreachable];
        all.into_iter().find(|failure| *failure as u32 == code).unwrap_or(Failure::Failed)
    }
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Head {
    operation: u8,
    zeros: [u8; 3],
    count: U32,
    first: U64,
}

impl Request {
    /// The parameters of the transaction.
    pub fn to_bytes(&self) -> alloc::vec::Vec<u8> {
        let none = Span { first: 0, count: 0 };
        let (operation, span, buffer) = match self {
            Request::Size => (1, none, None),
            Request::Read(span, buffer) => (2, *span, Some(buffer)),
            Request::Write(span, buffer) => (3, *span, Some(buffer)),
            Request::Flush => (4, none, None),
        };
        let (count, first) = (span.count.into(), span.first.into());
        let head: [u8; SHORT] = transmute!(Head { operation, zeros: [0; 3], count, first });
        let mut bytes = head.to_vec();
        bytes.extend(buffer.iter().flat_map(|buffer| buffer.to_bytes()));
        bytes
    }

    /// Reads what anybody may have sent.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Failure> {
        let (head, rest) = bytes.split_first_chunk::<SHORT>().ok_or(Failure::Malformed)?;
        let head: Head = transmute!(*head);
        if head.zeros != [0; 3] {
            return Err(Failure::Malformed);
        }
        let span = Span { first: head.first.get(), count: head.count.get() };
        match (head.operation, span) {
            (1, Span { first: 0, count: 0 }) if rest.is_empty() => Ok(Request::Size),
            (2, span) => Ok(Request::Read(span, buffer(span, rest, Rights::WRITE)?)),
            (3, span) => Ok(Request::Write(span, buffer(span, rest, Rights::READ)?)),
            (4, Span { first: 0, count: 0 }) if rest.is_empty() => Ok(Request::Flush),
            _ => Err(Failure::Malformed),
        }
    }
}

/// The buffer for these blocks, which gives the server this right.
fn buffer(span: Span, bytes: &[u8], right: Rights) -> Result<RemoteBuffer, Failure> {
    let bytes = bytes.try_into().map_err(|_| Failure::Malformed)?;
    let buffer = RemoteBuffer::from_bytes(bytes).map_err(|_| Failure::Malformed)?;
    let counts = (1..=MAX_BLOCKS).contains(&span.count);
    if !counts || buffer.len() < span.bytes() as u64 || !buffer.rights().contains(right) {
        return Err(Failure::Malformed);
    }
    match span.first.checked_add(span.count.into()) {
        Some(_) => Ok(buffer),
        None => Err(Failure::OutOfRange),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// A reference to a buffer of this many blocks.
    fn reference(blocks: u32, rights: Rights) -> RemoteBuffer {
        let mut bytes = [0; RemoteBuffer::LEN];
        (bytes[0], bytes[1]) = (1, rights.bits());
        bytes[8..16].copy_from_slice(&(u64::from(blocks) * BLOCK as u64).to_le_bytes());
        RemoteBuffer::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn requests_have_the_bytes_that_are_documented() {
        let span = Span { first: 0x0102, count: 3 };
        let to = reference(3, Rights::WRITE);
        let mut expected = [0; LONG];
        (expected[0], expected[4]) = (2, 3);
        (expected[8], expected[9]) = (2, 1);
        expected[SHORT..].copy_from_slice(&to.to_bytes());
        assert_eq!(Request::Read(span, to).to_bytes(), expected);
        assert_eq!(Request::Size.to_bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Request::Flush.to_bytes()[0], 4);
        let from = reference(64, Rights::READ);
        for request in [
            Request::Size,
            Request::Read(span, to),
            Request::Write(Span { first: u64::MAX - 64, count: 64 }, from),
            Request::Flush,
        ] {
            assert_eq!(Request::from_bytes(&request.to_bytes()), Ok(request));
        }
    }

    #[test]
    fn a_buffer_that_is_too_short_or_allows_too_little_is_refused() {
        let span = Span { first: 0, count: 3 };
        for request in [
            Request::Read(span, reference(3, Rights::READ)),
            Request::Write(span, reference(3, Rights::WRITE)),
            Request::Read(span, reference(2, Rights::WRITE)),
            Request::Read(Span { first: 0, count: 0 }, reference(3, Rights::WRITE)),
            Request::Read(Span { first: 0, count: 65 }, reference(65, Rights::WRITE)),
            Request::Read(Span { first: 0, count: u32::MAX }, reference(65, Rights::WRITE)),
        ] {
            assert_eq!(Request::from_bytes(&request.to_bytes()), Err(Failure::Malformed));
        }
        let beyond = Span { first: u64::MAX, count: 1 };
        let request = Request::Write(beyond, reference(1, Rights::READ));
        assert_eq!(Request::from_bytes(&request.to_bytes()), Err(Failure::OutOfRange));
    }

    #[test]
    fn unknown_codes_are_failures() {
        assert_eq!(Failure::from_code(Failure::OutOfRange as u32), Failure::OutOfRange);
        assert_eq!(Failure::from_code(77), Failure::Failed);
    }

    proptest! {
        #[test]
        fn only_the_bytes_of_a_request_are_one(
            bytes: Vec<u8>, valid in prop_oneof![
                Just(Request::Size),
                Just(Request::Read(Span { first: 9, count: 1 }, reference(1, Rights::WRITE))),
            ], at in 0..LONG, byte: u8,
        ) {
            let mut changed = valid.to_bytes();
            if let Some(place) = changed.get_mut(at) {
                *place = byte;
            }
            for bytes in [bytes, changed] {
                if let Ok(request) = Request::from_bytes(&bytes) {
                    prop_assert_eq!(request.to_bytes(), bytes);
                }
            }
        }
    }
}
