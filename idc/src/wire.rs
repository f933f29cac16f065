//! What is on a link: frames of a header of 16 bytes and the bytes that it announces. All numbers
//! are little-endian.
//!
//! | kind | `slot` | after the header | `code` |
//! |---|---|---|---|
//! | 1 MESSAGE | a slot of the receiver's messages that is free | the body | 0 |
//! | 2 DONE | that slot, free again | – | 0 |
//! | 3 REQUEST | a slot of the receiver's transactions that is free | the parameters | 0 |
//! | 4 RESPONSE | that slot, free again | the status | the application's, or [`ABANDONED`] |
//! | 5 READ, 6 WRITE | a tag that the user chooses | a [`Transfer`] | 0 |
//! | 7 DATA | the transfer's tag | 1 to [`MAX_DATA`] bytes | 0 |
//! | 8 END | the transfer's tag, which ends | – | an [`End`] |
//! | 9 HELLO | 0 | a [`Hello`] | 0 |
//!
//! Kinds 1 to 4 are those of endpoints, 5 to 8 those of the service that moves the bytes of
//! registered buffers. A publication travels in a HELLO only where nothing else carries it: over
//! TCP.

use crate::address::{AddressError, Service};
use crate::buffer::Key;
use crate::life::Publication;
use crate::publication::{MAX_TEXT, PublicationError};
use core::fmt;
use thiserror::Error;
use xen::Errno;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

/// The bytes of a header.
pub const HEADER_LEN: usize = 16;

/// The most bytes of a DATA frame.
pub const MAX_DATA: u32 = 1 << 20;

/// The most bytes of a HELLO.
pub const MAX_HELLO: u32 = 64 + MAX_TEXT as u32;

/// The code of a RESPONSE to a transaction that was dropped without an answer.
pub const ABANDONED: u32 = u32::MAX;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message.
    Message = 1,
    /// The receiver is done with a message.
    Done = 2,
    /// A transaction.
    Request = 3,
    /// The answer to a transaction.
    Response = 4,
    /// A user wants bytes of a registered buffer.
    Read = 5,
    /// A user sends bytes of a registered buffer.
    Write = 6,
    /// Some of the bytes.
    Data = 7,
    /// The transfer is over.
    End = 8,
    /// The sender's service and publication.
    Hello = 9,
}

/// A frame's header, checked as far as it can be without knowing the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// The slot or tag.
    pub slot: u16,
    /// The bytes that follow.
    pub len: u32,
    /// The code.
    pub code: u32,
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawHeader {
    kind: u8,
    zero: u8,
    slot: U16,
    len: U32,
    code: U32,
    zeros: U32,
}

impl Header {
    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        transmute!(RawHeader {
            kind: self.kind as u8,
            zero: 0,
            slot: self.slot.into(),
            len: self.len.into(),
            code: self.code.into(),
            zeros: U32::ZERO,
        })
    }

    /// Reads a header. [`Errno::EPROTO`] if a peer that follows the protocol cannot have sent it.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<Self, Errno> {
        let raw: RawHeader = transmute!(*bytes);
        let (slot, len, code) = (raw.slot.get(), raw.len.get(), raw.code.get());
        let kind = Kind::from_number(raw.kind).ok_or(Errno::EPROTO)?;
        let valid = match kind {
            Kind::Message | Kind::Request => code == 0,
            Kind::Done => len == 0 && code == 0,
            Kind::Response => true,
            Kind::Read | Kind::Write => len == Transfer::LEN as u32 && code == 0,
            Kind::Data => (1..=MAX_DATA).contains(&len) && code == 0,
            Kind::End => len == 0 && End::from_code(code).is_some(),
            Kind::Hello => slot == 0 && len <= MAX_HELLO && code == 0,
        };
        if !valid || raw.zero != 0 || raw.zeros != U32::ZERO {
            return Err(Errno::EPROTO);
        }
        Ok(Header { kind, slot, len, code })
    }
}

impl Kind {
    /// The kind with this number.
    fn from_number(number: u8) -> Option<Self> {
        use Kind::*;
        let all = [Message, Done, Request, Response, Read, Write, Data, End, Hello];
        all.into_iter().find(|&kind| kind as u8 == number)
    }
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum End {
    /// All bytes were moved.
    Done = 0,
    /// The buffer is not registered any more, or never was with this key.
    Revoked = 1,
    /// The buffer is shorter.
    OutOfRange = 2,
    /// The reference does not give the right to do this.
    Forbidden = 3,
}

impl End {
    /// The end with this code.
    pub fn from_code(code: u32) -> Option<Self> {
        [End::Done, End::Revoked, End::OutOfRange, End::Forbidden]
            .into_iter()
            .find(|&end| end as u32 == code)
    }
}

/// Which bytes of which registered buffer are to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The entry in the owner's table.
    pub id: u32,
    /// The entry's key.
    pub key: Key,
    /// The first byte. Not checked.
    pub offset: u64,
    /// The number of bytes. Not checked.
    pub length: u64,
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawTransfer {
    id: U32,
    zero: U32,
    key: [u8; 16],
    offset: U64,
    length: U64,
}

impl Transfer {
    /// The bytes of a transfer.
    pub const LEN: usize = 40;

    /// The transfer's bytes.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        transmute!(RawTransfer {
            id: self.id.into(),
            zero: U32::ZERO,
            key: self.key.0,
            offset: self.offset.into(),
            length: self.length.into(),
        })
    }

    /// Reads a transfer. [`Errno::EPROTO`] if what must be zero is not.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, Errno> {
        let raw: RawTransfer = transmute!(*bytes);
        if raw.zero != U32::ZERO {
            return Err(Errno::EPROTO);
        }
        Ok(Transfer {
            id: raw.id.get(),
            key: Key(raw.key),
            offset: raw.offset.get(),
            length: raw.length.get(),
        })
    }
}

/// Which service an end is of, and its publication. As text: the service, a newline, the
/// publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The service.
    pub service: Service,
    /// The publication.
    pub publication: Publication,
}

/// Why bytes are not a HELLO's.
#[expect(missing_docs, reason = "each has its message")]
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HelloError {
    #[error("the hello is not text in two lines")]
    Lines,
    #[error("the hello's service: {0}")]
    Service(#[from] AddressError),
    #[error("the hello's publication: {0}")]
    Publication(#[from] PublicationError),
}

impl fmt::Display for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.service, self.publication)
    }
}

impl Hello {
    /// Reads a HELLO's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HelloError> {
        let text = core::str::from_utf8(bytes).map_err(|_| HelloError::Lines)?;
        let (service, publication) = text.split_once('\n').ok_or(HelloError::Lines)?;
        let service = Service::from_peer(service)?;
        Ok(Hello { service, publication: publication.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quota;
    use crate::life::{Epoch, NodeId, Phase};
    use alloc::format;
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// Bytes as hexadecimal digits, in groups of four bytes.
    fn hex(bytes: &[u8]) -> String {
        let groups = bytes
            .chunks(4)
            .map(|group| group.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        groups.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn frames_have_the_bytes_that_are_documented() {
        let header = |kind, slot, len, code| Header { kind, slot, len, code };
        for (header, bytes) in [
            (header(Kind::Message, 3, 256, 0), "01000300 00010000 00000000 00000000"),
            (header(Kind::Done, 3, 0, 0), "02000300 00000000 00000000 00000000"),
            (header(Kind::Request, 0x1234, 64, 0), "03003412 40000000 00000000 00000000"),
            (header(Kind::Response, 0x1234, 2, 5), "04003412 02000000 05000000 00000000"),
            (header(Kind::Response, 1, 0, ABANDONED), "04000100 00000000 ffffffff 00000000"),
            (header(Kind::Read, 1, 40, 0), "05000100 28000000 00000000 00000000"),
            (header(Kind::Write, 1, 40, 0), "06000100 28000000 00000000 00000000"),
            (header(Kind::Data, 1, 16384, 0), "07000100 00400000 00000000 00000000"),
            (header(Kind::End, 1, 0, End::Forbidden as u32), "08000100 00000000 03000000 00000000"),
            (header(Kind::Hello, 0, 64, 0), "09000000 40000000 00000000 00000000"),
        ] {
            assert_eq!(hex(&header.to_bytes()), bytes);
            assert_eq!(Header::from_bytes(&header.to_bytes()), Ok(header));
        }
    }

    #[test]
    fn a_transfer_has_the_bytes_that_are_documented() {
        let transfer = Transfer {
            id: 7,
            key: Key(core::array::from_fn(|at| at as u8)),
            offset: 0x1000,
            length: 1 << 32,
        };
        assert_eq!(
            hex(&transfer.to_bytes()),
            "07000000 00000000 00010203 04050607 08090a0b 0c0d0e0f \
             00100000 00000000 00000000 01000000"
        );
    }

    #[test]
    fn a_hello_is_two_lines() {
        let text = "disk@2\n1 000102030405060708090a0b0c0d0e0f 9 idle 0 0 4 256 8 64 32";
        let hello = Hello::from_bytes(text.as_bytes()).unwrap();
        assert_eq!(hello.to_string(), text);
        assert_eq!(hello.service, Service::new("disk", 2).unwrap());
        let buffers = Hello { service: Service::buffers(3), ..hello };
        assert_eq!(Hello::from_bytes(buffers.to_string().as_bytes()), Ok(buffers));

        let error = |text: &[u8]| Hello::from_bytes(text).unwrap_err().to_string();
        assert_eq!(error(b""), "the hello is not text in two lines");
        assert_eq!(error(b"disk\xff\n"), "the hello is not text in two lines");
        assert_eq!(
            error(b"disk\n2"),
            "the hello's publication: it does not begin with 1, the only version that this end \
             knows"
        );
        assert!(error(b"-disk\n1").starts_with("the hello's service: \"-disk\" is not a service"));
    }

    #[test]
    fn the_longest_hello_fits() {
        let publication = Publication {
            node: NodeId([0; 16]),
            epoch: Epoch(u64::MAX),
            phase: Phase::Offered(Epoch(u64::MAX)),
            met: Epoch(u64::MAX),
            quota: Quota {
                messages: u16::MAX,
                message: u32::MAX,
                transactions: u16::MAX,
                parameters: u32::MAX,
                status: u32::MAX,
            },
        };
        let service = Service::new(&"x".repeat(32), u32::MAX).unwrap();
        assert!(Hello { service, publication }.to_string().len() <= MAX_HELLO as usize);
    }

    #[test]
    fn headers_that_no_peer_may_send_are_errors() {
        let message = Header { kind: Kind::Message, slot: 1, len: 2, code: 0 }.to_bytes();
        let with = |at: usize, byte: u8| {
            let mut bytes = message;
            bytes[at] = byte;
            Header::from_bytes(&bytes)
        };
        assert!(with(0, 1).is_ok());
        for (at, byte) in [(0, 0), (0, 10), (0, 255), (1, 1), (8, 1), (12, 1), (15, 128)] {
            assert_eq!(with(at, byte), Err(Errno::EPROTO), "{at} {byte}");
        }
        let check = |kind, slot, len, code| {
            Header::from_bytes(&Header { kind, slot, len, code }.to_bytes()).is_ok()
        };
        for (kind, len) in [
            (Kind::Done, 1),
            (Kind::Read, 39),
            (Kind::Write, 41),
            (Kind::Data, 0),
            (Kind::Data, MAX_DATA + 1),
            (Kind::End, 1),
            (Kind::Hello, MAX_HELLO + 1),
        ] {
            assert!(!check(kind, 0, len, 0), "{kind:?} {len}");
        }
        assert!(!check(Kind::End, 0, 0, 4));
        assert!(!check(Kind::Hello, 1, 0, 0));
        for (kind, len) in [
            (Kind::Message, 0),
            (Kind::Done, 0),
            (Kind::Request, 0),
            (Kind::Read, 40),
            (Kind::Write, 40),
            (Kind::Data, 1),
            (Kind::Hello, 0),
        ] {
            assert!(check(kind, 0, len, 0) && !check(kind, 0, len, 1), "{kind:?}");
        }
    }

    #[test]
    fn a_transfer_with_a_reserved_bit_is_an_error() {
        let mut bytes = [0; Transfer::LEN];
        assert!(Transfer::from_bytes(&bytes).is_ok());
        bytes[7] = 1;
        assert_eq!(Transfer::from_bytes(&bytes), Err(Errno::EPROTO));
    }

    proptest! {
        #[test]
        fn a_header_is_what_its_bytes_say_or_an_error(
            kind in 0..=10u8, zero in 0..2u8, slot: u16, len in 0..50u32, code in 0..5u32,
        ) {
            let mut bytes = [0; HEADER_LEN];
            bytes[0] = kind;
            bytes[1] = zero;
            bytes[2..4].copy_from_slice(&slot.to_le_bytes());
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            bytes[8..12].copy_from_slice(&code.to_le_bytes());
            if let Ok(header) = Header::from_bytes(&bytes) {
                prop_assert_eq!(header.to_bytes(), bytes);
            }
        }

        #[test]
        fn every_transfer_is_read_as_it_was_written(
            id: u32, key: [u8; 16], offset: u64, length: u64,
        ) {
            let transfer = Transfer { id, key: Key(key), offset, length };
            prop_assert_eq!(Transfer::from_bytes(&transfer.to_bytes()), Ok(transfer));
        }

        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Hello::from_bytes(&bytes);
        }
    }
}
