//! Requests for neighbours by ARP and NDP, beside those of smoltcp.
//!
//! smoltcp asks for one neighbour each second, and for the same one again while it does not answer.
//! Others that the guest has not met yet would never be found meanwhile. So while the stack waits
//! for several, each of them is asked here.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use embassy_time::{Duration, Instant};
use smoltcp::phy::{ChecksumCapabilities, TxToken};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscRepr,
};

/// How long smoltcp's own request may take. After it, an unmet neighbour is asked here.
const PATIENCE: Duration = Duration::from_millis(100);

/// The time between two requests to a neighbour (RFC 1122, section 2.3.2.1).
const INTERVAL: Duration = Duration::from_secs(1);

/// The bytes of the headers of Ethernet and IPv6.
const ETHERNET: usize = 14;
const IPV6: usize = 40;

/// The neighbours that the stack waits for, and when to ask each.
#[derive(Default)]
pub(super) struct Neighbours(Vec<(IpAddr, Instant)>);

impl Neighbours {
    /// Sets the neighbours that the stack waits for.
    pub(super) fn update(&mut self, waiting: &[IpAddr]) {
        self.0.retain(|(neighbour, _)| waiting.contains(neighbour));
        for &neighbour in waiting {
            if self.0.iter().all(|(known, _)| *known != neighbour) {
                self.0.push((neighbour, Instant::now() + PATIENCE));
            }
        }
    }

    /// The next neighbour to ask now, if there is one.
    pub(super) fn next(&mut self) -> Option<IpAddr> {
        let now = Instant::now();
        let several = self.0.len() > 1;
        let (neighbour, due) = self.0.iter_mut().find(|(_, due)| several && *due <= now)?;
        *due = now + INTERVAL;
        Some(*neighbour)
    }

    /// When to ask the next one.
    pub(super) fn due(&self) -> Option<Instant> {
        let several = self.0.len() > 1;
        self.0.iter().map(|(_, due)| *due).min().filter(|_| several)
    }
}

/// Sends a request for `neighbour`. Both addresses are of the same family.
pub(super) fn ask(token: impl TxToken, mac: EthernetAddress, source: IpAddr, neighbour: IpAddr) {
    match (source, neighbour) {
        (IpAddr::V4(source), IpAddr::V4(neighbour)) => ask_v4(token, mac, source, neighbour),
        (IpAddr::V6(source), IpAddr::V6(neighbour)) => ask_v6(token, mac, source, neighbour),
        _ => {}
    }
}

fn ask_v4(token: impl TxToken, mac: EthernetAddress, source: Ipv4Addr, neighbour: Ipv4Addr) {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: mac,
        source_protocol_addr: source,
        target_hardware_addr: EthernetAddress::BROADCAST,
        target_protocol_addr: neighbour,
    };
    token.consume(ETHERNET + request.buffer_len(), |bytes| {
        let to = EthernetAddress::BROADCAST;
        let payload = ethernet(bytes, mac, to, EthernetProtocol::Arp);
        request.emit(&mut ArpPacket::new_unchecked(payload));
    });
}

fn ask_v6(token: impl TxToken, mac: EthernetAddress, source: Ipv6Addr, neighbour: Ipv6Addr) {
    let [.., a, b, c] = neighbour.octets();
    // The group of the neighbour (RFC 4291, section 2.7.1) and its address of Ethernet (RFC 2464).
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let to = EthernetAddress([0x33, 0x33, 0xff, a, b, c]);
    let request = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
        target_addr: neighbour,
        lladdr: Some(mac.into()),
    });
    let header = Ipv6Repr {
        src_addr: source,
        dst_addr: group,
        next_header: IpProtocol::Icmpv6,
        payload_len: request.buffer_len(),
        hop_limit: 255,
    };
    token.consume(ETHERNET + IPV6 + request.buffer_len(), |bytes| {
        let payload = ethernet(bytes, mac, to, EthernetProtocol::Ipv6);
        let (ip, message) = payload.split_at_mut(IPV6);
        header.emit(&mut Ipv6Packet::new_unchecked(ip));
        let mut message = Icmpv6Packet::new_unchecked(message);
        request.emit(&source, &group, &mut message, &ChecksumCapabilities::default());
    });
}

/// Writes the header of a frame. Returns its payload.
fn ethernet(
    bytes: &mut [u8],
    src_addr: EthernetAddress,
    dst_addr: EthernetAddress,
    ethertype: EthernetProtocol,
) -> &mut [u8] {
    let header = EthernetRepr { src_addr, dst_addr, ethertype };
    header.emit(&mut EthernetFrame::new_unchecked(&mut *bytes));
    &mut bytes[ETHERNET..]
}
