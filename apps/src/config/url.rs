//! URLs on the command line.

use super::words::{Problem, number_in};
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::str::FromStr;

/// The ports of URLs without one.
const PORT: u16 = 80;
const TLS_PORT: u16 = 443;

/// The longest name and the longest label (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// An `http` or `https` URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Whether it begins with `https`.
    pub tls: bool,
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// The request target: path and query, from the first slash on.
    pub target: String,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// Its address.
    Address(IpAddr),
    /// Its name, to be resolved.
    Name(String),
}

impl Url {
    /// Host and port, as in the Host header.
    pub fn authority(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match &self.host {
            Host::Address(ip) => write!(f, "{}", SocketAddr::new(*ip, self.port)),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

impl FromStr for Url {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Url, Problem> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", _)) if !cfg!(feature = "tls") => return Err(Problem::NoTls),
            Some(("https", rest)) => (true, rest),
            _ => return Err(Problem::Scheme),
        };
        let (host, target) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let target = target.split_once('#').map_or(target, |(target, _)| target);
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Problem::Target);
        }
        let slash = if target.starts_with('/') { "" } else { "/" };
        let (host, port) = authority(host).ok_or(Problem::Host)?;
        let port = port.unwrap_or(if tls { TLS_PORT } else { PORT });
        Ok(Url { tls, host, port, target: format!("{slash}{target}") })
    }
}

/// `HOST` or `HOST:PORT`, with an IPv6 address in brackets.
fn authority(text: &str) -> Option<(Host, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(number_in(1, 65535)(port)?)),
        _ => (text, None),
    };
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => Host::Address(IpAddr::V6(inner.parse().ok()?)),
        None => match host.parse() {
            Ok(ip) => Host::Address(IpAddr::V4(ip)),
            Err(_) if is_name(host) => Host::Name(host.into()),
            Err(_) => return None,
        },
    };
    Some((host, port))
}

/// Whether `text` is a valid host name (RFC 1123, section 2.1). If its last label is a number, it
/// is an invalid address instead.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= MAX_NAME
        && text.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_url_is_split_into_host_and_target() {
        for (text, address, target) in [
            ("http://10.0.2.2:8000/a?b=c#d", "10.0.2.2:8000", "/a?b=c"),
            ("http://10.0.2.2", "10.0.2.2:80", "/"),
            ("http://10.0.2.2?q", "10.0.2.2:80", "/?q"),
            ("http://[::1]:81/x", "[::1]:81", "/x"),
            ("http://[::1]/x", "[::1]:80", "/x"),
            ("http://www.example.org/", "www.example.org:80", "/"),
            ("http://dom0:8080", "dom0:8080", "/"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(
                (url.authority().to_string().as_str(), url.target.as_str()),
                (address, target)
            );
        }
    }
}
