//! The file of rules.

use super::key::{Identity, Key};
use super::listen::{Listen, Mapping};
use super::target::Target;
use super::{Mapped, Rules, Section};
use indexmap::IndexMap;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use xensock::back::Limits;

/// Where the file is, unless the command line names another.
pub const DEFAULT: &str = "/etc/xensockd.toml";

/// The rules for all guests.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The file that they are from, or would be.
    path: PathBuf,
    is_from_file: bool,
    strict: bool,
    metrics: Option<SocketAddr>,
    defaults: Entry,
    /// In the order of the file.
    guests: Vec<(Key, Entry)>,
    mapped: Mapped,
}

/// The whole file.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Root {
    strict: bool,
    metrics: Option<Spanned<SocketAddr>>,
    metrics_for_others: bool,
    defaults: Entry,
    guest: IndexMap<Spanned<String>, Entry>,
}

/// The settings of some guests. What is missing comes from `[defaults]`, and what is missing there,
/// too, is built in.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Entry {
    listen: Option<Listen>,
    share_ports: Option<bool>,
    connect: Option<Vec<Target>>,
    connect_deny: Option<Vec<Target>>,
    sockets: Option<Number<1, 1_000_000>>,
    ring_pages: Option<Number<3, 16_777_216>>,
    backlog: Option<Number<1, 1_000_000>>,
    socket_buffer: Option<Rate<1_000_000_000>>,
    max_ring_order: Option<Number<1, 9>>,
    connections_per_second: Option<Rate<1_000_000>>,
    bytes_in_per_second: Option<Rate<1_000_000_000_000>>,
    bytes_out_per_second: Option<Rate<1_000_000_000_000>>,
}

impl Entry {
    /// Allows no listening socket and no connection.
    fn nothing() -> Self {
        let (listen, connect) = (Some(Listen::nowhere()), Some(Vec::new()));
        Entry { listen, connect, share_ports: Some(false), ..Entry::default() }
    }
}

impl Policy {
    /// The rules without a file, which are safe for guests that nobody trusts.
    pub fn built_in(path: &Path) -> Self {
        let defaults = Entry::default();
        Policy {
            path: path.into(),
            is_from_file: false,
            strict: false,
            metrics: None,
            defaults,
            guests: Vec::new(),
            mapped: Mapped::default(),
        }
    }

    /// Reads the rules from a file, or from the default one if it exists. An error is a line for
    /// the user.
    pub fn read(path: Option<&Path>) -> Result<Self, String> {
        Policy::read_at(path.unwrap_or(Path::new(DEFAULT)), path.is_some())
    }

    /// Reads the rules again. A file that there was must not vanish, as the rules without it are
    /// others.
    pub fn read_again(&self) -> Result<Self, String> {
        Policy::read_at(&self.path, self.is_from_file)
    }

    fn read_at(path: &Path, must_exist: bool) -> Result<Self, String> {
        match std::fs::read_to_string(path) {
            Ok(text) => Policy::parse(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {
                Ok(Policy::built_in(path))
            }
            Err(error) => Err(format!("cannot read the rules in {}: {error}", path.display())),
        }
    }

    /// Reads the rules from text. An error is a line for the user: file, line, column, reason.
    pub fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let failed = |place: Option<Range<usize>>, reason: &str| {
            let before = &text[..place.map_or(0, |place| place.start.min(text.len()))];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            format!("{}:{line}:{column}: {reason}", path.display())
        };
        let mut root: Root = toml::from_str(text)
            .map_err(|error| failed(error.span(), &explained(error.message())))?;
        let mut guests: Vec<(Key, Entry)> = Vec::new();
        for (name, entry) in std::mem::take(&mut root.guest) {
            let key: Key = name
                .get_ref()
                .parse()
                .map_err(|error: String| failed(Some(name.span()), &error))?;
            if guests.iter().any(|(other, _)| *other == key) {
                let reason = format!("there are rules for {key} above");
                return Err(failed(Some(name.span()), &reason));
            }
            guests.push((key, entry));
        }
        let Root { strict, metrics, metrics_for_others, defaults, .. } = root;
        if let Some(at) = &metrics
            && !(at.get_ref().ip().is_loopback() || metrics_for_others)
        {
            let reason = "other hosts reach this address: if that is meant, write \
                          metrics-for-others = true above it";
            return Err(failed(Some(at.span()), reason));
        }
        let metrics = metrics.map(Spanned::into_inner);
        let policy = Policy {
            path: path.into(),
            is_from_file: true,
            strict,
            metrics,
            defaults,
            guests,
            mapped: Mapped::default(),
        };
        let mapped = policy.mappings().map_err(|(place, reason)| failed(Some(place), &reason))?;
        Ok(Policy { mapped, ..policy })
    }

    /// The addresses and ports of this domain to which entries lead. Fails if two entries lead to
    /// the same one.
    fn mappings(&self) -> Result<Mapped, (Range<usize>, String)> {
        let defaults = (Section::Defaults, &self.defaults);
        let guests = self.guests.iter().map(|(key, entry)| (Section::Guest(key.clone()), entry));
        let mut all: Vec<(Section, &Spanned<Mapping>)> = Vec::new();
        for (section, entry) in std::iter::once(defaults).chain(guests) {
            for mapping in entry.listen.iter().flat_map(Listen::mapped) {
                let other = all.iter().find(|(other, former)| {
                    *other != section && former.get_ref().overlaps(mapping.get_ref())
                });
                if let Some((other, _)) = other {
                    let target = mapping.get_ref().target();
                    let reason = format!("{target} also belongs to {other}");
                    return Err((mapping.span(), reason));
                }
                all.push((section.clone(), mapping));
            }
        }
        Ok(all.into_iter().map(|(section, mapping)| (section, *mapping.get_ref())).collect())
    }

    /// Whether connections and listeners that other rules no longer allow are to end.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// Where Prometheus gets the daemon's numbers.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// The number of entries for guests.
    pub fn guests(&self) -> usize {
        self.guests.len()
    }

    /// The rules for a guest: those of its UUID, or else of its name, or else of the first pattern
    /// that matches. A guest whose name is hidden may do nothing if there is any entry: it could be
    /// the guest's, and forbid what `[defaults]` allows.
    pub fn rules(&self, guest: &Identity) -> Rules {
        let rank = |key: &Key| match key {
            Key::Uuid(_) => 0,
            Key::Name(_) => 1,
            Key::Pattern(_) => 2,
        };
        let matching = self.guests.iter().filter(|(key, _)| key.matches(guest));
        // The first one of those with the same rank.
        let found = matching.min_by_key(|(key, _)| rank(key));
        let is_hidden = guest.is_hidden && !self.guests.is_empty();
        let none = if is_hidden { Entry::nothing() } else { Entry::default() };
        let found = found.filter(|_| !is_hidden);
        let (own, defaults) = (found.map_or(&none, |(_, entry)| entry), &self.defaults);
        let section = match found {
            Some((key, _)) => Section::Guest(key.clone()),
            None if is_hidden => Section::Hidden,
            None => Section::Defaults,
        };
        // Where to write more: the guest's own entry, if it has one or can have one.
        let remedy = match (&section, &guest.name) {
            (Section::Defaults, Some(name)) => Section::Guest(Key::Name(name.clone())),
            _ => section.clone(),
        };
        macro_rules! setting {
            ($name:ident) => {
                own.$name.as_ref().or(defaults.$name.as_ref())
            };
        }
        let built_in = Limits::default();
        let limits = Limits {
            sockets: setting!(sockets).map_or(built_in.sockets, |number| number.0 as usize),
            pages: setting!(ring_pages).map_or(built_in.pages, |number| number.0 as usize),
            backlog: setting!(backlog).map_or(built_in.backlog, |number| number.0 as usize),
            max_ring_order: setting!(max_ring_order)
                .map_or(built_in.max_ring_order, |number| number.0 as u32),
            connections_per_second: setting!(connections_per_second)
                .and_then(|limit| limit.0.map(|rate| rate as u32)),
            bytes_in_per_second: setting!(bytes_in_per_second).and_then(|limit| limit.0),
            bytes_out_per_second: setting!(bytes_out_per_second).and_then(|limit| limit.0),
            linger: built_in.linger,
        };
        let shares = setting!(share_ports).copied().unwrap_or(false);
        Rules {
            listen: setting!(listen).cloned().unwrap_or_else(Listen::unprivileged),
            connect: setting!(connect).cloned().unwrap_or_else(|| vec![Target::REMOTE]),
            connect_deny: setting!(connect_deny).cloned().unwrap_or_default(),
            shares_ports: shares,
            limits,
            socket_buffer: setting!(socket_buffer)
                .and_then(|limit| limit.0.map(|bytes| bytes as u32)),
            mapped: self.mapped.clone(),
            section,
            remedy,
            path: self.path.clone(),
        }
    }
}

/// Where they are from, for the log.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, guests) = (self.path.display(), self.guests.len());
        match self.is_from_file {
            true => write!(f, "the rules of {path}, with {guests} entries for guests"),
            false => write!(
                f,
                "there is no {path}, so guests may listen on ports from 1024 on and connect to \
                 other hosts"
            ),
        }
    }
}

/// A message of the parser, in one line, and with the known key that is most like an unknown one.
fn explained(message: &str) -> String {
    let message = message.lines().collect::<Vec<_>>().join(", ");
    let Some(rest) = message.strip_prefix("unknown field `") else { return message };
    let mut names = rest.split('`').step_by(2);
    let unknown = names.next().unwrap_or_default();
    let nearest = names.filter(|name| !name.is_empty()).max_by(|one, other| {
        let likeness = |name: &str| strsim::jaro_winkler(unknown, name);
        likeness(one).total_cmp(&likeness(other))
    });
    match nearest {
        Some(nearest) => format!("unknown key `{unknown}`; the nearest known one is `{nearest}`"),
        None => format!("unknown key `{unknown}`"),
    }
}

/// A whole number within these limits.
#[derive(Clone, Copy, Debug)]
struct Number<const LEAST: u64, const MOST: u64>(u64);

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for Number<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value<const LEAST: u64, const MOST: u64>;
        impl<const LEAST: u64, const MOST: u64> Visitor<'_> for Value<LEAST, MOST> {
            type Value = Number<LEAST, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {LEAST} to {MOST}")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                let valid = u64::try_from(number).ok();
                let valid = valid.filter(|number| (LEAST..=MOST).contains(number));
                valid.map(Number).ok_or_else(|| {
                    E::custom(format!("{number} is not a number from {LEAST} to {MOST}"))
                })
            }
        }
        deserializer.deserialize_i64(Value)
    }
}

/// A number, or no limit.
#[derive(Clone, Copy, Debug)]
struct Rate<const MOST: u64>(Option<u64>);

impl<'de, const MOST: u64> Deserialize<'de> for Rate<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value<const MOST: u64>;
        impl<const MOST: u64> Visitor<'_> for Value<MOST> {
            type Value = Rate<MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or \"unlimited\"")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Rate<MOST>, E> {
                let number =
                    Number::<1, MOST>::deserialize(de::value::I64Deserializer::new(number));
                number.map(|number| Rate(Some(number.0)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate<MOST>, E> {
                match text {
                    "unlimited" => Ok(Rate(None)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policy, String> {
        Policy::parse(Path::new("rules.toml"), text)
    }

    fn guest(name: &str) -> Identity {
        Identity { name: Some(name.into()), uuid: Some("0000".into()), is_hidden: false }
    }

    #[test]
    fn the_most_specific_entry_counts_and_defaults_fill_it_up() {
        let uuid = "3c9b1f0e-8b5d-4c7e-9f2a-6d1e0b7a5c43";
        let policy = parse(&format!(
            r#"
            [defaults]
            sockets = 1
            ring-pages = 77
            [guest."w*"]
            sockets = 5
            [guest."web-*"]
            sockets = 4
            [guest.web-1]
            sockets = 3
            [guest."uuid:{uuid}"]
            sockets = 2
            "#
        ))
        .unwrap();
        let sockets = |guest: &Identity| policy.rules(guest).limits.sockets;
        assert_eq!(sockets(&Identity { uuid: Some(uuid.into()), ..guest("web-1") }), 2);
        assert_eq!(sockets(&guest("web-1")), 3);
        assert_eq!(sockets(&guest("web-2")), 5, "the first pattern counts");
        assert_eq!(sockets(&guest("db")), 1);
        assert_eq!(sockets(&Identity::default()), 1);
        assert_eq!(policy.rules(&guest("web-1")).limits.pages, 77);
        assert_eq!(policy.rules(&guest("web-1")).limits.max_ring_order, 9, "built in");
    }

    #[test]
    fn a_guest_whose_name_is_hidden_may_do_nothing_if_there_is_any_entry() {
        let hidden = Identity { is_hidden: true, ..Identity::default() };
        let asked = "10.0.0.1:5000".parse().unwrap();
        let rules = parse("[guest.\"*\"]").unwrap().rules(&hidden);
        assert_eq!((rules.listens(asked), rules.connect.len()), (None, 0));
        assert!(rules.no_listen(asked).to_string().contains("cannot be read"));
        let rules = parse("[defaults]\nlisten = [5000]").unwrap().rules(&hidden);
        assert_eq!((rules.listens(asked), rules.section), (Some(asked), Section::Defaults));
    }

    #[test]
    fn all_settings_are_read() {
        let policy = parse(
            r#"
            strict = true
            metrics = "[::]:9476"
            metrics-for-others = true
            [defaults]
            bytes-in-per-second = 5
            [guest.web]
            listen = { 80 = "10.0.0.5:8080" }
            share-ports = true
            connect = ["remote:443"]
            connect-deny = ["10.0.0.0/8"]
            sockets = 10
            ring-pages = 100
            backlog = 50
            socket-buffer = 65_536
            max-ring-order = 4
            connections-per-second = 20
            bytes-in-per-second = "unlimited"
            bytes-out-per-second = 1_000_000
            "#,
        )
        .unwrap();
        assert!(policy.is_strict());
        assert_eq!(policy.metrics(), Some("[::]:9476".parse().unwrap()));
        let rules = policy.rules(&guest("web"));
        assert_eq!(rules.limits.bytes_in_per_second, None);
        assert_eq!(policy.rules(&guest("x")).limits.bytes_in_per_second, Some(5));
        assert_eq!(rules.limits.bytes_out_per_second, Some(1_000_000));
        assert_eq!(rules.limits.connections_per_second, Some(20));
        assert_eq!((rules.limits.sockets, rules.limits.pages), (10, 100));
        assert_eq!((rules.limits.max_ring_order, rules.limits.backlog), (4, 50));
        assert_eq!(rules.socket_buffer, Some(65_536));
        assert!(rules.shares_ports);
    }

    #[test]
    fn mistakes_are_explained_with_their_place() {
        for (text, expected) in [
            ("strict = 1", "rules.toml:1:10: invalid type: integer `1`, expected a boolean"),
            ("metrics = 9476", "rules.toml:1:11: invalid type: integer"),
            ("metrics = \"localhost\"", "rules.toml:1:11: invalid socket address"),
            ("\nmetrics = \"0.0.0.0:9476\"", "rules.toml:2:11: other hosts reach this address"),
            ("[defaults\n", "rules.toml:1:10: "),
            ("x = \n", "rules.toml:1:5: "),
            (
                "[guest.a]\nlisen = [80]",
                "rules.toml:2:1: unknown key `lisen`; the nearest known one is `listen`",
            ),
            (
                "[guests.a]",
                "rules.toml:1:2: unknown key `guests`; the nearest known one is `guest`",
            ),
            (
                "[guest.a]\nmax-sockets = 5",
                "rules.toml:2:1: unknown key `max-sockets`; the nearest known one is `sockets`",
            ),
            (
                "[guest.a]\nconnect = [\"remote\",\n  \"publik\"]",
                "rules.toml:3:3: `publik` is neither",
            ),
            ("[guest.a]\nlisten = [ 80, 443, 80 ]", "80 and 80 overlap"),
            ("[guest.a]\nlisten = { 80 = \"x\" }", "rules.toml:2:17: `x` is neither"),
            ("[guest.a]\nsockets = 0", "rules.toml:2:11: 0 is not a number from 1 to 1000000"),
            ("[guest.a]\nsockets = \"many\"", "rules.toml:2:11: invalid type: string \"many\""),
            ("[guest.a]\nmax-ring-order = 10", "10 is not a number from 1 to 9"),
            ("[guest.a]\nbytes-in-per-second = \"fast\"", "rules.toml:2:23: "),
            ("[guest.a]\n[guest.a]", "duplicate key"),
            ("[guest.\"a/b\"]", "rules.toml:1:8: \"a/b\" is not a guest's name"),
            ("[guest.\"uuid:1\"]", "rules.toml:1:8: `1` is not a UUID"),
            (
                "[guest.a]\nlisten = { 80 = \"10.0.0.5:80\" }\n\
                 [guest.b]\nlisten = { 8080 = \"10.0.0.5:80\" }",
                "rules.toml:4:12: 10.0.0.5:80 also belongs to [guest.a]",
            ),
            (
                "[guest.a]\nlisten = { 80 = \"10.0.0.5:80\" }\n\
                 [defaults]\nlisten = { \"70-90\" = \"0.0.0.0\" }",
                "belongs to [defaults]",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}\n{error}\n{expected}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn the_example_has_the_built_in_values_and_the_documents_have_no_mistakes() {
        let example = include_str!("../../dist/xensockd.toml");
        let (written, built_in) = (parse(example).unwrap(), parse("").unwrap());
        let [written, built_in] = [written, built_in].map(|it| it.rules(&Identity::default()));
        assert_eq!(written.limits, built_in.limits);
        assert_eq!(written.connect, built_in.connect);
        assert_eq!(written.connect_deny, built_in.connect_deny);
        assert_eq!(written.shares_ports, built_in.shares_ports);
        assert_eq!(written.socket_buffer, built_in.socket_buffer);
        assert_eq!(written.listen.to_string(), built_in.listen.to_string());
        // Its entries are commented out.
        let (before, entries) = example.split_once("#\n# [guest.web]").unwrap();
        let entries =
            format!("[guest.web]{}", entries.replace("\n# ", "\n").replace("\n#\n", "\n"));
        assert_eq!(parse(&format!("{before}{entries}")).unwrap().guests(), 3);
        let documents =
            [include_str!("../../../README.md"), include_str!("../../../docs/operations.md")];
        let blocks: Vec<_> = documents
            .iter()
            .flat_map(|text| text.split("```toml\n").skip(1))
            .filter_map(|rest| rest.split("```").next())
            .collect();
        assert!(blocks.len() >= 5);
        for block in blocks {
            parse(block).unwrap();
        }
    }

    #[test]
    fn an_address_that_is_named_for_a_guest_is_closed_to_all_others() {
        let policy = parse(
            r#"
            [guest."shop-*"]
            listen = { 80 = "10.0.0.5:8080", "9000-9099" = "10.0.0.5" }
            [guest.all]
            listen = { 80 = 8090 }
            "#,
        )
        .unwrap();
        for (name, at, may) in [
            ("db", "10.0.0.5:8080", false),
            ("db", "0.0.0.0:8080", false),
            ("db", "[::]:8080", false),
            ("db", "[::ffff:10.0.0.5]:8080", false),
            ("db", "10.0.0.6:8080", true),
            ("db", "10.0.0.5:8081", true),
            ("db", "10.0.0.5:9042", false),
            ("db", "10.0.0.6:8090", false),
            ("shop-1", "0.0.0.0:80", true),
            ("shop-2", "0.0.0.0:9042", true),
            ("all", "[::1]:80", true),
        ] {
            let at = at.parse().unwrap();
            assert_eq!(policy.rules(&guest(name)).listens(at).is_some(), may, "{name} {at}");
        }
        let at = "0.0.0.0:8080".parse().unwrap();
        let reason = policy.rules(&guest("db")).no_listen(at).to_string();
        assert_eq!(reason, "0.0.0.0:8080 belongs to [guest.\"shop-*\"] in rules.toml");

        // An entry may have its mappings from the defaults.
        let inherits = "[defaults]\nlisten = { 80 = 8080 }\n[guest.web]\nsockets = 5";
        let rules = parse(inherits).unwrap().rules(&guest("web"));
        assert!(rules.listens("0.0.0.0:80".parse().unwrap()).is_some());
    }

    #[test]
    fn a_file_that_appears_is_read_and_one_that_vanishes_is_missed() {
        let path = std::env::temp_dir().join(format!("xensockd-again-{}", std::process::id()));
        let without = Policy::built_in(&path);
        assert_eq!(without.read_again().unwrap().guests(), 0);
        std::fs::write(&path, "[guest.web]").unwrap();
        let with = without.read_again().unwrap();
        assert_eq!(with.guests(), 1);
        std::fs::write(&path, "[guest.web").unwrap();
        assert!(with.read_again().is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(with.read_again().is_err());
    }

    #[test]
    fn without_a_file_the_rules_are_safe() {
        assert_eq!(parse("").unwrap().guests(), 0);
        assert!(Policy::read(Some(Path::new("/no/such/file"))).is_err());
        let rules = Policy::built_in(Path::new(DEFAULT)).rules(&guest("web"));
        assert_eq!(rules.listen.resolve("0.0.0.0:1023".parse().unwrap()), None);
        assert_eq!(rules.connect, [Target::REMOTE]);
        assert!(!rules.shares_ports);
    }
}
