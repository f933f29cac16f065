//! Extensions of the plain dialects; `docs/protocol.md` is the specification.
//!
//! The backend announces each extension in a node, and the frontend accepts it in a node of the
//! same name. An extension is in force while the two ends that agreed on it are connected. Its
//! commands have the same numbers and fields in both dialects.

use super::message::Command;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bitflags::bitflags;
use xen::xenstore::wire::shown;

bitflags! {
    /// A set of extensions.
    ///
    /// ```
    /// use xensock::wire::Extensions;
    ///
    /// let both = Extensions::OPTIONS | Extensions::IPV6;
    /// assert_eq!(both.names(), ["options", "ipv6"]);
    /// ```
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Extensions: u8 {
        /// SETSOCKOPT and GETSOCKOPT.
        const OPTIONS = 1;
        /// SHUTDOWN: closes one direction of a connection alone.
        const SHUTDOWN = 2;
        /// GETSOCKNAME and GETPEERNAME, and addresses in some responses.
        const NAMES = 4;
        /// IPv6 addresses.
        const IPV6 = 8;
        /// RESIZE: gives an open connection a ring of another size. In draft 1 it also permits
        /// rings of other sizes at all.
        const RESIZE = 16;
        /// Each end of a data ring states the index at which it needs an event.
        const EVENT_INDEX = 32;
        /// Datagram sockets. They need [`EVENT_INDEX`](Extensions::EVENT_INDEX).
        const DATAGRAM = 64;
    }
}

/// The nodes, each of which is `1` if its extension is available.
const NODES: [(&str, Extensions); 7] = [
    ("feature-options", Extensions::OPTIONS),
    ("feature-shutdown", Extensions::SHUTDOWN),
    ("feature-names", Extensions::NAMES),
    ("feature-ipv6", Extensions::IPV6),
    ("feature-resize", Extensions::RESIZE),
    ("feature-event-index", Extensions::EVENT_INDEX),
    ("feature-datagram", Extensions::DATAGRAM),
];

/// The commands, their numbers, and the extension of each.
pub(super) const COMMANDS: [(Command, u32, Extensions); 9] = [
    (Command::SetOption, 256, Extensions::OPTIONS),
    (Command::GetOption, 257, Extensions::OPTIONS),
    (Command::Shutdown, 258, Extensions::SHUTDOWN),
    (Command::LocalAddr, 259, Extensions::NAMES),
    (Command::PeerAddr, 260, Extensions::NAMES),
    (Command::Resize, 261, Extensions::RESIZE),
    (Command::Open, 263, Extensions::DATAGRAM),
    (Command::Join, 264, Extensions::DATAGRAM),
    (Command::Leave, 265, Extensions::DATAGRAM),
];

impl Extensions {
    /// The nodes that announce this set. Absent extensions get a `0`, which overwrites what an
    /// earlier version of this end wrote.
    pub fn nodes(self) -> impl Iterator<Item = (&'static str, String)> {
        NODES.iter().map(move |&(name, one)| (name, u8::from(self.contains(one)).to_string()))
    }

    /// Reads the set that the other end announces. `node` reads one of its nodes. An error names
    /// the node: ``node `NAME` is …``.
    pub async fn read(node: &impl AsyncFn(&str) -> Option<String>) -> Result<Extensions, String> {
        let mut all = Extensions::empty();
        for (name, one) in NODES {
            match node(name).await.as_deref().map(str::trim) {
                Some("1") => all |= one,
                Some("0") | None => {}
                Some(value) => {
                    let value = shown(value);
                    return Err(format!("node `{name}` is `{value}`, not 0 or 1"));
                }
            }
        }
        Ok(all)
    }

    /// The names of the extensions' nodes, without their prefix.
    pub fn names(self) -> Vec<&'static str> {
        let contained = NODES.iter().filter(|(_, one)| self.contains(*one));
        contained.map(|(name, _)| name.trim_start_matches("feature-")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn read(nodes: &[(&str, &str)]) -> Result<Extensions, String> {
        let value = async |name: &str| {
            nodes.iter().find(|node| node.0 == name).map(|node| node.1.to_string())
        };
        Extensions::read(&value).now_or_never().expect("no node is waited for")
    }

    #[test]
    fn nodes_announce_what_is_available_and_what_is_not() {
        let some = Extensions::NAMES | Extensions::RESIZE;
        let values: Vec<_> = some.nodes().collect();
        let nodes: Vec<_> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(nodes.len(), NODES.len());
        assert_eq!(read(&nodes), Ok(some));
        assert_eq!(read(&[]), Ok(Extensions::empty()));
        let wrong = read(&[("feature-options", "yes")]).unwrap_err();
        assert!(wrong.contains("feature-options") && wrong.contains("yes"), "{wrong}");
        assert_eq!(some.names(), ["names", "resize"]);
    }

    #[test]
    fn every_extension_has_a_node() {
        let all = NODES.iter().fold(Extensions::empty(), |all, (_, one)| all | *one);
        assert_eq!(all, Extensions::all());
    }
}
