//! Checksums of TCP and UDP, which either end may leave to the other.

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
    UdpPacket,
};

/// The packet of a transport protocol in a frame.
struct Transport<'a> {
    source: IpAddress,
    destination: IpAddress,
    is_v6: bool,
    protocol: IpProtocol,
    packet: &'a mut [u8],
}

/// Finds the packet in a frame. `None` if the frame has none, or only a part of one.
fn transport(frame: &mut [u8]) -> Option<Transport<'_>> {
    let is_v6 = match EthernetFrame::new_checked(&*frame).ok()?.ethertype() {
        EthernetProtocol::Ipv4 => false,
        EthernetProtocol::Ipv6 => true,
        _ => return None,
    };
    let frame = frame.get_mut(EthernetFrame::<&[u8]>::header_len()..)?;
    // The lengths are checked first: a truncated packet has no checksum at its usual place.
    let (source, destination, protocol, range): (IpAddress, IpAddress, _, _) = if is_v6 {
        let packet = Ipv6Packet::new_checked(&*frame).ok()?;
        let range = packet.header_len()..packet.total_len();
        (packet.src_addr().into(), packet.dst_addr().into(), packet.next_header(), range)
    } else {
        let packet = Ipv4Packet::new_checked(&*frame).ok()?;
        if packet.more_frags() || packet.frag_offset() != 0 {
            return None;
        }
        let range = usize::from(packet.header_len())..usize::from(packet.total_len());
        (packet.src_addr().into(), packet.dst_addr().into(), packet.next_header(), range)
    };
    let packet = frame.get_mut(range)?;
    Some(Transport { source, destination, is_v6, protocol, packet })
}

/// What a sender states about the checksum of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// The checksum is complete, or there is none.
    Whole,
    /// The checksum field has the sum of the pseudo header; the other end completes it.
    Blank,
}

/// Fills in the checksum that the stack has left out: all of it, or the part that offloading
/// expects if the backend completes checksums for this version of IP.
pub(super) fn fill(frame: &mut [u8], leave_v4: bool, leave_v6: bool) -> Filled {
    let Some(transport) = transport(frame) else { return Filled::Whole };
    let Transport { source, destination, is_v6, protocol, packet } = transport;
    let leave = if is_v6 { leave_v6 } else { leave_v4 };
    let sum = pseudo_header(&source, &destination, protocol, packet.len());
    match protocol {
        IpProtocol::Tcp => {
            let Ok(mut packet) = TcpPacket::new_checked(packet) else { return Filled::Whole };
            if leave {
                packet.set_checksum(sum);
            } else {
                packet.fill_checksum(&source, &destination);
            }
        }
        IpProtocol::Udp => {
            let Ok(mut packet) = UdpPacket::new_checked(packet) else { return Filled::Whole };
            if leave {
                packet.set_checksum(sum);
            } else {
                packet.fill_checksum(&source, &destination);
            }
        }
        _ => return Filled::Whole,
    }
    if leave { Filled::Blank } else { Filled::Whole }
}

/// Whether the checksum of a frame is correct.
pub(super) fn is_right(frame: &mut [u8]) -> bool {
    let Some(Transport { source, destination, protocol, packet, .. }) = transport(frame) else {
        // The stack checks everything else.
        return true;
    };
    match protocol {
        IpProtocol::Tcp => TcpPacket::new_checked(&*packet)
            .is_ok_and(|packet| packet.verify_checksum(&source, &destination)),
        IpProtocol::Udp => UdpPacket::new_checked(&*packet)
            .is_ok_and(|packet| packet.verify_checksum(&source, &destination)),
        _ => true,
    }
}

/// The sum of the pseudo header, which the checksum covers (RFC 9293, section 3.1).
fn pseudo_header(from: &IpAddress, to: &IpAddress, protocol: IpProtocol, len: usize) -> u16 {
    let mut sum = u64::from(u8::from(protocol)) + len as u64;
    let mut add = |octets: &[u8]| {
        for pair in octets.chunks_exact(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
    };
    for address in [from, to] {
        match address {
            IpAddress::Ipv4(address) => add(&address.octets()),
            IpAddress::Ipv6(address) => add(&address.octets()),
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// A frame over IPv4 from 10.0.0.1 to 10.0.0.2, with UDP in it.
    fn datagram() -> [u8; 14 + 20 + 8 + 5] {
        let mut frame = [0; 47];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14..34]
            .copy_from_slice(&[0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame[34..42].copy_from_slice(&[0, 53, 0, 99, 0, 13, 0, 0]);
        frame[42..].copy_from_slice(b"hello");
        frame
    }

    #[test]
    fn a_complete_checksum_is_filled_in_and_a_wrong_one_is_detected() {
        let mut frame = datagram();
        assert_eq!(fill(&mut frame, false, true), Filled::Whole);
        assert_ne!(frame[40..42], [0, 0]);
        assert!(is_right(&mut frame));
        frame[46] ^= 1;
        assert!(!is_right(&mut frame));
    }

    #[test]
    fn a_checksum_left_to_the_backend_is_the_sum_of_the_pseudo_header() {
        let mut frame = datagram();
        assert_eq!(fill(&mut frame, true, false), Filled::Blank);
        // 10.0.0.1, 10.0.0.2, protocol 17, 13 bytes.
        assert_eq!(frame[40..42], (0x0a00u16 + 1 + 0x0a00 + 2 + 17 + 13).to_be_bytes());
    }

    #[test]
    fn frames_without_our_checksum_are_unchanged() {
        let mut arp = [0; 42];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        let mut cut = datagram();
        cut[17] = 200;
        let mut fragment = datagram();
        fragment[20] = 0x20;
        for mut frame in [arp.to_vec(), cut.to_vec(), fragment.to_vec(), vec![0; 3], vec![]] {
            let before = frame.clone();
            assert_eq!(fill(&mut frame, true, true), Filled::Whole);
            assert_eq!(frame, before);
            assert!(is_right(&mut frame));
        }
    }
}
