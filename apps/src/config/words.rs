//! The words of the command line: the table of keys, splitting, and errors.

use alloc::string::{String, ToString};
use core::str::FromStr;
use thiserror::Error;

/// The longest command line that is read, in bytes.
pub const MAX_LENGTH: usize = 4096;

/// Each key, and the error that explains which values it permits.
pub const KEYS: [(&str, Problem); 19] = [
    ("app", Problem::UnknownApp),
    ("port", Problem::Port),
    ("tls", Problem::Tls),
    ("mb", Problem::Megabytes),
    ("url", Problem::Scheme),
    ("log", Problem::Level),
    ("ring-order", Problem::RingOrder),
    ("idle-timeout", Problem::Timeout),
    ("max-connections", Problem::Connections),
    ("evtchn", Problem::Evtchn),
    ("stack", Problem::Stack),
    ("net", Problem::Net),
    ("ip", Problem::Address),
    ("gw", Problem::Gateway),
    ("ip6", Problem::Address6),
    ("gw6", Problem::Gateway),
    ("dns", Problem::Dns),
    ("tcp-buffer", Problem::TcpBuffer),
    ("trace", Problem::Trace),
];

/// An error in the command line, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("command line, column {column}: `{word}`: {problem}")]
pub struct ConfigError {
    /// The number of the word's first byte, counted from 1.
    pub column: usize,
    /// The word, or its beginning.
    pub word: String,
    /// The error.
    pub problem: Problem,
}

/// The errors of a word; their messages explain them.
#[expect(missing_docs, reason = "each has its message")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    #[error("the command line ends at {MAX_LENGTH} bytes: shorten it")]
    TooLong,
    #[error("only printable ASCII is allowed here")]
    NotText,
    #[error("a value is missing: write key=value")]
    NoValue,
    #[error("no such key: there are {}", keys())]
    UnknownKey,
    #[error("this key was given before: give each at most once")]
    Duplicate,
    #[error("tls is on or off")]
    Tls,
    #[error("this image has no TLS: it was built without the feature `tls`")]
    NoTls,
    #[error("no such app: there are http, echo, fetch, bench")]
    UnknownApp,
    #[error("a port is a whole number from 1 to 65535")]
    Port,
    #[error("bench takes four ports, so its first one is at most 65532")]
    Ports,
    #[error("a transfer is a whole number of MiB from 1 to 1048576")]
    Megabytes,
    #[error("a log level is off, error, warn, info, debug or trace")]
    Level,
    #[error("a ring's order is a whole number from 1 to 9 (2^order pages)")]
    RingOrder,
    #[error("a time-out is a whole number of seconds from 0 (never) to 86400")]
    Timeout,
    #[error("a number of connections is a whole number from 1 to 65536")]
    Connections,
    #[error("the ABI of event channels is fifo or 2l")]
    Evtchn,
    #[error("the stack is xensock, netfront or both")]
    Stack,
    #[error("this image has no sockets in dom0: it was built without the feature `xensock`")]
    NoXensock,
    #[error("this image has no network stack: it was built without the feature `netfront`")]
    NoNetfront,
    #[error("only a network interface has addresses: add stack=netfront or stack=both")]
    NoInterface,
    #[error(
        "net is dhcp; for a static address write ip=ADDRESS/BITS instead, as in ip=10.0.0.2/24"
    )]
    Net,
    #[error("an address is written with its network's length, as in 10.0.0.2/24")]
    Address,
    #[error("an IPv6 address is written with its network's length, as in fd00::2/64")]
    Address6,
    #[error("a gateway is an address, as in gw=10.0.0.1 or gw6=fd00::1")]
    Gateway,
    #[error("a gateway goes with an address: ip= for gw=, ip6= for gw6=; DHCP brings its own")]
    StrayGateway,
    #[error("DNS servers are up to three addresses, as in dns=10.0.0.1,10.0.0.2")]
    Dns,
    #[error("a TCP buffer's size is a whole number of KiB from 4 to 1024")]
    TcpBuffer,
    #[error("a trace is pcap, or pcap:PORT of dom0, as in trace=pcap:2002")]
    Trace,
    #[error("a trace needs stack=netfront; dom0's sockets serve its frames")]
    NoTrace,
    #[error("fetch takes one stack: xensock or netfront")]
    OneStack,
    #[error("this app has no such setting: servers have port, http has tls, fetch url, bench mb")]
    WrongApp,
    #[error("fetch needs url=http://HOST:PORT/PATH")]
    NoUrl,
    #[error("a URL begins with http:// or https://")]
    Scheme,
    #[error(
        "the URL's host is an address or a name, as in http://192.0.2.1/ or http://example.org/"
    )]
    Host,
    #[error("the URL's path must be printable ASCII")]
    Target,
}

/// The keys' names.
fn keys() -> String {
    KEYS.map(|(name, _)| name).join(", ")
}

/// A word of the command line, split and located.
#[derive(Clone, Copy, Default)]
pub struct Word<'t> {
    column: usize,
    text: &'t [u8],
    /// What follows `=`.
    pub value: &'t str,
}

impl Word<'_> {
    /// An error about this word.
    pub fn error(&self, problem: Problem) -> ConfigError {
        let shown = &self.text[..self.text.len().min(60)];
        ConfigError { column: self.column, word: shown.escape_ascii().to_string(), problem }
    }
}

/// The words of a command line, in the order of [`KEYS`].
pub struct Words<'t>([Option<Word<'t>>; KEYS.len()]);

impl<'t> Words<'t> {
    /// Splits a command line; its first NUL byte, if any, ends it.
    pub fn split(text: &'t [u8]) -> Result<Words<'t>, ConfigError> {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        if text.len() > MAX_LENGTH {
            let tail = Word { column: MAX_LENGTH + 1, text: &text[MAX_LENGTH..], value: "" };
            return Err(tail.error(Problem::TooLong));
        }
        let mut words = Words([None; KEYS.len()]);
        let mut at = 0;
        for part in text.split(u8::is_ascii_whitespace) {
            let mut word = Word { column: at + 1, text: part, value: "" };
            at += part.len() + 1;
            if part.is_empty() {
                continue;
            }
            if !part.iter().all(u8::is_ascii_graphic) {
                return Err(word.error(Problem::NotText));
            }
            let part = core::str::from_utf8(part).map_err(|_| word.error(Problem::NotText))?;
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let index = KEYS.iter().position(|(name, _)| *name == key);
            let slot = &mut words.0[index.ok_or(word.error(Problem::UnknownKey))?];
            if value.is_empty() {
                return Err(word.error(Problem::NoValue));
            }
            if slot.is_some() {
                return Err(word.error(Problem::Duplicate));
            }
            word.value = value;
            *slot = Some(word);
        }
        Ok(words)
    }

    /// The word of a key.
    pub fn get(&self, key: &str) -> Option<Word<'t>> {
        self.entry(key).0
    }

    /// The value of a key. If `read` refuses it, the error is that of the table.
    pub fn read<T>(
        &self,
        key: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let (word, problem) = self.entry(key);
        word.map(|word| read(word.value).ok_or_else(|| word.error(problem))).transpose()
    }

    fn entry(&self, key: &str) -> (Option<Word<'t>>, Problem) {
        let index = KEYS.iter().position(|(name, _)| *name == key);
        let index = index.expect("the key is in the table");
        (self.0[index], KEYS[index].1)
    }
}

/// A whole number within limits, of digits alone; `parse` would accept a sign.
pub fn number_in<T: FromStr + PartialOrd>(low: T, high: T) -> impl FnOnce(&str) -> Option<T> {
    move |text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|number| digits && (low..=high).contains(number))
    }
}
