//! Where a guest may listen, and where this domain listens for it.

use super::ports::Ports;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use toml::Spanned;

/// The ports of a guest, and what becomes of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen(Vec<Spanned<Mapping>>);

/// Some ports of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    ports: Ports,
    to: To,
}

/// Where this domain listens. What is not named is as the guest asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct To {
    ip: Option<IpAddr>,
    port: Option<u16>,
}

impl Listen {
    /// The ports that need no privilege, of any address.
    pub fn unprivileged() -> Self {
        let mapping = Mapping { ports: Ports::UNPRIVILEGED, to: To::default() };
        Listen(vec![Spanned::new(0..0, mapping)])
    }

    /// No port.
    pub fn nowhere() -> Self {
        Listen(Vec::new())
    }

    /// The address at which to listen if the guest asks for this one, if it may.
    pub fn resolve(&self, asked: SocketAddr) -> Option<SocketAddr> {
        let mut mappings = self.0.iter().map(Spanned::get_ref);
        let to = mappings.find(|mapping| mapping.ports.contains(asked.port()))?.to;
        let ip = match (to.ip, asked) {
            (None, _) => return Some(with_port(asked, to.port)),
            // A socket for IPv6 serves IPv4 as well, at mapped addresses.
            (Some(IpAddr::V4(ip)), SocketAddr::V6(_)) => ip.to_ipv6_mapped().into(),
            (Some(ip), _) => ip,
        };
        Some(SocketAddr::new(ip, to.port.unwrap_or(asked.port())))
    }

    /// The same, and this port as the guest asks for it. For a message.
    pub fn with(&self, port: u16) -> Self {
        let mut all = self.clone();
        all.0.push(Spanned::new(0..0, Mapping { ports: Ports::one(port), to: To::default() }));
        all
    }

    /// The mappings to addresses of this domain, with their places in the file.
    pub fn mapped(&self) -> impl Iterator<Item = &Spanned<Mapping>> {
        self.0.iter().filter(|mapping| mapping.get_ref().to != To::default())
    }

    fn add(&mut self, mapping: Spanned<Mapping>) -> Result<(), String> {
        let Mapping { ports, to } = *mapping.get_ref();
        if let Some(port) = to.port
            && ports.single().is_none()
        {
            return Err(format!(
                "the range {ports} keeps its port numbers: leave out {port}, or write a line for \
                 each port"
            ));
        }
        let other = self.0.iter().find(|other| other.get_ref().ports.overlaps(ports));
        if let Some(other) = other {
            return Err(format!("{ports} and {} overlap", other.get_ref().ports));
        }
        let mapped = self.mapped().find(|other| other.get_ref().overlaps(mapping.get_ref()));
        if let Some(other) = mapped.filter(|_| to != To::default()) {
            return Err(format!(
                "ports {ports} and {} of the guest are both mapped to {}",
                other.get_ref().ports,
                mapping.get_ref().target()
            ));
        }
        self.0.push(mapping);
        Ok(())
    }
}

impl Mapping {
    /// Whether both lead to the same address and port of this domain.
    pub fn overlaps(&self, other: &Mapping) -> bool {
        self.target_ports().overlaps(other.target_ports()) && covers(self.ip(), other.ip())
    }

    /// Whether a listener at this address would exclude one that it leads to.
    pub fn leads_to(&self, at: SocketAddr) -> bool {
        self.target_ports().contains(at.port()) && covers(self.ip(), at.ip())
    }

    fn target_ports(&self) -> Ports {
        self.to.port.map_or(self.ports, Ports::one)
    }

    /// Where it leads.
    pub fn target(&self) -> String {
        let ports = self.target_ports();
        match self.ip() {
            IpAddr::V4(ip) => format!("{ip}:{ports}"),
            IpAddr::V6(ip) => format!("[{ip}]:{ports}"),
        }
    }

    fn ip(&self) -> IpAddr {
        self.to.ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }
}

/// Whether a listener at one of two addresses excludes one at the other.
pub fn covers(one: IpAddr, other: IpAddr) -> bool {
    let (one, other) = (one.to_canonical(), other.to_canonical());
    let all = |ip: IpAddr, other: IpAddr| {
        // `::` also stands for all IPv4 addresses.
        ip.is_unspecified() && (ip.is_ipv6() || other.is_ipv4())
    };
    one == other || all(one, other) || all(other, one)
}

/// Whether both are the same place, whatever scope and flow they have.
pub fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip(), one.port()) == (other.ip(), other.port())
}

fn with_port(addr: SocketAddr, port: Option<u16>) -> SocketAddr {
    let mut addr = addr;
    addr.set_port(port.unwrap_or(addr.port()));
    addr
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ip, self.port) {
            (Some(ip), Some(port)) => write!(f, "\"{}\"", SocketAddr::new(ip, port)),
            (Some(ip), None) => write!(f, "\"{ip}\""),
            (None, Some(port)) => write!(f, "{port}"),
            (None, None) => f.write_str("\"any\""),
        }
    }
}

/// As it is written in a file.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0.iter().map(Spanned::get_ref);
        if self.mapped().next().is_none() {
            let ports: Vec<_> = all.map(|mapping| format!("\"{}\"", mapping.ports)).collect();
            return write!(f, "[{}]", ports.join(", "));
        }
        let key = |ports: Ports| match ports.single() {
            Some(port) => port.to_string(),
            None => format!("\"{ports}\""),
        };
        let ports: Vec<_> =
            all.map(|mapping| format!("{} = {}", key(mapping.ports), mapping.to)).collect();
        write!(f, "{{ {} }}", ports.join(", "))
    }
}

impl<'de> Deserialize<'de> for To {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = To;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an address such as \"10.0.0.5:8080\" or \"10.0.0.5\", a port, or \"any\"",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<To, E> {
                if text == "any" {
                    return Ok(To::default());
                }
                if let Ok(ip) = text.parse() {
                    return Ok(To { ip: Some(ip), port: None });
                }
                let addr = text.parse::<SocketAddr>().ok().filter(|addr| addr.port() > 0);
                let wrong = || {
                    E::custom(format!(
                        "`{text}` is neither an address such as 10.0.0.5:8080 or [2001:db8::5]:80, \
                         nor a port, nor any"
                    ))
                };
                let addr = addr.ok_or_else(wrong)?;
                Ok(To { ip: Some(addr.ip()), port: Some(addr.port()) })
            }

            fn visit_i64<E: de::Error>(self, port: i64) -> Result<To, E> {
                let ports: Ports = port.to_string().parse().map_err(E::custom)?;
                Ok(To { ip: None, port: ports.single() })
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Listen;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of ports, or a table from ports to addresses")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Listen, A::Error> {
                let mut all = Listen(Vec::new());
                while let Some(ports) = list.next_element::<Spanned<Ports>>()? {
                    let mapping = Mapping { ports: *ports.get_ref(), to: To::default() };
                    all.add(Spanned::new(ports.span(), mapping)).map_err(de::Error::custom)?;
                }
                Ok(all)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Listen, A::Error> {
                let mut all = Listen(Vec::new());
                while let Some((ports, to)) = table.next_entry::<Spanned<Ports>, To>()? {
                    let mapping = Mapping { ports: *ports.get_ref(), to };
                    all.add(Spanned::new(ports.span(), mapping)).map_err(de::Error::custom)?;
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Line {
        listen: Listen,
    }

    fn listen(text: &str) -> Result<Listen, String> {
        let line = toml::from_str::<Line>(&format!("listen = {text}"));
        line.map(|line| line.listen).map_err(|error| error.message().to_string())
    }

    fn resolved(text: &str, asked: &str) -> Option<String> {
        let at = listen(text).unwrap().resolve(asked.parse().unwrap());
        at.map(|at| at.to_string())
    }

    #[test]
    fn a_port_is_refused_kept_or_mapped() {
        for (rule, asked, at) in [
            (r#"["1024-65535"]"#, "0.0.0.0:1024", Some("0.0.0.0:1024")),
            (r#"["1024-65535"]"#, "127.0.0.1:65535", Some("127.0.0.1:65535")),
            (r#"["1024-65535"]"#, "[::]:1023", None),
            (r#"["1024-65535"]"#, "[::ffff:10.0.0.5]:80", None),
            (r#"[80, "443"]"#, "[::]:443", Some("[::]:443")),
            ("[]", "0.0.0.0:8080", None),
            (r#"{ 80 = "10.0.0.5:8080" }"#, "0.0.0.0:80", Some("10.0.0.5:8080")),
            (r#"{ 80 = "10.0.0.5:8080" }"#, "127.0.0.1:80", Some("10.0.0.5:8080")),
            (r#"{ 80 = "10.0.0.5:8080" }"#, "[::]:80", Some("[::ffff:10.0.0.5]:8080")),
            (r#"{ 80 = "10.0.0.5:8080" }"#, "0.0.0.0:8080", None),
            (r#"{ 80 = "[2001:db8::5]:80" }"#, "0.0.0.0:80", Some("[2001:db8::5]:80")),
            (r#"{ 80 = 8080 }"#, "10.0.0.7:80", Some("10.0.0.7:8080")),
            (r#"{ 80 = 8080 }"#, "[::]:80", Some("[::]:8080")),
            (r#"{ "8000-8099" = "10.0.0.5" }"#, "0.0.0.0:8042", Some("10.0.0.5:8042")),
            (r#"{ 80 = "10.0.0.5", "1024-65535" = "any" }"#, "[::]:5000", Some("[::]:5000")),
        ] {
            assert_eq!(resolved(rule, asked).as_deref(), at, "{rule} {asked}");
        }
    }

    #[test]
    fn overlaps_and_what_is_no_port_are_explained() {
        for (wrong, reason) in [
            (r#"["80-90", 85]"#, "85 and 80-90 overlap"),
            (r#"{ 80 = "10.0.0.5:1", "70-90" = "10.0.0.6" }"#, "overlap"),
            (r#"{ 80 = "10.0.0.5:1", 81 = "10.0.0.5:1" }"#, "both mapped to 10.0.0.5:1"),
            (r#"{ 80 = "0.0.0.0:1", 81 = "10.0.0.5:1" }"#, "both mapped to 10.0.0.5:1"),
            (r#"{ 80 = 1000, 81 = 1000 }"#, "both mapped to 0.0.0.0:1000"),
            (r#"{ "8000-8099" = "10.0.0.5:9000" }"#, "keeps its port numbers"),
            (r#"{ 80 = "web" }"#, "`web` is neither an address"),
            (r#"{ 80 = "10.0.0.5:0" }"#, "neither an address"),
            (r#"{ 80 = 0 }"#, "not a port"),
            (r#"{ http = 80 }"#, "`http` is not a port"),
            ("[0]", "not a port"),
            ("80", "a list of ports"),
        ] {
            let error = listen(wrong).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_is_shown_to_the_user_can_be_written_into_the_file() {
        for text in [
            r#"["1024-65535", "80"]"#,
            r#"{ 80 = "10.0.0.5:8080", "1024-65535" = "any", 81 = 8081, 82 = "10.0.0.5" }"#,
        ] {
            assert_eq!(listen(text).unwrap().to_string(), text);
        }
        let more = listen(r#"["1024-65535"]"#).unwrap().with(80);
        assert_eq!(more.to_string(), r#"["1024-65535", "80"]"#);
    }
}
