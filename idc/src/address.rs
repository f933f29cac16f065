//! Who is to be met: a place and a service.
//!
//! As text: `xen:7/disk`, `tcp:10.0.0.2:900/disk@2`, `any/disk`.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;
use core::net::{Ipv6Addr, SocketAddr};
use core::str::FromStr;
use thiserror::Error;
use xen::DomId;

/// The longest name of a service.
const MAX_NAME: usize = 32;

/// The name of the service that moves the bytes of registered buffers.
const BUFFERS: &str = "-buffers";

/// The highest number of a domain; those above have special meanings (`DOMID_FIRST_RESERVED` in
/// `xen.h`).
pub(crate) const MAX_DOMAIN: u16 = 0x7FEF;

/// The other end of a connection.
///
/// ```
/// let address: idc::Address = "xen:7/disk".parse()?;
/// assert_eq!(address.place, idc::Place::Domain(xen::DomId(7)));
/// assert_eq!(address.service, idc::Service::new("disk", 0)?);
/// # Ok::<(), idc::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Where the other end is.
    pub place: Place,
    /// What both ends call the service.
    pub service: Service,
}

/// Where the other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A domain of this host.
    Domain(DomId),
    /// An address of a network.
    Host(SocketAddr),
    /// Wherever the first visitor of the service comes from. Whatever the instance, any instance of
    /// the visitor's will do.
    Anyone,
}

impl Place {
    /// The place without what whoever is there can choose at will: the port, and the lower half of
    /// an IPv6 address.
    pub(crate) fn origin(self) -> Place {
        match self {
            Place::Host(SocketAddr::V6(host)) => {
                let ip = Ipv6Addr::from_bits(host.ip().to_bits() >> 64 << 64);
                Place::Host((ip, 0).into())
            }
            Place::Host(host) => Place::Host((host.ip(), 0).into()),
            other => other,
        }
    }
}

/// The name of a service, and which of several connections of the same two ends is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    name: String,
    instance: u32,
}

/// Why a text is not an address. The text is the part that is wrong.
#[expect(missing_docs, reason = "each has its message")]
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    #[error("{0:?} has no service: write PLACE/SERVICE, such as xen:7/disk")]
    NoService(String),
    #[error("{0:?} is not a place: write xen:DOMAIN, tcp:IP:PORT or any")]
    Place(String),
    #[error("{0:?} is not a domain: write a number from 0 to {MAX_DOMAIN} after xen:")]
    Domain(String),
    #[error(
        "{0:?} is not a host: write an IP address and a port after tcp:, such as 10.0.0.2:900 \
         or [::1]:900"
    )]
    Host(String),
    #[error(
        "{0:?} is not a service: write 1 to {MAX_NAME} letters, digits, _ and -, of which the \
         first is not -"
    )]
    Name(String),
    #[error(
        "{0:?} is not an instance: write a number from 1 to {max} after @, or neither for \
         the first",
        max = u32::MAX
    )]
    Instance(String),
}

impl Service {
    /// A service with a name of 1 to 32 letters, digits, `_` and `-`, of which the first is not
    /// `-`. Both ends of a connection name the same instance, which is 0 where there is only one.
    pub fn new(name: &str, instance: u32) -> Result<Self, AddressError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        // xenstore allows a few more characters, but those have a meaning in paths and addresses.
        let valid = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed);
        if !valid || name.starts_with('-') {
            return Err(AddressError::Name(name.to_owned()));
        }
        Ok(Service { name: name.to_owned(), instance })
    }

    /// The service of each node that moves the bytes of its registered buffers. It has a name that
    /// no other service can have.
    pub fn buffers(instance: u32) -> Self {
        Service { name: BUFFERS.to_owned(), instance }
    }

    /// Reads a service that another node names, which may be the one of buffers.
    pub fn from_peer(text: &str) -> Result<Self, AddressError> {
        match name_and_instance(text)? {
            (BUFFERS, instance) => Ok(Self::buffers(instance)),
            (name, instance) => Self::new(name, instance),
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which of several connections of the same two ends is meant.
    pub fn instance(&self) -> u32 {
        self.instance
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.place, self.service)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Domain(domain) => write!(f, "xen:{}", domain.0),
            Place::Host(host) => write!(f, "tcp:{host}"),
            Place::Anyone => f.write_str("any"),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.instance != 0 { write!(f, "@{}", self.instance) } else { Ok(()) }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let no_service = || AddressError::NoService(text.to_owned());
        let (place, service) = text.split_once('/').ok_or_else(no_service)?;
        Ok(Address { place: place.parse()?, service: service.parse()? })
    }
}

impl FromStr for Place {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once(':') {
            Some(("xen", domain)) => match number(domain) {
                Some(number @ 0..=MAX_DOMAIN) => Ok(Place::Domain(DomId(number))),
                _ => Err(AddressError::Domain(domain.to_owned())),
            },
            Some(("tcp", host)) => match host.parse::<SocketAddr>() {
                Ok(address) if address.port() != 0 => Ok(Place::Host(address)),
                _ => Err(AddressError::Host(host.to_owned())),
            },
            None if text == "any" => Ok(Place::Anyone),
            _ => Err(AddressError::Place(text.to_owned())),
        }
    }
}

impl FromStr for Service {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (name, instance) = name_and_instance(text)?;
        Service::new(name, instance)
    }
}

fn name_and_instance(text: &str) -> Result<(&str, u32), AddressError> {
    match text.split_once('@') {
        Some((name, instance)) => match number(instance) {
            Some(number @ 1..) => Ok((name, number)),
            _ => Err(AddressError::Instance(instance.to_owned())),
        },
        None => Ok((text, 0)),
    }
}

/// A decimal number without a sign or leading zeros, so that each has exactly one text.
pub(crate) fn number<N: FromStr>(text: &str) -> Option<N> {
    let plain = text == "0" || text.starts_with(|first| matches!(first, '1'..='9'));
    plain.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;
    use proptest::prelude::*;

    #[test]
    fn addresses_have_the_texts_that_are_documented() {
        let host = |text: &str| Place::Host(text.parse().unwrap());
        for (text, place, name, instance) in [
            ("xen:7/disk", Place::Domain(DomId(7)), "disk", 0),
            ("xen:0/a", Place::Domain(DomId(0)), "a", 0),
            ("xen:32751/disk@2", Place::Domain(DomId(32751)), "disk", 2),
            ("tcp:10.0.0.2:900/disk", host("10.0.0.2:900"), "disk", 0),
            ("tcp:[::1]:900/disk@4294967295", host("[::1]:900"), "disk", u32::MAX),
            ("any/_A-z9", Place::Anyone, "_A-z9", 0),
        ] {
            let address: Address = text.parse().unwrap();
            let service = Service::new(name, instance).unwrap();
            assert_eq!(address, Address { place, service });
            assert_eq!(address.to_string(), text);
            assert_eq!((address.service.name(), address.service.instance()), (name, instance));
        }
    }

    #[test]
    fn an_error_says_which_part_is_wrong_and_what_to_write() {
        let error = |text: &str| text.parse::<Address>().unwrap_err().to_string();
        assert_eq!(
            error("disk"),
            "\"disk\" has no service: write PLACE/SERVICE, such as xen:7/disk"
        );
        for text in ["", "dom:7", "7", "xen", "tcp", "any:7", "ANY", "Xen:7"] {
            assert_eq!(
                error(&format!("{text}/disk")),
                format!("{text:?} is not a place: write xen:DOMAIN, tcp:IP:PORT or any")
            );
        }
        for text in ["", "-1", "+1", "07", "32752", "32756", "70000", " 7", "7 ", "x"] {
            assert_eq!(
                error(&format!("xen:{text}/disk")),
                format!("{text:?} is not a domain: write a number from 0 to 32751 after xen:")
            );
        }
        for text in ["", "10.0.0.2", "10.0.0.2:0", "::1:80", "host:80", "10.0.0.2:65536"] {
            assert_eq!(
                error(&format!("tcp:{text}/disk")),
                format!(
                    "{text:?} is not a host: write an IP address and a port after tcp:, such as \
                     10.0.0.2:900 or [::1]:900"
                )
            );
        }
        let long = "x".repeat(33);
        for text in ["", "-disk", "di/sk", "di.sk", "dïsk", "disk ", long.as_str()] {
            assert_eq!(
                error(&format!("any/{text}")),
                format!(
                    "{text:?} is not a service: write 1 to 32 letters, digits, _ and -, of \
                     which the first is not -"
                )
            );
        }
        for text in ["", "0", "01", "+1", "-1", "4294967296", "1@1"] {
            assert_eq!(
                error(&format!("any/disk@{text}")),
                format!(
                    "{text:?} is not an instance: write a number from 1 to 4294967295 after @, \
                     or neither for the first"
                )
            );
        }
    }

    #[test]
    fn no_user_can_name_the_service_of_buffers() {
        for instance in [0, 1] {
            let service = Service::buffers(instance);
            assert!(service.to_string().parse::<Service>().is_err());
            assert_eq!(Service::from_peer(&service.to_string()), Ok(service));
        }
        assert!(Service::from_peer("-door").is_err());
        assert_eq!(Service::from_peer("disk@2"), Service::new("disk", 2));
    }

    fn places() -> impl Strategy<Value = Place> {
        prop_oneof![
            (0..=MAX_DOMAIN).prop_map(|domain| Place::Domain(DomId(domain))),
            (any::<core::net::IpAddr>(), 1..=u16::MAX).prop_map(|host| Place::Host(host.into())),
            Just(Place::Anyone),
        ]
    }

    proptest! {
        #[test]
        fn every_address_has_a_text(
            place in places(), name in "[A-Za-z0-9_][A-Za-z0-9_-]{0,31}", instance: u32,
        ) {
            let address = Address { place, service: Service::new(&name, instance).unwrap() };
            prop_assert_eq!(&address.to_string().parse(), &Ok(address));
        }

        #[test]
        fn no_other_text_is_a_service(text in "[a-c-]{0,2}(@[0-9]{0,2})?") {
            if let Ok(service) = text.parse::<Service>() {
                prop_assert_eq!(service.to_string(), text);
            }
        }
    }
}
