//! A publication as text, which is what nodes of xenstore and the first frames of a TCP connection
//! have in them.
//!
//! ```text
//! 1 NODE EPOCH PHASE PAIR MET MESSAGES MESSAGE TRANSACTIONS PARAMETERS STATUS
//! ```
//!
//! NODE has 32 hexadecimal digits. PHASE is `idle`, `offered`, `ready`, `up` or `leaving`; PAIR is
//! its epoch, and 0 if it has none. All numbers are decimal. Each publication has exactly one text.
//! A transport may append words of its own.

use crate::Quota;
use crate::address::number;
use crate::life::{Epoch, NodeId, Phase, Publication};
use core::fmt;
use core::str::FromStr;
use thiserror::Error;

/// The most bytes of a publication's text, with the words that a transport appends.
pub const MAX_TEXT: usize = 256;

/// Why a text is not a publication.
#[expect(missing_docs, reason = "each has its message")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublicationError {
    #[error("it has more than {MAX_TEXT} bytes")]
    TooLong,
    #[error("it does not begin with 1, the only version that this end knows")]
    Version,
    #[error("its {0} is missing or invalid")]
    Field(&'static str),
    #[error("its quota needs {0} bytes, and at most {max} are believed", max = Quota::MAX_MEMORY)]
    Quota(u64),
    #[error("it goes on after its last word")]
    Words,
}

impl Publication {
    /// Reads a publication, and returns the words that a transport appended. They begin after the
    /// space, and are not checked.
    pub fn from_text(text: &str) -> Result<(Self, Option<&str>), PublicationError> {
        if text.len() > MAX_TEXT {
            return Err(PublicationError::TooLong);
        }
        let mut words = text.splitn(12, ' ');
        if words.next() != Some("1") {
            return Err(PublicationError::Version);
        }
        let node = field(words.next(), "node", |word| word.parse().ok())?;
        let epoch = field(words.next(), "epoch", |word| number(word).filter(|&epoch| epoch != 0))?;
        let phase = words.next();
        let pair = field(words.next(), "pair", number)?;
        let phase = field(phase, "phase", |word| phase_of(word, Epoch(pair)))?;
        let met = Epoch(field(words.next(), "met", number)?);
        let quota = Quota {
            messages: field(words.next(), "messages", number)?,
            message: field(words.next(), "message", number)?,
            transactions: field(words.next(), "transactions", number)?,
            parameters: field(words.next(), "parameters", number)?,
            status: field(words.next(), "status", number)?,
        };
        if !quota.is_believed() {
            return Err(PublicationError::Quota(quota.claim()));
        }
        Ok((Publication { node, epoch: Epoch(epoch), phase, met, quota }, words.next()))
    }
}

fn field<T>(
    word: Option<&str>,
    name: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, PublicationError> {
    word.and_then(read).ok_or(PublicationError::Field(name))
}

/// The phase with this name and pair, if it can have the pair.
fn phase_of(name: &str, pair: Epoch) -> Option<Phase> {
    Some(match (name, pair) {
        ("idle", Epoch(0)) => Phase::Idle,
        ("leaving", Epoch(0)) => Phase::Leaving,
        (_, Epoch(0)) => return None,
        ("offered", pair) => Phase::Offered(pair),
        ("ready", pair) => Phase::Ready(pair),
        ("up", pair) => Phase::Up(pair),
        _ => return None,
    })
}

impl FromStr for Publication {
    type Err = PublicationError;

    fn from_str(text: &str) -> Result<Self, PublicationError> {
        match Publication::from_text(text)? {
            (publication, None) => Ok(publication),
            (_, Some(_)) => Err(PublicationError::Words),
        }
    }
}

impl fmt::Display for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (phase, pair) = match self.phase {
            Phase::Idle => ("idle", Epoch(0)),
            Phase::Offered(pair) => ("offered", pair),
            Phase::Ready(pair) => ("ready", pair),
            Phase::Up(pair) => ("up", pair),
            Phase::Leaving => ("leaving", Epoch(0)),
        };
        let Publication { node, epoch, met, .. } = self;
        let Quota { messages, message, transactions, parameters, status } = self.quota;
        write!(f, "1 {node} {epoch} {phase} {pair} {met} ")?;
        write!(f, "{messages} {message} {transactions} {parameters} {status}")
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for NodeId {
    type Err = PublicationError;

    /// Reads 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, PublicationError> {
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let valid = text.len() == 32 && text.bytes().all(digit);
        let node = valid.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        Ok(NodeId(node.ok_or(PublicationError::Field("node"))?.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::{String, ToString};
    use proptest::prelude::*;

    const TEXT: &str = "1 000102030405060708090a0b0c0d0e0f 9 ready 7 5 4 256 8 64 32";

    fn publication() -> Publication {
        Publication {
            node: NodeId(core::array::from_fn(|at| at as u8)),
            epoch: Epoch(9),
            phase: Phase::Ready(Epoch(7)),
            met: Epoch(5),
            quota: Quota { messages: 4, message: 256, transactions: 8, parameters: 64, status: 32 },
        }
    }

    #[test]
    fn a_publication_has_the_text_that_is_documented() {
        assert_eq!(publication().to_string(), TEXT);
        assert_eq!(TEXT.parse(), Ok(publication()));
        for (phase, text) in [
            (Phase::Idle, "idle 0"),
            (Phase::Offered(Epoch(7)), "offered 7"),
            (Phase::Up(Epoch(u64::MAX)), "up 18446744073709551615"),
            (Phase::Leaving, "leaving 0"),
        ] {
            let publication = Publication { phase, ..publication() };
            let text = TEXT.replace("ready 7", text);
            assert_eq!(publication.to_string(), text);
            assert_eq!(text.parse(), Ok(publication));
        }
    }

    #[test]
    fn a_transport_may_append_words() {
        let read = |text: &str| Publication::from_text(text).map(|(_, words)| words.map(str::len));
        assert_eq!(read(TEXT), Ok(None));
        assert_eq!(read(&format!("{TEXT} grant 8 9")), Ok(Some(9)));
        assert_eq!(format!("{TEXT} grant").parse::<Publication>(), Err(PublicationError::Words));
        let longest = format!("{TEXT} {}", "x".repeat(MAX_TEXT - TEXT.len() - 1));
        assert!(read(&longest).is_ok());
        assert_eq!(read(&format!("{longest}x")), Err(PublicationError::TooLong));
    }

    #[test]
    fn an_error_names_the_field() {
        let error = |text: &str| text.parse::<Publication>().unwrap_err();
        let fields = [
            ("node", "000102030405060708090a0b0c0d0e0f", ["0", &"0".repeat(33), &"A".repeat(32)]),
            ("epoch", " 9 ", [" 0 ", " 09 ", " 18446744073709551616 "]),
            ("phase", "ready 7", ["Ready 7", "idle 7", "up 0"]),
            ("pair", " 7 ", [" -7 ", "  ", " x "]),
            ("met", " 5 ", [" +5 ", "  ", " 5. "]),
            ("messages", " 4 ", [" 65536 ", "  ", " 04 "]),
            ("message", " 256 ", [" 4294967296 ", "  ", " 0x9 "]),
            ("transactions", " 8 ", [" 65536 ", "  ", " 8,0 "]),
            ("parameters", " 64 ", [" 4294967296 ", "  ", " 64. "]),
        ];
        for (name, valid, invalid) in fields {
            for invalid in invalid {
                let text = TEXT.replace(valid, invalid);
                assert_ne!(text, TEXT);
                assert_eq!(error(&text), PublicationError::Field(name), "{text}");
            }
        }
        for (name, words) in [("node", 1), ("epoch", 2), ("pair", 4), ("status", 10)] {
            let cut = TEXT.split(' ').take(words).collect::<alloc::vec::Vec<_>>().join(" ");
            assert_eq!(error(&cut), PublicationError::Field(name));
        }
        assert_eq!(error(&format!("2{}", &TEXT[1..])), PublicationError::Version);
        assert_eq!(error(""), PublicationError::Version);
        assert_eq!(
            error(&TEXT.replace(" 4 256 ", " 65535 4294967295 ")).to_string(),
            "its quota needs 281470681678593 bytes, and at most 268435456 are believed"
        );
        // Nothing of such a length, but whoever reads it may allocate so much.
        for (some, none) in [(" 4 256 ", " 0 4294967295 "), (" 8 64 32", " 0 0 4294967295")] {
            let quota =
                |text: String| matches!(error(&text), PublicationError::Quota(4294967296..));
            assert!(quota(TEXT.replace(some, none)), "{none}");
        }
    }

    fn publications() -> impl Strategy<Value = Publication> {
        let phase = prop_oneof![
            Just(Phase::Idle),
            (1..=u64::MAX).prop_map(|pair| Phase::Offered(Epoch(pair))),
            (1..=u64::MAX).prop_map(|pair| Phase::Ready(Epoch(pair))),
            (1..=u64::MAX).prop_map(|pair| Phase::Up(Epoch(pair))),
            Just(Phase::Leaving),
        ];
        let quota = (any::<u16>(), 0..2048u32, any::<u16>(), 0..1024u32, 0..1024u32).prop_map(
            |(messages, message, transactions, parameters, status)| Quota {
                messages,
                message,
                transactions,
                parameters,
                status,
            },
        );
        (any::<[u8; 16]>(), 1..=u64::MAX, phase, any::<u64>(), quota).prop_map(
            |(node, epoch, phase, met, quota)| Publication {
                node: NodeId(node),
                epoch: Epoch(epoch),
                phase,
                met: Epoch(met),
                quota,
            },
        )
    }

    proptest! {
        #[test]
        fn every_publication_has_one_text(publication in publications()) {
            let text = publication.to_string();
            prop_assert!(text.len() <= 150, "{}", text.len());
            prop_assert_eq!(text.parse(), Ok(publication));
        }

        #[test]
        fn no_other_text_is_a_publication(at in 0..TEXT.len(), byte in "[ -~]{0,2}") {
            let text = format!("{}{byte}{}", &TEXT[..at], &TEXT[at + 1..]);
            if let Ok(publication) = text.parse::<Publication>() {
                prop_assert_eq!(publication.to_string(), text);
            }
        }
    }
}
