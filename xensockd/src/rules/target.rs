//! Where a guest may connect.

use super::place::{OwnAddresses, Place, place, reached, translated};
use super::ports::Ports;
use ipnet::IpNet;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Addresses to which a rule applies, such as `remote:443` or `10.0.0.0/8:8000-8099`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    hosts: Hosts,
    ports: Ports,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hosts {
    Any,
    /// One of the places.
    Place(Place),
    Network(IpNet),
}

/// The names of hosts.
const NAMES: [(&str, Hosts); 5] = [
    ("any", Hosts::Any),
    ("remote", Hosts::Place(Place::Remote)),
    ("link-local", Hosts::Place(Place::LinkLocal)),
    ("host", Hosts::Place(Place::Host)),
    ("loopback", Hosts::Place(Place::Loopback)),
];

/// An address to which a guest wants to connect.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    ip: IpAddr,
    /// Where the connection may end in fact.
    also: Option<IpAddr>,
    port: u16,
    place: Place,
}

impl Destination {
    /// The destination of a connection to this address.
    pub fn new(to: SocketAddr, own: &OwnAddresses) -> Self {
        let ip = reached(to.ip());
        let also = translated(ip).map(IpAddr::from);
        Destination { ip, also, port: to.port(), place: place(ip, own) }
    }

    /// The same, once Linux has connected from this address. If it is the same one, the connection
    /// has not left this domain, whatever is known of its addresses: it may have the address by a
    /// route, or since a moment ago.
    pub fn reached_from(self, from: IpAddr) -> Self {
        let is_here = self.ip == reached(from) && self.place != Place::Loopback;
        Destination { place: if is_here { Place::Host } else { self.place }, ..self }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip, self.port).fmt(f)
    }
}

impl Target {
    /// All other hosts.
    pub const REMOTE: Target = Target { hosts: Hosts::Place(Place::Remote), ports: Ports::ALL };

    /// Whether it allows connections to this destination. A network does not allow this domain's
    /// own addresses, nor those of several hosts: they must be named.
    pub fn allows(&self, to: &Destination) -> bool {
        self.applies(to, |net| {
            let named = net.prefix_len() == net.max_prefix_len()
                || match to.place {
                    Place::Remote | Place::LinkLocal => true,
                    Place::Host => false,
                    Place::Special => is_special(net),
                    Place::Loopback => net.network().is_loopback(),
                };
            named && net.contains(&to.ip)
        })
    }

    /// Whether it forbids connections to this destination.
    pub fn forbids(&self, to: &Destination) -> bool {
        let also = |net: &IpNet| to.also.is_some_and(|ip| net.contains(&ip));
        self.applies(to, |net| net.contains(&to.ip) || also(net))
    }

    /// Whether it applies to this destination, of which `is_in` tells if it is in a network.
    fn applies(&self, to: &Destination, is_in: impl FnOnce(&IpNet) -> bool) -> bool {
        self.ports.contains(to.port)
            && match &self.hosts {
                Hosts::Any => true,
                Hosts::Place(place) => *place == to.place,
                Hosts::Network(net) => is_in(net),
            }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.ports == Ports::ALL;
        match self.hosts {
            Hosts::Network(IpNet::V6(net)) if !all && net.prefix_len() == 128 => {
                write!(f, "[{}]", net.addr())?;
            }
            Hosts::Network(IpNet::V6(net)) if !all => {
                write!(f, "[{}]/{}", net.addr(), net.prefix_len())?;
            }
            Hosts::Network(net) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{}", net.addr())?;
            }
            Hosts::Network(net) => write!(f, "{net}")?,
            hosts => {
                let name = NAMES.iter().find(|(_, other)| *other == hosts);
                f.write_str(name.map_or("", |(name, _)| name))?;
            }
        }
        if all { Ok(()) } else { write!(f, ":{}", self.ports) }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // IPv6 addresses have colons: with a port, they are in brackets.
        let (hosts, ports) = if text.starts_with('[') {
            let end = text.find(']').ok_or_else(|| format!("`{text}` has no `]`"))?;
            let (inner, rest) = (&text[1..end], &text[end + 1..]);
            let (prefix, ports) = match rest.split_once(':') {
                Some((prefix, ports)) => (prefix, Some(ports)),
                None => (rest, None),
            };
            if !prefix.is_empty() && !prefix.starts_with('/') {
                return Err(format!("`{text}` has neither `:` nor `/` behind `]`"));
            }
            (format!("{inner}{prefix}"), ports)
        } else if text.matches(':').count() == 1 {
            let (hosts, ports) = text.split_once(':').unwrap_or((text, ""));
            (hosts.to_string(), Some(ports))
        } else {
            (text.to_string(), None)
        };
        let ports = ports.map_or(Ok(Ports::ALL), str::parse)?;
        let named = NAMES.iter().find(|(name, _)| *name == hosts);
        let hosts = match named {
            Some((_, hosts)) => *hosts,
            None => Hosts::Network(network(&hosts)?),
        };
        Ok(Target { hosts, ports })
    }
}

/// Whether a network has only addresses of several hosts: of groups, or reserved ones.
fn is_special(net: &IpNet) -> bool {
    const RESERVED: u8 = 240;
    match net.network() {
        IpAddr::V4(ip) => {
            net.prefix_len() >= 4 && (ip.is_multicast() || ip.octets()[0] >= RESERVED)
        }
        IpAddr::V6(ip) => net.prefix_len() >= 8 && ip.is_multicast(),
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let wrong = || {
        let names = NAMES.map(|(name, _)| name).join(", ");
        format!("`{text}` is neither an address, a network such as 10.0.0.0/8, nor one of: {names}")
    };
    let net = match text.contains('/') {
        true => text.parse::<IpNet>().map_err(|_| wrong())?,
        false => text.parse::<IpAddr>().map_err(|_| wrong())?.into(),
    };
    if net.addr() != net.network() {
        return Err(format!("{net} is not a network: write {}", net.trunc()));
    }
    match net {
        IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some() && net.prefix_len() >= 96 => {
            Err(format!("{net} is an IPv4 network: write it as one"))
        }
        IpNet::V4(net) if net.addr().is_unspecified() && net.prefix_len() == 32 => {
            Err("0.0.0.0 leads to loopback: write 127.0.0.1 or loopback".into())
        }
        IpNet::V6(net) if net.addr().is_unspecified() && net.prefix_len() == 128 => {
            Err(":: leads to loopback: write ::1 or loopback".into())
        }
        net => Ok(net),
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Target;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("hosts and ports such as \"10.0.0.0/8:443\" or \"remote\"")
            }

            // The parser adds the place of the value to errors from here.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Target, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn own() -> OwnAddresses {
        let own = OwnAddresses::default();
        let all = ["10.0.0.5/32", "2001:db8::5/128"].map(|net| net.parse().unwrap()).into();
        own.set_with_broadcast(all, vec!["10.0.0.255".parse().unwrap()]);
        own
    }

    fn to(text: &str) -> Destination {
        Destination::new(text.parse().unwrap(), &own())
    }

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn targets_allow_what_they_name() {
        for (rule, allowed, refused) in [
            ("any", "127.0.0.1:1 [::]:80 10.0.0.5:22 192.0.2.1:5 [ff02::1]:9", ""),
            (
                "remote",
                "192.0.2.1:5 [2001:db8::1]:80 10.0.0.6:1 [::ffff:10.0.0.6]:1 [fd00::1]:1",
                "127.0.0.1:1 0.0.0.0:1 [::1]:1 [::]:1 10.0.0.5:1 [::ffff:10.0.0.5]:1 \
                 [::127.0.0.1]:1 \
                 [2001:db8::5]:1 169.254.1.1:1 [fe80::1]:1 224.0.0.1:1 255.255.255.255:1",
            ),
            ("remote:443", "192.0.2.1:443", "192.0.2.1:80 127.0.0.1:443"),
            ("remote:80-90", "192.0.2.1:80 192.0.2.1:90", "192.0.2.1:79 192.0.2.1:91"),
            ("loopback", "127.0.0.1:5 0.0.0.0:5 [::1]:5 [::]:5 [::ffff:127.9.9.9]:5", "10.0.0.5:5"),
            ("loopback:6379", "127.0.0.1:6379 0.0.0.0:6379", "127.0.0.1:6380"),
            ("host:80", "10.0.0.5:80 [2001:db8::5]:80", "127.0.0.1:80 10.0.0.6:80"),
            ("link-local", "[fe80::1]:1 169.254.169.254:80", "10.0.0.6:1"),
            (
                "10.0.0.0/8",
                "10.0.0.6:1 [::ffff:10.0.0.6]:1",
                "10.0.0.5:1 11.0.0.1:1 [::10.0.0.6]:1",
            ),
            (
                "0.0.0.0/0",
                "10.0.0.6:1",
                "10.0.0.5:1 127.0.0.1:1 [2001:db8::1]:1 224.0.0.1:1 255.255.255.255:1 10.0.0.255:1",
            ),
            ("239.0.0.0/8:53", "239.1.1.1:53", "239.1.1.1:54 224.0.0.1:53"),
            ("224.0.0.0/4", "239.1.1.1:53 [::ffff:224.0.0.1]:1", "255.255.255.255:1"),
            ("ff02::/16", "[ff02::fb]:5353", "[ff05::2]:1 224.0.0.1:1"),
            ("10.0.0.255", "10.0.0.255:9", "10.0.0.254:9"),
            ("255.255.255.255:67", "255.255.255.255:67", "255.255.255.255:68"),
            ("10.0.0.5:22", "10.0.0.5:22 [::ffff:10.0.0.5]:22", "10.0.0.5:23 127.0.0.1:22"),
            ("127.0.0.0/8:80", "127.1.1.1:80 0.0.0.0:80", "10.0.0.5:80"),
            (
                "127.0.0.1:80",
                "127.0.0.1:80 0.0.0.0:80 [::ffff:127.0.0.1]:80",
                "127.0.0.2:80 [::1]:80",
            ),
            (
                "::/0",
                "[2001:db8::1]:1",
                "[2001:db8::5]:1 [::1]:1 [::]:1 10.0.0.6:1 [::127.0.0.1]:1",
            ),
            ("[2001:db8::]/32:443", "[2001:db8::1]:443", "[2001:db8::1]:80 [2001:db9::1]:443"),
            ("[2001:db8::5]:80", "[2001:db8::5]:80", "[2001:db8::6]:80"),
        ] {
            for address in allowed.split_whitespace() {
                assert!(target(rule).allows(&to(address)), "{rule} {address}");
            }
            for address in refused.split_whitespace() {
                assert!(!target(rule).allows(&to(address)), "{rule} {address}");
            }
            assert_eq!(target(rule).to_string(), rule);
        }
    }

    #[test]
    fn a_connection_that_does_not_leave_this_domain_reaches_it() {
        for (address, from, remote, host) in [
            ("10.9.0.1:80", "10.0.0.5", true, false),
            ("10.9.0.1:80", "10.9.0.1", false, true),
            ("[::ffff:10.9.0.1]:80", "::ffff:10.9.0.1", false, true),
            ("[fe80::1]:80", "fe80::1", false, true),
            ("127.0.0.1:80", "127.0.0.1", false, false),
        ] {
            let to = to(address).reached_from(from.parse().unwrap());
            let allows = ["remote", "host"].map(|rule| target(rule).allows(&to));
            assert_eq!(allows, [remote, host], "{address} from {from}");
        }
    }

    #[test]
    fn what_is_forbidden_is_so_by_any_spelling() {
        let rule = target("10.0.0.0/8");
        for address in ["10.0.0.5:1", "10.0.0.6:1", "[::ffff:10.9.9.9]:1", "[64:ff9b::10.0.0.6]:1"]
        {
            assert!(rule.forbids(&to(address)), "{address}");
        }
        assert!(!rule.forbids(&to("192.0.2.1:1")));
        assert!(target("remote:25").forbids(&to("192.0.2.1:25")));
        assert!(!target("remote:25").forbids(&to("192.0.2.1:80")));
    }

    #[test]
    fn what_is_no_target_is_explained() {
        for (wrong, reason) in [
            ("", "neither an address"),
            ("example.com", "neither an address"),
            ("public", "one of: any, remote"),
            ("10.0.0.0/33", "neither an address"),
            ("10.0.0.5/8", "write 10.0.0.0/8"),
            ("10.0.0.5:0", "not a port"),
            ("10.0.0.5:", "not a port"),
            ("[::1", "no `]`"),
            ("[::1]80", "behind `]`"),
            ("::ffff:10.0.0.1", "IPv4"),
            ("0.0.0.0:80", "loopback"),
            ("[::]:80", "loopback"),
        ] {
            let error = wrong.parse::<Target>().unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }

    proptest! {
        #[test]
        fn neither_remote_nor_a_network_allows_any_spelling_of_loopback(
            bits: u32, mapped: bool, port: u16, prefix in 0..8u8
        ) {
            let ip = Ipv4Addr::from_bits((bits % (1 << 24)) | (127 << 24));
            let ip = if mapped { ip.to_ipv6_mapped().into() } else { IpAddr::from(ip) };
            let to = Destination::new(SocketAddr::new(ip, port), &own());
            let net = IpNet::new(Ipv4Addr::new(127, 0, 0, 0).into(), prefix).unwrap().trunc();
            prop_assert!(!Target::REMOTE.allows(&to));
            prop_assert!(!target(&net.to_string()).allows(&to));
        }

        #[test]
        fn text_never_makes_the_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<Target>();
        }

        #[test]
        fn a_target_is_read_as_it_is_written(
            bits: u128, prefix in 0..=128u8, v4: bool, first in 1..=u16::MAX, more: u16
        ) {
            let net = match v4 {
                true => IpNet::new(Ipv4Addr::from_bits(bits as u32).into(), prefix % 33),
                false => IpNet::new(std::net::Ipv6Addr::from_bits(bits).into(), prefix),
            };
            let net = net.unwrap().trunc();
            let hosts = Hosts::Network(net);
            let ports = format!("{first}-{}", first.saturating_add(more)).parse().unwrap();
            let target = Target { hosts, ports };
            if let Ok(read) = target.to_string().parse::<Target>() {
                prop_assert_eq!(read, target);
            } else {
                // What leads elsewhere than it looks is refused.
                prop_assert!(network(&net.to_string()).is_err());
            }
        }
    }
}
