//! Socket addresses on the wire: a `sockaddr_in` or `sockaddr_in6` in a field of 28 bytes, zero-padded.

use super::slot::{bytes, put, u32_at};
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use xen::Errno;

/// The size of the field: `sizeof(struct sockaddr_in6)`.
pub(super) const FIELD: usize = 28;

/// Where a request of any dialect has its address, and how many of its bytes count (`u32`).
const ADDR: usize = 16;
const LEN: usize = ADDR + FIELD;

/// `sizeof(struct sockaddr_in)`.
const LEN_V4: u32 = 16;

/// `sizeof(struct sockaddr_in6)`.
const LEN_V6: u32 = 28;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// What kind of addresses a socket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`, 2.
    V4,
    /// `AF_INET6`, 10: only where both ends agreed on [`Extensions::IPV6`](super::Extensions::IPV6).
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(addr: SocketAddr) -> Family {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Its number, which is Linux's.
    pub fn number(self) -> u16 {
        match self {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        }
    }

    /// The family of a number. [`Errno::EAFNOSUPPORT`] if it is another.
    pub fn from_number(number: u32) -> Result<Family, Errno> {
        [Family::V4, Family::V6]
            .into_iter()
            .find(|family| u32::from(family.number()) == number)
            .ok_or(Errno::EAFNOSUPPORT)
    }
}

/// Puts an address into a request.
pub(super) fn put_addr(slot: &mut [u8], addr: SocketAddr) {
    let mut field = [0; FIELD];
    let len = encode(addr, &mut field);
    put(slot, ADDR, field);
    put(slot, LEN, len.to_le_bytes());
}

/// Reads the address of a request.
pub(super) fn addr_of(slot: &[u8]) -> Result<SocketAddr, Errno> {
    decode(&bytes(slot, ADDR), u32_at(slot, LEN))
}

/// Puts an address into a field, and returns how many of its bytes count.
pub(super) fn encode(addr: SocketAddr, field: &mut [u8; FIELD]) -> u32 {
    field.fill(0);
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
}

/// Reads an address of which `len` bytes count.
pub(super) fn decode(field: &[u8; FIELD], len: u32) -> Result<SocketAddr, Errno> {
    if !(LEN_V4..=FIELD as u32).contains(&len) {
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

    #[test]
    fn an_address_is_a_sockaddr_in_padded_with_zeros() {
        let addr: SocketAddr = "127.1.2.3:8080".parse().unwrap();
        let mut field = [0xff; FIELD];
        assert_eq!(encode(addr, &mut field), 16);
        assert_eq!(field[..8], [2, 0, 0x1f, 0x90, 127, 1, 2, 3]);
        assert_eq!(field[8..], [0; 20]);
        assert_eq!(decode(&field, 16), Ok(addr));
        assert_eq!(decode(&field, 28), Ok(addr));
    }

    #[test]
    fn an_address_of_six_is_a_sockaddr_in6() {
        let ip = "fe80::1".parse().unwrap();
        let addr = SocketAddr::from(SocketAddrV6::new(ip, 8080, 0x1020, 3));
        let mut field = [0xff; FIELD];
        assert_eq!(encode(addr, &mut field), 28);
        assert_eq!(field[..10], [10, 0, 0x1f, 0x90, 0, 0, 0x10, 0x20, 0xfe, 0x80]);
        assert_eq!(field[23..], [1, 3, 0, 0, 0]);
        assert_eq!(decode(&field, 28), Ok(addr));
        assert_eq!(decode(&field, 27), Err(Errno::EINVAL));
    }

    #[test]
    fn another_family_and_a_wrong_length_are_refused() {
        let mut field = [0; FIELD];
        field[0] = 1;
        assert_eq!(decode(&field, 28), Err(Errno::EAFNOSUPPORT));
        field[0] = 2;
        assert_eq!(decode(&field, 15), Err(Errno::EINVAL));
        assert_eq!(decode(&field, 29), Err(Errno::EINVAL));
    }
}
