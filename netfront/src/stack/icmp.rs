//! ICMP's errors for datagrams: the peer's host has no socket with the port.
//!
//! smoltcp's sockets of UDP do not see them, and its sockets of ICMP only those that quote the
//! whole datagram with a valid checksum. A raw socket sees all.

use alloc::vec;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::raw;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv6DstUnreachable, Icmpv6Message,
    Icmpv6Packet, IpAddress, IpEndpoint, IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet,
};

/// How many messages wait, and their bytes. More than that are lost.
const MESSAGES: usize = 16;
const BYTES: usize = 4096;

/// The sockets for ICMP and ICMPv6.
pub(super) struct Icmp([SocketHandle; 2]);

/// A datagram that was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) from: IpEndpoint,
    pub(super) to: IpEndpoint,
}

impl Icmp {
    pub(super) fn new(sockets: &mut SocketSet<'static>) -> Icmp {
        let versions = [(IpVersion::Ipv4, IpProtocol::Icmp), (IpVersion::Ipv6, IpProtocol::Icmpv6)];
        Icmp(versions.map(|(version, protocol)| {
            let slots = vec![raw::PacketMetadata::EMPTY; MESSAGES];
            let received = raw::PacketBuffer::new(slots, vec![0; BYTES]);
            let none = raw::PacketBuffer::new(vec![], vec![]);
            sockets.add(raw::Socket::new(Some(version), Some(protocol), received, none))
        }))
    }

    /// The refused datagrams since the last call.
    pub(super) fn next(&self, sockets: &mut SocketSet<'static>) -> Option<Refused> {
        for handle in self.0 {
            let socket: &mut raw::Socket<'_> = sockets.get_mut(handle);
            while let Ok(packet) = socket.recv() {
                let refused =
                    if packet[0] >> 4 == 4 { refused_v4(packet) } else { refused_v6(packet) };
                if refused.is_some() {
                    return refused;
                }
            }
        }
        None
    }
}

/// The ports of a UDP header, which may be cut after them.
fn ports(udp: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d, ..] = udp else { return None };
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn refused(from: impl Into<IpAddress>, to: impl Into<IpAddress>, udp: &[u8]) -> Option<Refused> {
    let (source, destination) = ports(udp)?;
    let from = IpEndpoint { addr: from.into(), port: source };
    Some(Refused { from, to: IpEndpoint { addr: to.into(), port: destination } })
}

fn refused_v4(packet: &[u8]) -> Option<Refused> {
    let outer = Ipv4Packet::new_checked(packet).ok()?;
    let icmp = Icmpv4Packet::new_checked(outer.payload()).ok()?;
    let port: u8 = Icmpv4DstUnreachable::PortUnreachable.into();
    if icmp.msg_type() != Icmpv4Message::DstUnreachable
        || icmp.msg_code() != port
        || !icmp.verify_checksum()
    {
        return None;
    }
    // The quoted packet may be cut, so it is not checked as a whole.
    let (header, _) = icmp.data().split_at_checked(20)?;
    let quoted = Ipv4Packet::new_unchecked(header);
    let udp = icmp.data().get(usize::from(quoted.header_len())..)?;
    if quoted.version() != 4 || quoted.next_header() != IpProtocol::Udp {
        return None;
    }
    refused(quoted.src_addr(), quoted.dst_addr(), udp)
}

fn refused_v6(packet: &[u8]) -> Option<Refused> {
    let outer = Ipv6Packet::new_checked(packet).ok()?;
    let icmp = Icmpv6Packet::new_checked(outer.payload()).ok()?;
    let port: u8 = Icmpv6DstUnreachable::PortUnreachable.into();
    if icmp.msg_type() != Icmpv6Message::DstUnreachable
        || icmp.msg_code() != port
        || !icmp.verify_checksum(&outer.src_addr(), &outer.dst_addr())
    {
        return None;
    }
    let (header, udp) = icmp.payload().split_at_checked(40)?;
    let quoted = Ipv6Packet::new_unchecked(header);
    if quoted.version() != 6 || quoted.next_header() != IpProtocol::Udp {
        return None;
    }
    refused(quoted.src_addr(), quoted.dst_addr(), udp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{Icmpv4Repr, Icmpv6Repr, Ipv4Repr, Ipv6Repr};

    /// The start of a datagram from port 1000 to port 7.
    const UDP: [u8; 8] = [3, 232, 0, 7, 5, 0, 0, 0];

    fn whole_v4() -> Vec<u8> {
        let [guest, peer] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(Ipv4Addr::from);
        let (next_header, hop_limit) = (IpProtocol::Udp, 64);
        let header =
            Ipv4Repr { src_addr: guest, dst_addr: peer, next_header, payload_len: 8, hop_limit };
        let reason = Icmpv4DstUnreachable::PortUnreachable;
        let icmp = Icmpv4Repr::DstUnreachable { reason, header, data: &UDP };
        let (next_header, payload_len) = (IpProtocol::Icmp, icmp.buffer_len());
        let outer =
            Ipv4Repr { src_addr: peer, dst_addr: guest, next_header, payload_len, hop_limit };
        let mut bytes = vec![0; outer.buffer_len() + payload_len];
        let checksums = ChecksumCapabilities::default();
        outer.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &checksums);
        icmp.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[20..]), &checksums);
        bytes
    }

    fn whole_v6() -> Vec<u8> {
        let [guest, peer] = ["fd00::1", "fd00::2"].map(|text| text.parse::<Ipv6Addr>().unwrap());
        let (next_header, hop_limit) = (IpProtocol::Udp, 64);
        let header =
            Ipv6Repr { src_addr: guest, dst_addr: peer, next_header, payload_len: 8, hop_limit };
        let reason = Icmpv6DstUnreachable::PortUnreachable;
        let icmp = Icmpv6Repr::DstUnreachable { reason, header, data: &UDP };
        let (next_header, payload_len) = (IpProtocol::Icmpv6, icmp.buffer_len());
        let outer =
            Ipv6Repr { src_addr: peer, dst_addr: guest, next_header, payload_len, hop_limit };
        let mut bytes = vec![0; outer.buffer_len() + payload_len];
        outer.emit(&mut Ipv6Packet::new_unchecked(&mut bytes));
        let (checksums, to) = (ChecksumCapabilities::default(), &mut bytes[40..]);
        icmp.emit(&peer, &guest, &mut Icmpv6Packet::new_unchecked(to), &checksums);
        bytes
    }

    #[test]
    fn a_refused_datagram_is_found_in_the_quotation() {
        let refused = |from: &str, to: &str| {
            let address = |text: &str| IpAddress::from(text.parse::<IpAddr>().unwrap());
            Some(Refused {
                from: IpEndpoint::new(address(from), 1000),
                to: IpEndpoint::new(address(to), 7),
            })
        };
        assert_eq!(refused_v4(&whole_v4()), refused("10.0.0.1", "10.0.0.2"));
        assert_eq!(refused_v6(&whole_v6()), refused("fd00::1", "fd00::2"));
    }

    #[test]
    fn truncated_and_malformed_messages_are_ignored() {
        let four: fn(&[u8]) -> Option<Refused> = refused_v4;
        for (read, whole) in [(four, whole_v4()), (refused_v6, whole_v6())] {
            for length in 0..whole.len() {
                assert_eq!(read(&whole[..length]), None, "{length}");
            }
            // The ICMP message begins at 20 or 40; its checksum covers all after that.
            for at in if whole[0] >> 4 == 4 { 20 } else { 40 }..whole.len() {
                let mut malformed = whole.clone();
                malformed[at] ^= 0x41;
                assert_eq!(read(&malformed), None, "{at}");
            }
        }
    }
}
