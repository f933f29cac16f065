//! What an address leads to, in whatever way it is written.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// What an address leads to, from this domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This domain, through its loopback interface.
    Loopback,
    /// This domain, by another address of its own.
    Host,
    /// A neighbour, by an address that holds on one link only.
    LinkLocal,
    /// No single host: multicast, broadcast and reserved addresses.
    Special,
    /// Another host.
    Remote,
}

/// This domain's own addresses, which may change. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct OwnAddresses(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    all: RwLock<(Vec<IpNet>, Vec<IpAddr>)>,
    version: AtomicU64,
}

impl OwnAddresses {
    /// Replaces all addresses. An address of a loopback interface stands for its network.
    pub fn set(&self, all: Vec<IpNet>) {
        self.set_with_broadcast(all, Vec::new());
    }

    /// Replaces all addresses, and those by which all hosts of a network next to this domain are
    /// reached.
    pub fn set_with_broadcast(&self, all: Vec<IpNet>, broadcast: Vec<IpAddr>) {
        *self.0.all.write().unwrap_or_else(PoisonError::into_inner) = (all, broadcast);
        self.0.version.fetch_add(1, Ordering::Release);
    }

    /// Another number after each change. What was decided with an earlier one may be wrong.
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    /// Whether an address is one of this domain, and whether it is a broadcast address.
    fn contain(&self, ip: IpAddr) -> (bool, bool) {
        let all = self.0.all.read().unwrap_or_else(PoisonError::into_inner);
        (all.0.iter().any(|own| own.contains(&ip)), all.1.contains(&ip))
    }
}

/// The address at which a connection to this one ends: an IPv4 address may be written as an IPv6
/// one, and no address means loopback.
pub fn reached(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The IPv4 address to which a gateway may translate, or a tunnel may carry, what is sent to this
/// IPv6 address.
pub fn translated(ip: IpAddr) -> Option<Ipv4Addr> {
    const COMPATIBLE: Ipv6Net = net(Ipv6Addr::UNSPECIFIED, 96);
    const TRANSLATED: Ipv6Net = net(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96);
    const NAT64: Ipv6Net = net(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);
    const SIX_TO_FOUR: Ipv6Net = net(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16);
    let IpAddr::V6(ip) = ip else { return None };
    let bytes = ip.octets();
    let from = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    if SIX_TO_FOUR.contains(&ip) {
        return Some(from(2));
    }
    let embeds = [COMPATIBLE, TRANSLATED, NAT64].iter().any(|net| net.contains(&ip));
    (embeds && !ip.is_loopback() && !ip.is_unspecified()).then(|| from(12))
}

const fn net(ip: Ipv6Addr, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(ip, prefix)
}

/// What an address leads to.
pub fn place(ip: IpAddr, own: &OwnAddresses) -> Place {
    let ip = reached(ip);
    if let Some(inner) = translated(ip) {
        let inner = place(inner.into(), own);
        if inner != Place::Remote {
            return inner;
        }
    }
    if ip.is_loopback() {
        return Place::Loopback;
    }
    let (is_own, is_broadcast) = own.contain(ip);
    let special = match ip {
        _ if is_own => return Place::Host,
        _ if is_broadcast => true,
        IpAddr::V4(ip) if ip.is_link_local() => return Place::LinkLocal,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => return Place::LinkLocal,
        IpAddr::V4(ip) => {
            const THIS_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8);
            const RESERVED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4);
            ip.is_multicast() || THIS_NETWORK.contains(&ip) || RESERVED.contains(&ip)
        }
        IpAddr::V6(ip) => ip.is_multicast(),
    };
    if special { Place::Special } else { Place::Remote }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own() -> OwnAddresses {
        let own = OwnAddresses::default();
        let nets = ["10.0.0.5/32", "2001:db8::5/128", "192.168.7.0/24"];
        let broadcast = vec!["10.0.0.255".parse().unwrap()];
        own.set_with_broadcast(nets.map(|net| net.parse().unwrap()).into(), broadcast);
        own
    }

    #[test]
    fn each_address_has_its_place() {
        for (place_of, all) in [
            (
                Place::Loopback,
                "127.0.0.1 127.255.255.254 0.0.0.0 ::1 :: ::ffff:127.0.0.1 ::ffff:0.0.0.0 \
                 ::127.0.0.1 ::ffff:0:127.0.0.1 64:ff9b::127.1.2.3 2002:7f00:1::1 2002::",
            ),
            (
                Place::Host,
                "10.0.0.5 ::ffff:10.0.0.5 ::10.0.0.5 64:ff9b::10.0.0.5 2002:a00:5::9 2001:db8::5 \
                 192.168.7.77",
            ),
            (Place::LinkLocal, "169.254.0.1 fe80::1 febf::1 ::ffff:169.254.169.254"),
            (
                Place::Special,
                "224.0.0.1 239.1.1.1 255.255.255.255 240.0.0.1 0.1.2.3 ff02::1 ::ffff:224.0.0.1 \
                 ::ffff:255.255.255.255 10.0.0.255 ::ffff:10.0.0.255",
            ),
            (Place::Remote, "10.0.0.6 192.0.2.1 2001:db8::6 fd00::1 ::ffff:10.0.0.6 8.8.8.8"),
        ] {
            for ip in all.split_whitespace() {
                assert_eq!(place(ip.parse().unwrap(), &own()), place_of, "{ip}");
            }
        }
    }

    /// The IPv6 addresses that contain an IPv4 address.
    fn spellings(ip: Ipv4Addr) -> [IpAddr; 6] {
        let [a, b, c, d] = ip.octets().map(u16::from);
        let (high, low) = ((a << 8) | b, (c << 8) | d);
        [
            ip.into(),
            ip.to_ipv6_mapped().into(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low).into(),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low).into(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into(),
        ]
    }

    proptest! {
        #[test]
        fn no_spelling_of_an_address_of_this_domain_is_remote(
            last: [u8; 3], which in 0..4usize, how in 0..6usize
        ) {
            let [b, c, d] = last;
            let ip = [
                Ipv4Addr::new(127, b, c, d), Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 0, 5),
                Ipv4Addr::new(192, 168, 7, d),
            ][which];
            let place = place(spellings(ip)[how], &own());
            prop_assert!(matches!(place, Place::Loopback | Place::Host), "{}: {place:?}", ip);
        }

        #[test]
        fn an_address_and_its_mapped_form_have_the_same_place(ip: u32) {
            let ip = Ipv4Addr::from_bits(ip);
            prop_assert_eq!(place(ip.into(), &own()), place(ip.to_ipv6_mapped().into(), &own()));
        }
    }
}
