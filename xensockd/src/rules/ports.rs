//! Ranges of ports.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;
use std::str::FromStr;

/// A port, or a range of ports such as `8000-8099`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// All ports.
    pub const ALL: Ports = Ports { first: 0, last: u16::MAX };
    /// The ports that need no privilege.
    pub const UNPRIVILEGED: Ports = Ports { first: 1024, last: u16::MAX };

    /// One port.
    pub fn one(port: u16) -> Self {
        Ports { first: port, last: port }
    }

    /// The port, if it is only one.
    pub fn single(self) -> Option<u16> {
        (self.first == self.last).then_some(self.first)
    }

    /// Whether a port is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether a port is one of both.
    pub fn overlaps(self, other: Ports) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(port) => write!(f, "{port}"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| {
            // `parse` would accept a sign.
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let port = text.parse::<u16>().ok().filter(|port| digits && *port > 0);
            port.ok_or_else(|| format!("`{text}` is not a port: write 1 to 65535, or a range"))
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first.trim())?, port(last.trim())?);
        if first > last {
            return Err(format!("the range {text} is empty: write {last}-{first}"));
        }
        Ok(Ports { first, last })
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Ports;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port or a range such as \"8000-8099\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ports, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, port: i64) -> Result<Ports, E> {
                port.to_string().parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges_are_read_and_written() {
        for text in ["80", "8000-8099", "1-65535"] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
        assert_eq!("8-8".parse(), Ok(Ports::one(8)));
        for wrong in ["", "0", "65536", "-1", "+1", "80-", "9-8", "1-2-3", "http", "1.5"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_overlap_if_they_share_a_port() {
        let ports = |text: &str| text.parse::<Ports>().unwrap();
        assert!(ports("1-5").overlaps(ports("5-9")) && ports("5").overlaps(ports("1-9")));
        assert!(!ports("1-5").overlaps(ports("6-9")));
    }
}
