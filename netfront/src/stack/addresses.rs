//! The interface's addresses, and where they come from.

use super::state::State;
use super::{Config, Ipv4, Ipv4Cidr, Ipv6Cidr};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use embassy_time::{Duration, Instant};
use smoltcp::iface::Interface;
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{EthernetAddress, IpCidr};

/// How long an address is used after the link was away without the DHCP server having said that it may.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(60);

/// The addresses as they are now.
pub(super) struct Addresses {
    /// With its gateway.
    pub(super) ipv4: Option<(Ipv4Cidr, Option<Ipv4Addr>)>,
    ipv6: Option<(Ipv6Cidr, Option<Ipv6Addr>)>,
    pub(super) dns: Vec<IpAddr>,
    /// The configuration names DNS servers: a DHCP server's are not asked.
    fixed_dns: bool,
}

impl Addresses {
    pub(super) fn of(config: &Config) -> Addresses {
        Addresses {
            ipv4: match config.ipv4 {
                Ipv4::Dhcp => None,
                Ipv4::Static { address, gateway } => Some((address, gateway)),
            },
            ipv6: config.ipv6,
            dns: config.dns.clone(),
            fixed_dns: !config.dns.is_empty(),
        }
    }
}

/// The link-local address that an Ethernet address makes (RFC 4291, appendix A).
fn link_local(EthernetAddress(mac): EthernetAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

impl State {
    /// Gives the interface its addresses and routes.
    pub(super) fn configure(&mut self, mac: EthernetAddress) {
        let State { interface, addresses, .. } = self;
        apply(interface, addresses, mac);
        self.set_dns();
    }

    /// Does what the DHCP server says; whether it said something new.
    pub(super) fn follow_dhcp(&mut self, mac: EthernetAddress) -> bool {
        let Some(handle) = self.dhcp else { return false };
        let event = match self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(event) => event,
            None if self.unconfirmed.is_some_and(|end| Instant::now() >= end) => {
                dhcpv4::Event::Deconfigured
            }
            None => return false,
        };
        self.unconfirmed = None;
        let before = self.addresses.ipv4;
        match event {
            dhcpv4::Event::Configured(lease) => {
                self.addresses.ipv4 = Some((lease.address, lease.router));
                if !self.addresses.fixed_dns {
                    self.addresses.dns = lease.dns_servers.iter().map(|&dns| dns.into()).collect();
                }
            }
            dhcpv4::Event::Deconfigured => self.addresses.ipv4 = None,
        }
        if before != self.addresses.ipv4 {
            match self.addresses.ipv4 {
                Some((address, Some(gateway))) => {
                    log::info!("net: the address is {address}, by way of {gateway}");
                }
                Some((address, None)) => log::info!("net: the address is {address}"),
                None => log::warn!("net: the address is lost: nobody renews its lease"),
            }
        }
        self.configure(mac);
        let interface: Vec<IpCidr> = self.interface.ip_addrs().to_vec();
        self.end_strays(|address| interface.iter().any(|cidr| cidr.address() == address));
        true
    }

    /// Asks the DHCP server anew: the link was away, and it may be another one's. Until it answers, the address
    /// stays, but not for ever.
    pub(super) fn restart_dhcp(&mut self) {
        let Some(handle) = self.dhcp else { return };
        let socket = self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle);
        socket.reset();
        // It says that there is no lease any more, which is not for the server to decide yet.
        while socket.poll().is_some() {}
        if self.addresses.ipv4.is_some() {
            self.unconfirmed = Some(Instant::now() + CONFIRMED_WITHIN);
        }
    }
}

fn apply(interface: &mut Interface, addresses: &Addresses, mac: EthernetAddress) {
    interface.update_ip_addrs(|list| {
        list.clear();
        // There is room for all of them: smoltcp is built for more.
        let _ = list.push(IpCidr::new(link_local(mac).into(), 64));
        if let Some((address, _)) = addresses.ipv6 {
            let _ = list.push(address.into());
        }
        if let Some((address, _)) = addresses.ipv4 {
            let _ = list.push(address.into());
        }
    });
    let routes = interface.routes_mut();
    match addresses.ipv4 {
        Some((_, Some(gateway))) => drop(routes.add_default_ipv4_route(gateway)),
        _ => drop(routes.remove_default_ipv4_route()),
    }
    match addresses.ipv6 {
        Some((_, Some(gateway))) => drop(routes.add_default_ipv6_route(gateway)),
        _ => drop(routes.remove_default_ipv6_route()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_made_of_the_interfaces_own() {
        let mac = EthernetAddress([0x00, 0x16, 0x3e, 0x12, 0x34, 0x56]);
        assert_eq!(link_local(mac), "fe80::216:3eff:fe12:3456".parse::<Ipv6Addr>().unwrap());
    }
}
