//! Fields of a slot: little-endian numbers, and socket addresses.
//!
//! An address is a `sockaddr_in` or `sockaddr_in6` in a field of 28 bytes, zero-padded. Offsets are
//! constants of the dialects and lie within a slot.

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use xen::Errno;

/// The size of an address field: `sizeof(struct sockaddr_in6)`.
pub(super) const ADDR_SIZE: usize = 28;

/// `sizeof(struct sockaddr_in)`.
const LEN_V4: u32 = 16;

/// `sizeof(struct sockaddr_in6)`.
const LEN_V6: u32 = 28;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

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

pub(super) fn put_u32(slot: &mut [u8], at: usize, value: u32) {
    put(slot, at, value.to_le_bytes());
}

pub(super) fn put_u64(slot: &mut [u8], at: usize, value: u64) {
    put(slot, at, value.to_le_bytes());
}

/// The family of a socket's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`, 2.
    V4,
    /// `AF_INET6`, 10: requires [`Extensions::IPV6`](super::Extensions::IPV6).
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(addr: SocketAddr) -> Family {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The number on the wire, which is Linux's.
    pub fn number(self) -> u16 {
        match self {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        }
    }

    /// Decodes the number on the wire. [`Errno::EAFNOSUPPORT`] if it is neither.
    pub fn from_number(number: u32) -> Result<Family, Errno> {
        [Family::V4, Family::V6]
            .into_iter()
            .find(|family| u32::from(family.number()) == number)
            .ok_or(Errno::EAFNOSUPPORT)
    }
}

/// Writes an address, or no address, into the field at `at`, and its length (`u32`) behind it.
pub(super) fn put_addr(slot: &mut [u8], at: usize, addr: Option<SocketAddr>) {
    let len = put_sockaddr(&mut slot[at..at + ADDR_SIZE], addr);
    put_u32(slot, at + ADDR_SIZE, len);
}

/// Writes an address, or no address, into a field. Returns its length.
pub(super) fn put_sockaddr(field: &mut [u8], addr: Option<SocketAddr>) -> u32 {
    field.fill(0);
    addr.map_or(0, |addr| {
        put(field, 0, Family::of(addr).number().to_le_bytes());
        put(field, 2, addr.port().to_be_bytes());
        match addr {
            SocketAddr::V4(addr) => {
                put(field, 4, addr.ip().octets());
                LEN_V4
            }
            SocketAddr::V6(addr) => {
                put(field, 4, addr.flowinfo().to_be_bytes());
                put(field, 8, addr.ip().octets());
                put(field, 24, addr.scope_id().to_le_bytes());
                LEN_V6
            }
        }
    })
}

/// Reads the address in the field at `at`, whose length (`u32`) is behind it.
///
/// [`Errno::EINVAL`] if the length is impossible, [`Errno::EAFNOSUPPORT`] for another family.
pub(super) fn addr_at(slot: &[u8], at: usize) -> Result<SocketAddr, Errno> {
    sockaddr(&slot[at..at + ADDR_SIZE], u32_at(slot, at + ADDR_SIZE))
}

/// Reads the address in a field of which `len` bytes are used. Errors are those of [`addr_at`].
pub(super) fn sockaddr(field: &[u8], len: u32) -> Result<SocketAddr, Errno> {
    if !(LEN_V4..=LEN_V6).contains(&len) {
        return Err(Errno::EINVAL);
    }
    let port = u16::from_be_bytes(bytes(field, 2));
    match Family::from_number(u16::from_le_bytes(bytes(field, 0)).into())? {
        Family::V4 => Ok(SocketAddrV4::new(Ipv4Addr::from(bytes(field, 4)), port).into()),
        Family::V6 if len < LEN_V6 => Err(Errno::EINVAL),
        Family::V6 => {
            let (ip, flow) = (Ipv6Addr::from(bytes(field, 8)), u32::from_be_bytes(bytes(field, 4)));
            Ok(SocketAddrV6::new(ip, port, flow, u32_at(field, 24)).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field and its length at offset 4 of a slot.
    const AT: usize = 4;

    fn encoded(addr: SocketAddr) -> [u8; 40] {
        let mut slot = [0xff; 40];
        put_addr(&mut slot, AT, Some(addr));
        assert_eq!([&slot[..4], &slot[36..]], [[0xff; 4]; 2], "only the field is written");
        slot
    }

    #[test]
    fn an_ipv4_address_is_a_sockaddr_in_padded_with_zeros() {
        let addr: SocketAddr = "127.1.2.3:8080".parse().unwrap();
        let mut slot = encoded(addr);
        assert_eq!(u32_at(&slot, AT + 28), 16);
        assert_eq!(slot[AT..AT + 8], [2, 0, 0x1f, 0x90, 127, 1, 2, 3]);
        assert_eq!(slot[AT + 8..AT + 28], [0; 20]);
        assert_eq!(addr_at(&slot, AT), Ok(addr));
        put_u32(&mut slot, AT + 28, 28);
        assert_eq!(addr_at(&slot, AT), Ok(addr));
    }

    #[test]
    fn an_ipv6_address_is_a_sockaddr_in6() {
        let ip = "fe80::1".parse().unwrap();
        let addr = SocketAddr::from(SocketAddrV6::new(ip, 8080, 0x1020, 3));
        let mut slot = encoded(addr);
        assert_eq!(u32_at(&slot, AT + 28), 28);
        assert_eq!(slot[AT..AT + 10], [10, 0, 0x1f, 0x90, 0, 0, 0x10, 0x20, 0xfe, 0x80]);
        assert_eq!(slot[AT + 23..AT + 28], [1, 3, 0, 0, 0]);
        assert_eq!(addr_at(&slot, AT), Ok(addr));
        put_u32(&mut slot, AT + 28, 27);
        assert_eq!(addr_at(&slot, AT), Err(Errno::EINVAL));
    }

    #[test]
    fn another_family_and_an_impossible_length_are_refused() {
        let mut slot = [0; 32];
        for (family, len, error) in
            [(1, 28, Errno::EAFNOSUPPORT), (2, 15, Errno::EINVAL), (2, 29, Errno::EINVAL)]
        {
            slot[0] = family;
            put_u32(&mut slot, 28, len);
            assert_eq!(addr_at(&slot, 0), Err(error));
        }
    }
}
