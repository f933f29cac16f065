//! What goes beyond the plain dialects: `docs/protocol.md` has the specification.
//!
//! Each extension is announced by a node of the backend and taken up by a node of the frontend of the
//! same name. What both have said holds for as long as they are connected. The commands have the same
//! numbers and fields in every dialect.

use super::address;
use super::options::SocketOption;
use super::slot::{bytes, put, u32_at};
use super::{Call, Command, How};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bitflags::bitflags;
use core::net::SocketAddr;
use xen::Errno;

bitflags! {
    /// A set of extensions.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Extensions: u8 {
        /// SETSOCKOPT and GETSOCKOPT.
        const OPTIONS = 1;
        /// SHUTDOWN: one direction of a connection is closed alone.
        const SHUTDOWN = 2;
        /// GETSOCKNAME and GETPEERNAME, and a name in some responses.
        const NAMES = 4;
        /// Addresses of IPv6.
        const IPV6 = 8;
        /// RESIZE: an open connection gets a ring of another size. In draft 1, other sizes at all.
        const RESIZE = 16;
        /// Each end of a data ring says at which index it wants an event.
        const EVENT_INDEX = 32;
    }
}

/// The nodes, each of which is `1` where its extension is there.
const NODES: [(&str, Extensions); 6] = [
    ("feature-options", Extensions::OPTIONS),
    ("feature-shutdown", Extensions::SHUTDOWN),
    ("feature-names", Extensions::NAMES),
    ("feature-ipv6", Extensions::IPV6),
    ("feature-resize", Extensions::RESIZE),
    ("feature-event-index", Extensions::EVENT_INDEX),
];

impl Extensions {
    /// The names of the nodes, in the order in which [`read`](Extensions::read) wants their values.
    pub fn node_names() -> impl Iterator<Item = &'static str> {
        NODES.iter().map(|(name, _)| *name)
    }

    /// The nodes that say which extensions there are, and which not: what an earlier version of this
    /// end has left in xenstore must not stay.
    pub fn nodes(self) -> impl Iterator<Item = (&'static str, String)> {
        NODES.iter().map(move |&(name, one)| (name, u8::from(self.contains(one)).to_string()))
    }

    /// The extensions that the other end has, by its nodes. An error names the node.
    pub fn read(nodes: &[Option<String>]) -> Result<Extensions, String> {
        let mut all = Extensions::empty();
        for ((name, one), value) in NODES.into_iter().zip(nodes) {
            match value.as_deref().map(str::trim) {
                Some("1") => all |= one,
                Some("0") | None => {}
                Some(value) => return Err(format!("its node `{name}` is `{value}`, not 0 or 1")),
            }
        }
        Ok(all)
    }

    /// The names that the extensions have in xenstore, without their prefix.
    pub fn names(self) -> Vec<&'static str> {
        let there = NODES.iter().filter(|(_, one)| self.contains(*one));
        there.map(|(name, _)| name.trim_start_matches("feature-")).collect()
    }
}

/// The first number of a command that is an extension.
const FIRST: u32 = 256;

/// The number of an extension's command.
pub(super) fn number(command: Command) -> Option<u32> {
    Some(match command {
        Command::SetOption => FIRST,
        Command::GetOption => FIRST + 1,
        Command::Shutdown => FIRST + 2,
        Command::LocalName => FIRST + 3,
        Command::PeerName => FIRST + 4,
        Command::Resize => FIRST + 5,
        Command::Unknown(number) => number,
        _ => return None,
    })
}

/// An extension's command.
pub(super) fn command(number: u32) -> Command {
    match number.wrapping_sub(FIRST) {
        0 => Command::SetOption,
        1 => Command::GetOption,
        2 => Command::Shutdown,
        3 => Command::LocalName,
        4 => Command::PeerName,
        5 => Command::Resize,
        _ => Command::Unknown(number),
    }
}

/// The extension that a command is part of.
pub(super) fn extension_of(command: Command) -> Option<Extensions> {
    Some(match command {
        Command::SetOption | Command::GetOption => Extensions::OPTIONS,
        Command::Shutdown => Extensions::SHUTDOWN,
        Command::LocalName | Command::PeerName => Extensions::NAMES,
        Command::Resize => Extensions::RESIZE,
        _ => return None,
    })
}

/// Where a command's own fields start, in every dialect.
pub(super) const FIELDS: usize = 16;

/// Writes the fields of a command, those of RESIZE left out.
pub(super) fn encode_fields(call: &Call, slot: &mut [u8]) {
    match call {
        Call::SetOption { option, value } => {
            put(slot, FIELDS, option.number().to_le_bytes());
            put(slot, FIELDS + 4, value.to_le_bytes());
        }
        Call::GetOption { option } => put(slot, FIELDS, option.number().to_le_bytes()),
        Call::Shutdown { how } => put(slot, FIELDS, (*how as u32).to_le_bytes()),
        _ => {}
    }
}

/// Reads the fields of a command, those of RESIZE left out. [`Errno::ENOTSUP`] for another command.
pub(super) fn decode_fields(command: Command, slot: &[u8]) -> Result<Call, Errno> {
    let option = || SocketOption::from_number(u32_at(slot, FIELDS));
    Ok(match command {
        Command::SetOption => {
            let value = u32_at(slot, FIELDS + 4);
            if i32::try_from(value).is_err() {
                return Err(Errno::EINVAL);
            }
            Call::SetOption { option: option()?, value }
        }
        Command::GetOption => Call::GetOption { option: option()? },
        Command::Shutdown => Call::Shutdown { how: How::from_number(u32_at(slot, FIELDS))? },
        Command::LocalName => Call::LocalName,
        Command::PeerName => Call::PeerName,
        _ => return Err(Errno::ENOTSUP),
    })
}

/// Where a response's name starts, in every dialect, and how long it is with the length behind it.
const NAME: usize = 24;
const NAME_LEN: usize = NAME + address::FIELD;
/// A response that may have a name.
pub(super) const NAMED_RESPONSE: usize = NAME_LEN + 4;

/// Writes the name of a response, or that it has none.
pub(super) fn put_name(slot: &mut [u8], name: Option<SocketAddr>) {
    let mut field = [0; address::FIELD];
    let len = name.map_or(0, |name| address::encode(name, &mut field));
    put(slot, NAME, field);
    put(slot, NAME_LEN, len.to_le_bytes());
}

/// The name of a response. What cannot be one is none.
pub(super) fn name_at(slot: &[u8]) -> Option<SocketAddr> {
    address::decode(&bytes(slot, NAME), u32_at(slot, NAME_LEN)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_say_what_there_is_and_what_not() {
        let some = Extensions::NAMES | Extensions::RESIZE;
        let values: Vec<_> = some.nodes().map(|(_, value)| Some(value)).collect();
        assert_eq!(Extensions::read(&values), Ok(some));
        assert_eq!(Extensions::read(&[const { None }; NODES.len()]), Ok(Extensions::empty()));
        assert!(Extensions::node_names().eq(some.nodes().map(|(name, _)| name)));
        let wrong = Extensions::read(&[Some("yes".into())]).unwrap_err();
        assert!(wrong.contains("feature-options") && wrong.contains("yes"), "{wrong}");
        assert_eq!(some.names(), ["names", "resize"]);
    }

    #[test]
    fn every_extension_has_a_node() {
        let all = NODES.iter().fold(Extensions::empty(), |all, (_, one)| all | *one);
        assert_eq!(all, Extensions::all());
    }
}
