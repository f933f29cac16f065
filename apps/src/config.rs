//! The kernel's command line: which app runs, and with what.
//!
//! Words are `key=value`, separated by white space, in any order, without quoting; all have
//! defaults, so an empty command line serves HTTP on port 80. Nothing is guessed: a word that is
//! not understood is an error which says where it stands and what may stand there.

mod network;
mod url;

pub use network::{Network, StackChoice};
pub use url::{Host, Url};

use alloc::string::{String, ToString};
use core::time::Duration;
use log::LevelFilter;
use thiserror::Error;
use xen::event::Abi;

/// The longest command line that is read, in bytes.
pub const MAX_LENGTH: usize = 4096;

/// What the kernel shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `app=`, `port=`, `url=`: the app to run, and where.
    pub app: App,
    /// `log=`: the least important messages to print.
    pub log: LevelFilter,
    /// `ring-order=`: each socket's data ring has 2^order pages, as far as the backend allows;
    /// without it, the frontend's default.
    pub ring_order: Option<u8>,
    /// `idle-timeout=`: how long a peer may keep a connection without a byte moving; `None`
    /// (written 0) is for ever.
    pub idle_timeout: Option<Duration>,
    /// `max-connections=`: how many connections a server holds at once; without it, as many as
    /// memory allows.
    pub max_connections: Option<usize>,
    /// `evtchn=`: the event channels' ABI; without it, the best one that Xen has. It was chosen before
    /// this is read, see [`event_abi`].
    pub evtchn: Option<Abi>,
    /// `stack=`: whose sockets the app gets.
    pub stack: StackChoice,
    /// `net=`, `ip=`, `gw=`, `ip6=`, `gw6=`, `tcp-buffer=`: the network interface, for those stacks that have
    /// one. `dns=`: who knows names, for any.
    pub network: Network,
    /// `trace=pcap`, `trace=pcap:PORT`: the port of dom0 where the interface's frames can be had.
    pub trace: Option<u16>,
}

/// An app and what it cannot do without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum App {
    /// Serves HTTP.
    Http {
        /// The port to listen on.
        port: u16,
    },
    /// Sends back what it receives.
    Echo {
        /// The port to listen on.
        port: u16,
    },
    /// Gets one URL, reports on it, and ends.
    Fetch {
        /// What to get.
        url: Url,
    },
}

impl App {
    /// The name that `app=` knows it by.
    pub fn name(&self) -> &'static str {
        match self {
            App::Http { .. } => "http",
            App::Echo { .. } => "echo",
            App::Fetch { .. } => "fetch",
        }
    }
}

/// What is wrong with the command line, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("command line, column {column}: `{word}`: {problem}")]
pub struct ConfigError {
    /// The byte that the word begins at, counted from 1.
    pub column: usize,
    /// The word, or its beginning.
    pub word: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with a word of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// The text exceeds [`MAX_LENGTH`].
    #[error("the command line ends at {MAX_LENGTH} bytes: shorten it")]
    TooLong,
    /// Bytes outside ASCII's printable ones.
    #[error("only printable ASCII is allowed here")]
    NotText,
    /// No `=`, or nothing behind it.
    #[error("a value is missing: write key=value")]
    NoValue,
    /// A key that nobody knows.
    #[error(
        "no such key: there are app, port, url, log, ring-order, idle-timeout, max-connections, evtchn, \
         stack, net, ip, gw, ip6, gw6, dns, tcp-buffer, trace"
    )]
    UnknownKey,
    /// A key for the second time.
    #[error("this key was given before: give each at most once")]
    Duplicate,
    /// An app that nobody knows.
    #[error("no such app: there are http, echo, fetch")]
    UnknownApp,
    /// Not a port.
    #[error("a port is a whole number from 1 to 65535")]
    Port,
    /// Not a log level.
    #[error("a log level is off, error, warn, info, debug or trace")]
    Level,
    /// Not a ring order.
    #[error("a ring's order is a whole number from 1 to 9 (2^order pages)")]
    RingOrder,
    /// Not a number of seconds.
    #[error("a time-out is a whole number of seconds from 0 (never) to 86400")]
    Timeout,
    /// Not a number of connections.
    #[error("a number of connections is a whole number from 1 to 65536")]
    Connections,
    /// Not an ABI of event channels.
    #[error("event channels are of the ABI fifo or 2l")]
    Evtchn,
    /// Not a stack.
    #[error("the stack is xensock, netfront or both")]
    Stack,
    /// An address, and no interface to have it.
    #[error("only a network interface has addresses: say stack=netfront or stack=both, too")]
    NoInterface,
    /// Not a source of addresses.
    #[error(
        "net is dhcp; for an address of your own say ip=ADDRESS/BITS alone, as in ip=10.0.0.2/24"
    )]
    Net,
    /// Not an IPv4 address with its network's length.
    #[error("an address is written with its network's length, as in 10.0.0.2/24")]
    Address,
    /// Not an IPv6 address with its network's length.
    #[error("an IPv6 address is written with its network's length, as in fd00::2/64")]
    Address6,
    /// Not a gateway.
    #[error("a gateway is an address, as in gw=10.0.0.1 or gw6=fd00::1")]
    Gateway,
    /// A gateway, and no address.
    #[error("a gateway goes with an address: ip= for gw=, ip6= for gw6=; DHCP brings its own")]
    StrayGateway,
    /// Not DNS servers.
    #[error("DNS servers are up to three addresses, as in dns=10.0.0.1,10.0.0.2")]
    Dns,
    /// Not a size for buffers.
    #[error("a TCP buffer's size is a whole number of KiB from 4 to 1024")]
    TcpBuffer,
    /// Not a trace.
    #[error("a trace is pcap, or pcap:PORT of dom0, as in trace=pcap:2002")]
    Trace,
    /// A trace of what has no frames, or that cannot leave.
    #[error("a trace is of stack=netfront alone, and leaves by dom0's sockets")]
    NoTrace,
    /// Two stacks for an app that needs one.
    #[error("fetch takes one stack: xensock or netfront")]
    OneStack,
    /// The app has no use for the key.
    #[error("this app has no such setting: port is for http and echo, url is for fetch")]
    WrongApp,
    /// `app=fetch` alone.
    #[error("fetch needs url=http://ADDRESS:PORT/PATH")]
    NoUrl,
    /// Not `http://`.
    #[error("a URL begins with http://")]
    Scheme,
    /// The host is neither an address nor a name.
    #[error(
        "the URL's host is an address or a name, as in http://192.0.2.1/ or http://example.org/"
    )]
    Host,
    /// The path has bytes that cannot stand in a request.
    #[error("the URL's path must be printable ASCII")]
    Target,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            app: App::Http { port: 80 },
            log: LevelFilter::Info,
            ring_order: None,
            idle_timeout: Some(Duration::from_secs(30)),
            max_connections: None,
            evtchn: None,
            stack: StackChoice::default(),
            network: Network::default(),
            trace: None,
        }
    }
}

/// A word of the command line, split and located.
#[derive(Clone, Copy)]
struct Word<'t> {
    column: usize,
    text: &'t [u8],
    value: &'t str,
}

impl Word<'_> {
    fn error(&self, problem: Problem) -> ConfigError {
        let shown = &self.text[..self.text.len().min(60)];
        ConfigError { column: self.column, word: shown.escape_ascii().to_string(), problem }
    }

    fn number(&self, low: u32, high: u32, problem: Problem) -> Result<u32, ConfigError> {
        // `parse` alone would let a sign pass.
        let digits = self.value.bytes().all(|byte| byte.is_ascii_digit());
        match self.value.parse() {
            Ok(number) if digits && (low..=high).contains(&number) => Ok(number),
            _ => Err(self.error(problem)),
        }
    }
}

/// The words found so far, by key.
#[derive(Default)]
struct Words<'t> {
    app: Option<Word<'t>>,
    port: Option<Word<'t>>,
    url: Option<Word<'t>>,
    log: Option<Word<'t>>,
    ring_order: Option<Word<'t>>,
    idle_timeout: Option<Word<'t>>,
    max_connections: Option<Word<'t>>,
    evtchn: Option<Word<'t>>,
    stack: Option<Word<'t>>,
    net: Option<Word<'t>>,
    ip: Option<Word<'t>>,
    gw: Option<Word<'t>>,
    ip6: Option<Word<'t>>,
    gw6: Option<Word<'t>>,
    dns: Option<Word<'t>>,
    tcp_buffer: Option<Word<'t>>,
    trace: Option<Word<'t>>,
}

impl<'t> Words<'t> {
    fn slot(&mut self, key: &[u8]) -> Option<&mut Option<Word<'t>>> {
        Some(match key {
            b"app" => &mut self.app,
            b"port" => &mut self.port,
            b"url" => &mut self.url,
            b"log" => &mut self.log,
            b"ring-order" => &mut self.ring_order,
            b"idle-timeout" => &mut self.idle_timeout,
            b"max-connections" => &mut self.max_connections,
            b"evtchn" => &mut self.evtchn,
            b"stack" => &mut self.stack,
            b"net" => &mut self.net,
            b"ip" => &mut self.ip,
            b"gw" => &mut self.gw,
            b"ip6" => &mut self.ip6,
            b"gw6" => &mut self.gw6,
            b"dns" => &mut self.dns,
            b"tcp-buffer" => &mut self.tcp_buffer,
            b"trace" => &mut self.trace,
            _ => return None,
        })
    }

    fn split(text: &'t [u8]) -> Result<Words<'t>, ConfigError> {
        let mut words = Words::default();
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
            let split = part.iter().position(|byte| *byte == b'=').unwrap_or(part.len());
            let slot = words.slot(&part[..split]).ok_or(word.error(Problem::UnknownKey))?;
            let value = part.get(split + 1..).unwrap_or_default();
            word.value = core::str::from_utf8(value).map_err(|_| word.error(Problem::NotText))?;
            if value.is_empty() {
                return Err(word.error(Problem::NoValue));
            }
            if slot.is_some() {
                return Err(word.error(Problem::Duplicate));
            }
            *slot = Some(word);
        }
        Ok(words)
    }

    fn app(&self) -> Result<App, ConfigError> {
        let port = |default| match &self.port {
            Some(word) => word.number(1, 65535, Problem::Port).map(|port| port as u16),
            None => Ok(default),
        };
        let name = self.app.unwrap_or(Word { column: 1, text: b"app=http", value: "http" });
        let (app, stray) = match name.value {
            "http" => (App::Http { port: port(80)? }, self.url),
            "echo" => (App::Echo { port: port(7)? }, self.url),
            "fetch" => {
                let word = self.url.ok_or_else(|| name.error(Problem::NoUrl))?;
                let url = word.value.parse().map_err(|problem| word.error(problem))?;
                (App::Fetch { url }, self.port)
            }
            _ => return Err(name.error(Problem::UnknownApp)),
        };
        match stray {
            Some(word) => Err(word.error(Problem::WrongApp)),
            None => Ok(app),
        }
    }
}

impl Config {
    /// Reads a command line as the loader handed it over: its first NUL, if any, ends it.
    pub fn parse(text: &[u8]) -> Result<Config, ConfigError> {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        if text.len() > MAX_LENGTH {
            let tail = Word { column: MAX_LENGTH + 1, text: &text[MAX_LENGTH..], value: "" };
            return Err(tail.error(Problem::TooLong));
        }
        let words = Words::split(text)?;
        let mut config = Config { app: words.app()?, ..Config::default() };
        if let Some(word) = words.log {
            config.log = word.value.parse().map_err(|_| word.error(Problem::Level))?;
        }
        if let Some(word) = words.ring_order {
            config.ring_order = Some(word.number(1, 9, Problem::RingOrder)? as u8);
        }
        if let Some(word) = words.idle_timeout {
            let seconds = word.number(0, 86400, Problem::Timeout)?;
            config.idle_timeout = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        }
        if let Some(word) = words.max_connections {
            config.max_connections = Some(word.number(1, 65536, Problem::Connections)? as usize);
        }
        if let Some(word) = words.evtchn {
            config.evtchn = Some(word.value.parse().map_err(|_| word.error(Problem::Evtchn))?);
        }
        config.stack = words.stack(&config.app)?;
        config.network = words.network(config.stack)?;
        config.trace = words.trace(config.stack)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::vec;

    fn parse(text: &str) -> Config {
        Config::parse(text.as_bytes()).unwrap()
    }

    fn problem(text: &str) -> (usize, Problem) {
        let error = Config::parse(text.as_bytes()).unwrap_err();
        (error.column, error.problem)
    }

    #[test]
    fn an_empty_command_line_serves_http_on_port_80() {
        for text in ["", "   ", "\t\n", "\0app=nonsense"] {
            assert_eq!(parse(text), Config::default());
        }
        assert_eq!(Config::default().app, App::Http { port: 80 });
    }

    #[test]
    fn words_come_in_any_order_with_any_white_space() {
        let config = parse("  log=debug  port=8080\tapp=echo idle-timeout=5 ring-order=4 ");
        assert_eq!(config.app, App::Echo { port: 8080 });
        assert_eq!(config.log, LevelFilter::Debug);
        assert_eq!(config.idle_timeout, Some(Duration::from_secs(5)));
        assert_eq!(config.ring_order, Some(4));
        assert_eq!(parse("app=echo").app, App::Echo { port: 7 });
        assert_eq!(parse("idle-timeout=0").idle_timeout, None);
        assert_eq!(parse("max-connections=200").max_connections, Some(200));
    }

    #[test]
    fn the_abi_of_event_channels_can_be_chosen() {
        for (text, abi) in [
            ("", None),
            ("evtchn=fifo", Some(Abi::Fifo)),
            ("app=echo\tevtchn=2l", Some(Abi::TwoLevel)),
            ("app=echo\0evtchn=2l", None),
        ] {
            assert_eq!(parse(text).evtchn, abi, "{text}");
        }
    }

    #[test]
    fn a_fetch_has_its_url() {
        let App::Fetch { url } = parse("app=fetch url=http://10.0.2.2:8000/x").app else {
            panic!("another app");
        };
        assert_eq!(url.to_string(), "http://10.0.2.2:8000/x");
    }

    #[test]
    fn a_bad_port_is_refused_where_it_stands() {
        for port in ["0", "65536", "abc", "-1", "+1", "1.5", "99999999999999999999"] {
            assert_eq!(problem(&format!("app=http port={port}")), (10, Problem::Port));
        }
        assert_eq!(parse("port=65535").app, App::Http { port: 65535 });
        assert_eq!(parse("port=1").app, App::Http { port: 1 });
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        for (text, column, what) in [
            ("app=httpd", 1, Problem::UnknownApp),
            ("app=http  colour=red", 11, Problem::UnknownKey),
            ("quiet", 1, Problem::UnknownKey),
            ("port", 1, Problem::NoValue),
            ("port=", 1, Problem::NoValue),
            ("port=1 port=1", 8, Problem::Duplicate),
            ("app=fetch", 1, Problem::NoUrl),
            ("app=fetch port=1 url=http://1.2.3.4/", 11, Problem::WrongApp),
            ("url=http://1.2.3.4/", 1, Problem::WrongApp),
            ("app=fetch url=https://1.2.3.4/", 11, Problem::Scheme),
            ("app=fetch url=http://10.0.0.300/", 11, Problem::Host),
            ("app=fetch url=http://a..b/", 11, Problem::Host),
            ("app=fetch url=http://-/", 11, Problem::Host),
            ("app=fetch url=http://example.org:x/", 11, Problem::Host),
            ("app=fetch url=http://1.2.3.4:0/", 11, Problem::Host),
            ("app=fetch url=http://user@1.2.3.4/", 11, Problem::Host),
            ("app=fetch url=http:///", 11, Problem::Host),
            ("log=loud", 1, Problem::Level),
            ("ring-order=0", 1, Problem::RingOrder),
            ("ring-order=10", 1, Problem::RingOrder),
            ("idle-timeout=86401", 1, Problem::Timeout),
            ("idle-timeout=soon", 1, Problem::Timeout),
            ("max-connections=0", 1, Problem::Connections),
            ("evtchn=2", 1, Problem::Evtchn),
            ("port=80 \u{e9}", 9, Problem::NotText),
            ("port=\u{7f}", 1, Problem::NotText),
        ] {
            assert_eq!(problem(text), (column, what), "{text}");
        }
    }

    #[test]
    fn an_error_says_what_where_and_what_is_allowed() {
        let error = Config::parse(b"app=http port=65536").unwrap_err();
        assert_eq!(
            error.to_string(),
            "command line, column 10: `port=65536`: a port is a whole number from 1 to 65535"
        );
        let error = Config::parse(b"log=info \xff\xfe=1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "command line, column 10: `\\xff\\xfe=1`: only printable ASCII is allowed here"
        );
    }

    #[test]
    fn an_over_long_command_line_is_refused_and_a_full_one_is_not() {
        let mut text = vec![b' '; MAX_LENGTH];
        assert_eq!(Config::parse(&text), Ok(Config::default()));
        text.push(b'x');
        assert_eq!(Config::parse(&text).unwrap_err().problem, Problem::TooLong);
        let long = vec![b'x'; MAX_LENGTH];
        assert!(Config::parse(&long).unwrap_err().word.len() <= 60);
    }
}
