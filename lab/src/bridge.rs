//! dom0's bridge, for guests with a network interface. `lab/dom0/start-dnsmasq` has the other half
//! of these addresses.

use std::net::Ipv4Addr;

/// An interface with a fixed address: DHCP gives it, and a guest may also use it without DHCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface(u8);

impl Interface {
    /// The first interface.
    pub const FIRST: Interface = Interface(130);
    /// The number of interfaces.
    pub const COUNT: u8 = 10;
    /// The address of dom0 and of its DNS server on the bridge.
    pub const DOM0: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 129);

    /// The interface `number % COUNT`.
    pub fn numbered(number: u8) -> Interface {
        Interface(Interface::FIRST.0 + number % Interface::COUNT)
    }

    /// Its address, in a /25 network.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, self.0)
    }

    /// Its entry in the list `vif` of a guest's configuration.
    pub fn vif(self) -> String {
        format!("mac=00:16:3e:00:02:{:02x}", self.0)
    }
}
