//! Socket addresses on the wire: a `sockaddr_in` in a field of 28 bytes, zero-padded.

use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use xen::Errno;

/// The size of the field, which would hold a `sockaddr_in6` too.
pub const FIELD: usize = 28;

/// `sizeof(struct sockaddr_in)`.
const LEN: u32 = 16;

/// The number of the address family `AF_INET`.
pub const AF_INET: u16 = 2;

/// Puts an address into a field, and returns how many of its bytes count.
pub fn encode(addr: SocketAddr, field: &mut [u8; FIELD]) -> Result<u32, Errno> {
    let SocketAddr::V4(addr) = addr else { return Err(Errno::EAFNOSUPPORT) };
    field.fill(0);
    field[0..2].copy_from_slice(&AF_INET.to_le_bytes());
    field[2..4].copy_from_slice(&addr.port().to_be_bytes());
    field[4..8].copy_from_slice(&addr.ip().octets());
    Ok(LEN)
}

/// Reads an address of which `len` bytes count.
pub fn decode(field: &[u8; FIELD], len: u32) -> Result<SocketAddr, Errno> {
    if len < LEN || len > FIELD as u32 {
        return Err(Errno::EINVAL);
    }
    if u16::from_le_bytes([field[0], field[1]]) != AF_INET {
        return Err(Errno::EAFNOSUPPORT);
    }
    let port = u16::from_be_bytes([field[2], field[3]]);
    let ip = Ipv4Addr::new(field[4], field[5], field[6], field[7]);
    Ok(SocketAddrV4::new(ip, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_sockaddr_in_padded_with_zeros() {
        let addr: SocketAddr = "127.1.2.3:8080".parse().unwrap();
        let mut field = [0xff; FIELD];
        assert_eq!(encode(addr, &mut field), Ok(16));
        assert_eq!(field[..8], [2, 0, 0x1f, 0x90, 127, 1, 2, 3]);
        assert_eq!(field[8..], [0; 20]);
        assert_eq!(decode(&field, 16), Ok(addr));
        assert_eq!(decode(&field, 28), Ok(addr));
    }

    #[test]
    fn another_family_and_a_wrong_length_are_refused() {
        let mut field = [0; FIELD];
        assert_eq!(encode("[::1]:1".parse().unwrap(), &mut field), Err(Errno::EAFNOSUPPORT));
        field[0] = 10;
        assert_eq!(decode(&field, 28), Err(Errno::EAFNOSUPPORT));
        field[0] = 2;
        assert_eq!(decode(&field, 15), Err(Errno::EINVAL));
        assert_eq!(decode(&field, 29), Err(Errno::EINVAL));
    }
}
