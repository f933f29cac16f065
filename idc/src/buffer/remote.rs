//! References to registered buffers of other nodes, or of this one.

use crate::address::MAX_DOMAIN;
use crate::life::NodeId;
use core::fmt;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use xen::{DomId, Errno};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

bitflags::bitflags! {
    /// What a reference allows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Rights: u8 {
        /// To receive from the buffer.
        const READ = 1;
        /// To send to the buffer.
        const WRITE = 2;
    }
}

/// What proves that a user was given a reference.
#[derive(Clone, Copy)]
pub struct Key(pub [u8; 16]);

impl PartialEq for Key {
    /// Takes as long wherever the keys differ.
    fn eq(&self, other: &Self) -> bool {
        u128::from_ne_bytes(self.0) ^ u128::from_ne_bytes(other.0) == 0
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It is a secret.
        f.write_str("Key")
    }
}

/// A reference to a registered buffer. It is plain data that can be sent to anybody, who may then
/// use the buffer as its rights allow, until the owner unregisters the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteBuffer {
    /// What it allows. Not empty.
    pub(crate) rights: Rights,
    /// The number of bytes.
    pub(crate) len: u64,
    /// The entry in the owner's table.
    pub(crate) id: u32,
    /// The entry's key.
    pub(crate) key: Key,
    /// The owner.
    pub(crate) node: NodeId,
    /// The owner's domain, for users on the same host: those that find `node` there.
    pub(crate) domain: Option<DomId>,
    /// Where the owner is for all others.
    pub(crate) host: Option<SocketAddr>,
}

/// The domain of a reference without one.
const NO_DOMAIN: u16 = u16::MAX;

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Raw {
    version: u8,
    rights: u8,
    domain: U16,
    id: U32,
    len: U64,
    node: [u8; 16],
    key: [u8; 16],
    ip: [u8; 16],
    port: U16,
    zeros: [u8; 6],
}

impl RemoteBuffer {
    /// The bytes of a reference.
    pub const LEN: usize = 72;

    /// The reference's bytes, little-endian:
    ///
    /// | bytes | content |
    /// |---|---|
    /// | 0 | 1, the version |
    /// | 1 | the rights |
    /// | 2..4 | the owner's domain, or 65535 |
    /// | 4..8 | the entry in the owner's table |
    /// | 8..16 | the buffer's length |
    /// | 16..32 | the owner's node |
    /// | 32..48 | the key |
    /// | 48..64 | the owner's IPv6 address, or IPv4 address as an IPv4-mapped one, or 0 |
    /// | 64..66 | its port, or 0 |
    /// | 66..72 | 0 |
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let ip = self.host.map_or(Ipv6Addr::UNSPECIFIED, |host| match host.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        });
        transmute!(Raw {
            version: 1,
            rights: self.rights.bits(),
            domain: self.domain.map_or(NO_DOMAIN, |domain| domain.0).into(),
            id: self.id.into(),
            len: self.len.into(),
            node: self.node.0,
            key: self.key.0,
            ip: ip.octets(),
            port: self.host.map_or(0, |host| host.port()).into(),
            zeros: [0; 6],
        })
    }

    /// Reads a reference, which may come from anybody. [`Errno::EINVAL`] if it is not one.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, Errno> {
        let raw: Raw = transmute!(*bytes);
        let rights = Rights::from_bits(raw.rights).filter(|rights| !rights.is_empty());
        let ip = Ipv6Addr::from(raw.ip);
        let host = match raw.port.get() {
            0 if ip.is_unspecified() => Some(None),
            0 => None,
            port => Some(Some(SocketAddr::new(ip.to_canonical(), port))),
        };
        let domain = match raw.domain.get() {
            NO_DOMAIN => Some(None),
            domain @ 0..=MAX_DOMAIN => Some(Some(DomId(domain))),
            _ => None,
        };
        match (raw.version, rights, domain, host, raw.zeros) {
            (1, Some(rights), Some(domain), Some(host), [0, 0, 0, 0, 0, 0]) => Ok(RemoteBuffer {
                rights,
                len: raw.len.get(),
                id: raw.id.get(),
                key: Key(raw.key),
                node: NodeId(raw.node),
                domain,
                host,
            }),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The buffer's length, in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it allows.
    pub fn rights(&self) -> Rights {
        self.rights
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buffer() -> RemoteBuffer {
        RemoteBuffer {
            rights: Rights::READ,
            len: 0x1_0000_0000,
            id: 7,
            key: Key(core::array::from_fn(|at| 0x10 + at as u8)),
            node: NodeId(core::array::from_fn(|at| at as u8)),
            domain: Some(DomId(5)),
            host: Some(SocketAddr::from(([10, 0, 0, 2], 900))),
        }
    }

    /// The bytes that are documented.
    const BYTES: [u8; RemoteBuffer::LEN] = [
        1, 1, 5, 0, 7, 0, 0, 0, // version, rights, domain, id
        0, 0, 0, 0, 1, 0, 0, 0, // length
        0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, // node
        0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, //
        0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, // key
        0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, //
        0, 0, 0, 0, 0, 0, 0, 0, // address
        0, 0, 0xff, 0xff, 10, 0, 0, 2, //
        0x84, 0x03, 0, 0, 0, 0, 0, 0, // port
    ];

    #[test]
    fn a_reference_has_the_bytes_that_are_documented() {
        assert_eq!(buffer().to_bytes(), BYTES);
        assert_eq!(RemoteBuffer::from_bytes(&BYTES), Ok(buffer()));
        assert_eq!((buffer().len(), buffer().rights()), (1 << 32, Rights::READ));
        let nowhere = RemoteBuffer { domain: None, host: None, ..buffer() }.to_bytes();
        assert_eq!(nowhere[2..4], [255; 2]);
        assert_eq!(nowhere[48..], [0; 24]);
    }

    #[test]
    fn what_is_not_a_reference_is_an_error() {
        for (at, byte) in [
            (0, 0),    // version
            (0, 2),    //
            (1, 0),    // rights
            (1, 4),    //
            (3, 0x80), // a domain that is none
            (66, 1),   // reserved
            (71, 1),   //
        ] {
            let mut bytes = BYTES;
            bytes[at] = byte;
            assert_eq!(RemoteBuffer::from_bytes(&bytes), Err(Errno::EINVAL), "{at} {byte}");
        }
        // An address without a port.
        let mut bytes = BYTES;
        bytes[64..66].fill(0);
        assert_eq!(RemoteBuffer::from_bytes(&bytes), Err(Errno::EINVAL));
    }

    #[test]
    fn a_key_is_not_printed() {
        assert!(!alloc::format!("{:?}", buffer()).contains("16, 17"));
        assert_eq!(buffer().key, buffer().key);
        for at in 0..16 {
            let mut key = buffer().key;
            key.0[at] ^= 0x80;
            assert_ne!(key, buffer().key);
        }
    }

    proptest! {
        #[test]
        fn every_reference_is_read_as_it_was_written(
            rights in 1..4u8, len: u64, id: u32, key: [u8; 16], node: [u8; 16],
            domain in proptest::option::of(0..=MAX_DOMAIN),
            host in proptest::option::of((any::<IpAddr>(), 1..=u16::MAX)),
        ) {
            let host = host.map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port));
            let (key, node, domain) = (Key(key), NodeId(node), domain.map(DomId));
            let rights = Rights::from_bits(rights).unwrap();
            let buffer = RemoteBuffer { rights, len, id, key, node, domain, host };
            prop_assert_eq!(RemoteBuffer::from_bytes(&buffer.to_bytes()), Ok(buffer));
        }

        #[test]
        fn no_other_bytes_are_a_reference(at in 0..72usize, byte: u8) {
            let mut bytes = BYTES;
            bytes[at] = byte;
            if let Ok(buffer) = RemoteBuffer::from_bytes(&bytes) {
                prop_assert_eq!(buffer.to_bytes(), bytes);
            }
        }
    }
}
