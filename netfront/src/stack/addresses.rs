//! The interface's addresses and DNS servers: from the configuration or a DHCP server.

use super::config::{Config, Ipv4};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use embassy_time::{Duration, Instant};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr, Ipv6Cidr};

/// How long an address stays in use after the link came up again without the DHCP server confirming
/// it.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);

/// The current addresses.
pub(super) struct Addresses {
    /// The address and the default gateway.
    ipv4: Option<(Ipv4Cidr, Option<Ipv4Addr>)>,
    ipv6: Option<(Ipv6Cidr, Option<Ipv6Addr>)>,
    dns_servers: Vec<IpAddr>,
    /// The DNS servers are the configuration's: a DHCP server's are not used.
    fixed_dns: bool,
    dhcp: Option<SocketHandle>,
    /// When the IPv4 address is given up unless the DHCP server confirms it.
    pub(super) unconfirmed: Option<Instant>,
}

impl Addresses {
    pub(super) fn new(config: &Config, sockets: &mut SocketSet<'static>) -> Self {
        let (ipv4, dhcp) = match config.ipv4 {
            Ipv4::Dhcp => (None, Some(sockets.add(dhcpv4::Socket::new()))),
            Ipv4::Static { address, gateway } => (Some((address, gateway)), None),
        };
        Addresses {
            ipv4,
            ipv6: config.ipv6,
            dns_servers: config.dns.clone(),
            fixed_dns: !config.dns.is_empty(),
            dhcp,
            unconfirmed: None,
        }
    }

    pub(super) fn ipv4(&self) -> Option<Ipv4Cidr> {
        self.ipv4.map(|(address, _)| address)
    }

    /// Whether a datagram can be sent to an address.
    pub(super) fn has_route(&self, to: IpAddr) -> bool {
        match to {
            IpAddr::V4(to) => self.ipv4.is_some_and(|(own, gateway)| {
                let nearby = own.contains_addr(&to) || to.is_multicast() || to.is_broadcast();
                nearby || gateway.is_some()
            }),
            IpAddr::V6(to) => {
                let global = self
                    .ipv6
                    .is_some_and(|(own, gateway)| own.contains_addr(&to) || gateway.is_some());
                global || to.is_multicast() || to.is_unicast_link_local()
            }
        }
    }

    /// The neighbour that gets what is sent to an address, unless that is a group or unknown.
    pub(super) fn neighbour(&self, to: IpAddr) -> Option<IpAddr> {
        match to {
            _ if to.is_multicast() || to.is_unspecified() => None,
            IpAddr::V4(ip) => match self.ipv4? {
                (own, _) if ip.is_broadcast() || own.broadcast() == Some(ip) => None,
                (own, _) if own.contains_addr(&ip) => Some(to),
                (_, gateway) => gateway.map(Into::into),
            },
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(to),
            IpAddr::V6(ip) => match self.ipv6? {
                (own, _) if own.contains_addr(&ip) => Some(to),
                (_, gateway) => gateway.map(Into::into),
            },
        }
    }

    pub(super) fn dns_servers(&self) -> &[IpAddr] {
        &self.dns_servers
    }

    /// Gives the interface its addresses and routes.
    pub(super) fn apply(&self, interface: &mut Interface, mac: EthernetAddress) {
        interface.update_ip_addrs(|list| {
            list.clear();
            // The list has room for four addresses: see smoltcp's features.
            let _ = list.push(IpCidr::new(link_local(mac).into(), 64));
            if let Some((address, _)) = self.ipv6 {
                let _ = list.push(address.into());
            }
            if let Some((address, _)) = self.ipv4 {
                let _ = list.push(address.into());
            }
        });
        let routes = interface.routes_mut();
        match self.ipv4 {
            Some((_, Some(gateway))) => drop(routes.add_default_ipv4_route(gateway)),
            _ => drop(routes.remove_default_ipv4_route()),
        }
        match self.ipv6 {
            Some((_, Some(gateway))) => drop(routes.add_default_ipv6_route(gateway)),
            _ => drop(routes.remove_default_ipv6_route()),
        }
    }

    /// Handles the DHCP server's answers. Returns true if the addresses have to be applied.
    pub(super) fn follow_dhcp(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let Some(handle) = self.dhcp else { return false };
        let event = match sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(event) => event,
            None if self.unconfirmed.is_some_and(|end| Instant::now() >= end) => {
                dhcpv4::Event::Deconfigured
            }
            None => return false,
        };
        self.unconfirmed = None;
        let before = self.ipv4;
        match event {
            dhcpv4::Event::Configured(lease) => {
                self.ipv4 = Some((lease.address, lease.router));
                if !self.fixed_dns {
                    self.dns_servers = lease.dns_servers.iter().map(|&dns| dns.into()).collect();
                }
            }
            dhcpv4::Event::Deconfigured => self.ipv4 = None,
        }
        if before != self.ipv4 {
            match self.ipv4 {
                Some((address, Some(gateway))) => {
                    log::info!("net: the address is {address}, the gateway {gateway}");
                }
                Some((address, None)) => log::info!("net: the address is {address}"),
                None => log::warn!("net: the address is lost: no DHCP server renews its lease"),
            }
        }
        true
    }

    /// Starts over with DHCP: the link was down and may lead to another network. The address stays
    /// until a server answers, for at most [`CONFIRM_TIMEOUT`].
    pub(super) fn restart_dhcp(&mut self, sockets: &mut SocketSet<'static>) {
        let Some(handle) = self.dhcp else { return };
        let socket = sockets.get_mut::<dhcpv4::Socket<'_>>(handle);
        socket.reset();
        // Discards the `Deconfigured` that follows from the reset.
        while socket.poll().is_some() {}
        if self.ipv4.is_some() {
            self.unconfirmed = Some(Instant::now() + CONFIRM_TIMEOUT);
        }
    }
}

/// The link-local address for an Ethernet address (RFC 4291, appendix A).
fn link_local(EthernetAddress(mac): EthernetAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_network_is_sent_to_the_gateway_and_a_group_has_no_neighbour() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let addresses = |gateway: Option<&str>, gateway_v6: Option<&str>| Addresses {
            ipv4: Some((
                Ipv4Cidr::new(Ipv4Addr::new(10, 0, 0, 1), 24),
                gateway.map(|text| text.parse().unwrap()),
            )),
            ipv6: Some((
                Ipv6Cidr::new("fd00::1".parse().unwrap(), 64),
                gateway_v6.map(|text| text.parse().unwrap()),
            )),
            dns_servers: Vec::new(),
            fixed_dns: false,
            dhcp: None,
            unconfirmed: None,
        };
        let (some, none) = (addresses(Some("10.0.0.9"), Some("fe80::9")), addresses(None, None));
        for (to, neighbour) in [
            ("10.0.0.2", Some("10.0.0.2")),
            ("192.0.2.1", Some("10.0.0.9")),
            ("fd00::2", Some("fd00::2")),
            ("fe80::2", Some("fe80::2")),
            ("2001:db8::1", Some("fe80::9")),
            ("10.0.0.255", None),
            ("255.255.255.255", None),
            ("239.1.1.1", None),
            ("ff02::1", None),
        ] {
            assert_eq!(some.neighbour(ip(to)), neighbour.map(ip), "{to}");
        }
        for to in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(none.neighbour(ip(to)), None, "{to}");
        }
    }

    #[test]
    fn a_link_local_address_is_derived_from_the_ethernet_address() {
        let mac = EthernetAddress([0x00, 0x16, 0x3e, 0x12, 0x34, 0x56]);
        assert_eq!(link_local(mac), "fe80::216:3eff:fe12:3456".parse::<Ipv6Addr>().unwrap());
    }
}
