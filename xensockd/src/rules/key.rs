//! Which guests an entry of the rules is for.

use std::fmt;
use std::str::FromStr;

/// How a guest is known: by what only the toolstack can write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The name that `xl list` shows.
    pub name: Option<String>,
    /// The UUID, in lower case.
    pub uuid: Option<String>,
    /// Whether this domain may not read them, so that no entry is known to be for the guest.
    pub is_hidden: bool,
}

/// The guests of an entry. Those that match first are the more specific ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// One guest, in lower case.
    Uuid(String),
    /// One guest.
    Name(String),
    /// All guests whose name is this one, where `*` stands for any characters.
    Pattern(String),
}

impl Key {
    /// Whether a guest is one of them.
    pub fn matches(&self, guest: &Identity) -> bool {
        match self {
            Key::Uuid(uuid) => guest.uuid.as_ref() == Some(uuid),
            Key::Name(name) => guest.name.as_ref() == Some(name),
            Key::Pattern(pattern) => guest.name.as_ref().is_some_and(|name| like(pattern, name)),
        }
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(uuid) = text.strip_prefix("uuid:") {
            let parts: Vec<_> = uuid.split('-').map(str::len).collect();
            let digits = uuid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
            if parts != [8, 4, 4, 4, 12] || !digits {
                return Err(format!(
                    "`{uuid}` is not a UUID such as 3c9b1f0e-8b5d-4c7e-9f2a-6d1e0b7a5c43, which \
                     `xl list -v` shows"
                ));
            }
            return Ok(Key::Uuid(uuid.to_ascii_lowercase()));
        }
        let strange = |byte: u8| byte.is_ascii_control() || byte == b'/';
        if text.is_empty() || text.bytes().any(strange) {
            return Err(format!("{text:?} is not a guest's name, which `xl list` shows"));
        }
        Ok(if text.contains('*') { Key::Pattern(text.into()) } else { Key::Name(text.into()) })
    }
}

/// As in a file of rules.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        match self {
            Key::Uuid(uuid) => write!(f, "[guest.\"uuid:{uuid}\"]"),
            Key::Name(name) if name.bytes().all(plain) => write!(f, "[guest.{name}]"),
            Key::Name(name) | Key::Pattern(name) => write!(f, "[guest.{name:?}]"),
        }
    }
}

fn like(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let Some((middle, last)) = rest.rsplit_once('*') else { return name.ends_with(rest) };
    for part in middle.split('*') {
        // The first occurrence leaves the most for the others.
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pattern_matches_names() {
        for (pattern, matching, others) in [
            ("web-*", "web-1 web- web-a-b", "web aweb-1 Web-1"),
            ("*-db", "a-db -db", "a-db1 db"),
            ("*", "anything x", ""),
            ("a*b*c", "abc axbxc abbcc", "ab ac acb xabc"),
            ("a*a", "aa aba", "a"),
            ("**", "x", ""),
        ] {
            for name in matching.split_whitespace() {
                assert!(like(pattern, name), "{pattern} {name}");
            }
            for name in others.split_whitespace() {
                assert!(!like(pattern, name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn keys_are_uuids_names_and_patterns() {
        let uuid = "3C9B1F0E-8B5D-4C7E-9F2A-6D1E0B7A5C43";
        let key: Key = format!("uuid:{uuid}").parse().unwrap();
        assert_eq!(key, Key::Uuid(uuid.to_ascii_lowercase()));
        assert_eq!("web".parse::<Key>().unwrap().to_string(), "[guest.web]");
        assert_eq!("my web".parse::<Key>().unwrap().to_string(), "[guest.\"my web\"]");
        assert_eq!("web-*".parse::<Key>().unwrap().to_string(), "[guest.\"web-*\"]");
        for wrong in ["", "uuid:", "uuid:12", &format!("uuid:{uuid}-"), "a/b", "a\nb"] {
            assert!(wrong.parse::<Key>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_name_whose_middle_becomes_a_star_matches(
            name in "[ab]{0,8}", at in 0..9usize, len in 0..9usize
        ) {
            let at = at.min(name.len());
            let end = (at + len).min(name.len());
            let pattern = format!("{}*{}", &name[..at], &name[end..]);
            prop_assert!(like(&pattern, &name));
        }
    }
}
