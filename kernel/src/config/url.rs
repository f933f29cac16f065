//! URLs as the command line has them.

use super::Problem;
use alloc::string::String;
use core::fmt;
use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use core::str::FromStr;

/// An `http` URL whose host is an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Where to connect.
    pub address: SocketAddr,
    /// What to ask for: path and query, from the first slash on.
    pub target: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.target)
    }
}

impl FromStr for Url {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Url, Problem> {
        let rest = text.strip_prefix("http://").ok_or(Problem::Scheme)?;
        let (host, target) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let target = target.split_once('#').map_or(target, |(target, _)| target);
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Problem::Target);
        }
        let mut owned = String::with_capacity(target.len() + 1);
        if !target.starts_with('/') {
            owned.push('/');
        }
        owned.push_str(target);
        Ok(Url { address: address(host)?, target: owned })
    }
}

/// `ADDRESS` or `ADDRESS:PORT`, with an IPv6 address in brackets.
fn address(host: &str) -> Result<SocketAddr, Problem> {
    let address = match SocketAddr::from_str(host) {
        Ok(address) => Some(address),
        Err(_) => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => inner.parse().ok().map(|ip| SocketAddr::new(ip, 80)),
            None => {
                host.parse::<Ipv4Addr>().ok().map(|ip| SocketAddr::V4(SocketAddrV4::new(ip, 80)))
            }
        },
    };
    match address {
        Some(address) if address.port() != 0 => Ok(address),
        _ => Err(Problem::Host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_url_is_an_address_and_a_target() {
        for (text, address, target) in [
            ("http://10.0.2.2:8000/a?b=c#d", "10.0.2.2:8000", "/a?b=c"),
            ("http://10.0.2.2", "10.0.2.2:80", "/"),
            ("http://10.0.2.2?q", "10.0.2.2:80", "/?q"),
            ("http://[::1]:81/x", "[::1]:81", "/x"),
            ("http://[::1]/x", "[::1]:80", "/x"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!((url.address.to_string().as_str(), url.target.as_str()), (address, target));
        }
    }
}
