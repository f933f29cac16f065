//! What each guest may do: where it may listen and connect, and how much it may have.
//!
//! [`Policy`] is a file of rules. [`Rules`] are those of one guest, and their decisions are pure
//! functions of an address.

mod file;
mod key;
mod listen;
mod place;
mod ports;
mod target;

pub use file::{DEFAULT, Policy};
pub use key::{Identity, Key};
pub use listen::{Listen, Mapping, covers, is_same};
pub use place::{OwnAddresses, Place, place};
pub use ports::Ports;
pub use target::{Destination, Target};

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use xensock::back::{Limit, Limits};

/// A section of the file of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Section {
    /// `[defaults]`
    Defaults,
    /// `[guest.NAME]`
    Guest(Key),
    /// An entry that is not known, as the guest's name cannot be read: nothing is allowed.
    Hidden,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Section::Defaults => f.write_str("[defaults]"),
            Section::Guest(key) => key.fmt(f),
            Section::Hidden => f.write_str("an unknown entry"),
        }
    }
}

/// The rules of one guest.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Where it may listen.
    pub listen: Listen,
    /// Where it may connect.
    pub connect: Vec<Target>,
    /// Where it may not connect, whatever `connect` says.
    pub connect_deny: Vec<Target>,
    /// Whether the guests of the same section may listen on the same port.
    pub shares_ports: bool,
    /// How much it may have.
    pub limits: Limits,
    /// The bytes that Linux may keep for each direction of a socket, unless it decides itself.
    pub socket_buffer: Option<u32>,
    /// Where this domain listens for the guests of one section, and for no other guest.
    mapped: Mapped,
    /// The section that they are from. The guests of one section can share ports.
    pub section: Section,
    /// The section in which to write more for this guest.
    remedy: Section,
    path: PathBuf,
}

/// The addresses and ports of this domain that the rules name, each with its section.
type Mapped = Arc<[(Section, Mapping)]>;

/// A call that the rules do not allow, in words: the reason, and what to write to allow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Rules {
    /// Whether the guest may connect to this address.
    pub fn may_connect(&self, to: &Destination) -> bool {
        self.connect.iter().any(|target| target.allows(to))
            && !self.connect_deny.iter().any(|target| target.forbids(to))
    }

    /// Why the guest may not connect to this address.
    pub fn no_connect(&self, to: &Destination) -> Refusal {
        let list = |targets: &[String]| format!("[{}]", targets.join(", "));
        let quoted = |target: &Target| format!("\"{target}\"");
        let connect: Vec<_> = self.connect.iter().map(quoted).collect();
        if let Some(target) = self.connect_deny.iter().find(|target| target.forbids(to)) {
            return self.refusal(
                "connect-deny",
                &format!("has \"{target}\""),
                "take it out".into(),
            );
        }
        let (reason, mut more) = (format!("is {}", list(&connect)), connect);
        more.push(format!("\"{to}\""));
        self.refusal("connect", &reason, format!("write connect = {}", list(&more)))
    }

    /// The address at which to listen if the guest asks for this one, if it may.
    pub fn listens(&self, asked: SocketAddr) -> Option<SocketAddr> {
        self.listen.resolve(asked).filter(|at| self.owner(*at).is_none())
    }

    /// Whether this domain keeps an address for other guests.
    pub fn is_reserved(&self, at: SocketAddr) -> bool {
        self.owner(at).is_some()
    }

    /// The section for whose guests, and not for this one, this domain listens at an address.
    fn owner(&self, at: SocketAddr) -> Option<&Section> {
        if self.listen.mapped().any(|own| own.get_ref().leads_to(at)) {
            return None;
        }
        let mut others = self.mapped.iter();
        others.find(|(_, mapping)| mapping.leads_to(at)).map(|(section, _)| section)
    }

    /// Why the guest may not listen at this address.
    pub fn no_listen(&self, asked: SocketAddr) -> Refusal {
        if let Some(at) = self.listen.resolve(asked)
            && let Some(other) = self.owner(at)
        {
            return Refusal(format!("{at} belongs to {other} in {}", self.path.display()));
        }
        let more = format!("write listen = {}", self.listen.with(asked.port()));
        self.refusal("listen", &format!("is {}", self.listen), more)
    }

    /// Why the guest may not share ports.
    pub fn no_sharing(&self) -> Refusal {
        self.refusal("share-ports", "is false", "write share-ports = true".into())
    }

    /// Why a request beyond a limit failed.
    pub fn no_more(&self, limit: Limit) -> Refusal {
        let Limits { sockets, pages, connections_per_second: rate, .. } = self.limits;
        let (name, value) = match limit {
            Limit::Sockets => ("sockets", sockets),
            Limit::Pages => ("ring-pages", pages),
            Limit::Connections => {
                ("connections-per-second", rate.map_or(usize::MAX, |rate| rate as usize))
            }
        };
        self.refusal(name, &format!("is {value}"), format!("write a larger {name}"))
    }

    fn refusal(&self, setting: &str, state: &str, remedy: String) -> Refusal {
        if self.section == Section::Hidden {
            return Refusal("its name cannot be read, so no entry is known to be for it".into());
        }
        let (path, section) = (self.path.display(), &self.remedy);
        Refusal(format!("{setting} {state}; to allow it, {remedy} below {section} in {path}"))
    }
}
