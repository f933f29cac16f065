//! dom0's bridge, for guests with a network interface of their own. The other half of what is
//! agreed here is in `lab/dom0/start-dnsmasq`.

use std::net::Ipv4Addr;

/// An interface on the bridge whose address is certain, whether DHCP gives it or the guest just
/// takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface(u8);

impl Interface {
    /// The first of them.
    pub const FIRST: Interface = Interface(130);
    /// How many there are.
    pub const COUNT: u8 = 10;
    /// dom0's own address on the bridge, where its DNS server is, too.
    pub const DOM0: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 129);

    /// One of them, counted from 0. There are [`Interface::COUNT`]; from there on they begin again.
    pub fn numbered(number: u8) -> Interface {
        Interface(Interface::FIRST.0 + number % Interface::COUNT)
    }

    /// Its address, in a network of 25 bits.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, self.0)
    }

    /// What stands for it in the list `vif` of a guest's configuration.
    pub fn vif(self) -> String {
        format!("mac=00:16:3e:00:02:{:02x}", self.0)
    }
}
