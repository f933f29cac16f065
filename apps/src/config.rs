//! The command line: which app runs, and how.
//!
//! Words are `key=value`, separated by white space, in any order, without quoting. All have
//! defaults, so an empty command line serves HTTP on port 80. The error for an invalid word shows
//! its column and the permitted values. `docs/configuration.md` explains all keys.

mod network;
mod url;
mod words;

pub use network::{Network, StackChoice, Stacks};
pub use url::{Host, Url};
pub use words::{ConfigError, MAX_LENGTH, Problem};

use crate::bench;
use core::time::Duration;
use log::LevelFilter;
use words::{Words, number_in};
use xen::event::Abi;

/// The settings of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `app=`, `port=`, `mb=`, `url=`: the app and its own settings.
    pub app: App,
    /// `log=`: the least important messages to print. The kernel reads it, too.
    pub log: LevelFilter,
    /// `ring-order=`: each socket's data ring has 2^order pages, as far as the backend allows.
    /// `None` leaves it to the frontend.
    pub ring_order: Option<u8>,
    /// `idle-timeout=`: how long a connection may be open without data. `None` (written 0) is no
    /// limit.
    pub idle_timeout: Option<Duration>,
    /// `max-connections=`: the most connections of a server at once. `None` is as many as memory
    /// allows.
    pub max_connections: Option<usize>,
    /// `evtchn=`: the event channels' ABI. `None` is the best that Xen has. The kernel reads it,
    /// too.
    pub evtchn: Option<Abi>,
    /// `stack=`: the stack of the app's sockets.
    pub stack: StackChoice,
    /// `net=`, `ip=`, `gw=`, `ip6=`, `gw6=`, `tcp-buffer=`: the network interface. `dns=`: the DNS
    /// servers, of any stack.
    pub network: Network,
    /// `trace=`: the port of dom0 that serves the interface's frames.
    pub trace: Option<u16>,
}

/// An app and its own settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum App {
    /// Serves HTTP.
    Http {
        /// The port to listen on.
        port: u16,
        /// `tls=`: whether it does so over TLS.
        tls: bool,
    },
    /// Sends back the bytes that it receives.
    Echo {
        /// The port to listen on.
        port: u16,
    },
    /// Moves bytes for benchmarks.
    Bench {
        /// The first port to listen on; the next ones follow.
        port: u16,
        /// `mb=`, in bytes: what each connection to the source gets.
        bytes: u64,
    },
    /// Fetches one URL, reports on it, and ends.
    Fetch {
        /// What to fetch.
        url: Url,
    },
}

impl Default for Config {
    fn default() -> Self {
        Config {
            app: App::Http { port: 80, tls: false },
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

impl Config {
    /// Reads a command line as the loader passed it, for an image with all stacks.
    pub fn parse(text: &[u8]) -> Result<Config, ConfigError> {
        Self::parse_for(Stacks::default(), text)
    }

    /// Whether the app uses TLS.
    pub fn tls(&self) -> bool {
        match &self.app {
            App::Http { tls, .. } => *tls,
            App::Fetch { url } => url.tls,
            App::Echo { .. } | App::Bench { .. } => false,
        }
    }

    /// Reads a command line, for an image with these stacks.
    pub fn parse_for(stacks: Stacks, text: &[u8]) -> Result<Config, ConfigError> {
        let words = Words::split(text)?;
        let app = app(&words)?;
        let stack = network::stack(&words, stacks)?;
        if let (App::Fetch { .. }, StackChoice::Both, Some(word)) =
            (&app, stack, words.get("stack"))
        {
            return Err(word.error(Problem::OneStack));
        }
        let default = Config::default();
        let idle = words.read("idle-timeout", number_in(0, 86400))?;
        let idle = idle.map(|seconds| (seconds > 0).then(|| Duration::from_secs(seconds)));
        Ok(Config {
            app,
            ring_order: words.read("ring-order", number_in(1, 9))?,
            max_connections: words.read("max-connections", number_in(1, 65536))?,
            log: words.read("log", |level| level.parse().ok())?.unwrap_or(default.log),
            idle_timeout: idle.unwrap_or(default.idle_timeout),
            evtchn: words.read("evtchn", |abi| abi.parse().ok())?,
            stack,
            network: network::network(&words, stack)?,
            trace: network::trace(&words, stack, stacks)?,
        })
    }
}

fn app(words: &Words<'_>) -> Result<App, ConfigError> {
    let port = |default| -> Result<u16, ConfigError> {
        Ok(words.read("port", number_in(1, 65535))?.unwrap_or(default))
    };
    let name = words.get("app");
    let (app, stray) = match name.map_or("http", |word| word.value) {
        "http" => {
            let tls = words.read("tls", on_or_off)?.unwrap_or(false);
            if let (true, false, Some(word)) = (tls, cfg!(feature = "tls"), words.get("tls")) {
                return Err(word.error(Problem::NoTls));
            }
            let port = port(if tls { 443 } else { 80 })?;
            (App::Http { port, tls }, ["url", "mb"].as_slice())
        }
        "echo" => (App::Echo { port: port(7)? }, ["url", "mb", "tls"].as_slice()),
        "bench" => {
            let port = port(9001)?;
            if let (None, Some(word)) = (port.checked_add(bench::LAST_PORT), words.get("port")) {
                return Err(word.error(Problem::Ports));
            }
            let mebibytes = words.read("mb", number_in(1, 1 << 20))?.unwrap_or(64);
            (App::Bench { port, bytes: mebibytes << 20 }, ["url", "tls"].as_slice())
        }
        "fetch" => {
            let Some(url) = words.get("url") else {
                return Err(name.unwrap_or_default().error(Problem::NoUrl));
            };
            let url = url.value.parse().map_err(|problem| url.error(problem))?;
            (App::Fetch { url }, ["port", "mb", "tls"].as_slice())
        }
        _ => return Err(name.unwrap_or_default().error(Problem::UnknownApp)),
    };
    match stray.iter().find_map(|key| words.get(key)) {
        Some(word) => Err(word.error(Problem::WrongApp)),
        None => Ok(app),
    }
}

fn on_or_off(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;
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
        assert_eq!(Config::default().app, App::Http { port: 80, tls: false });
    }

    #[test]
    fn words_may_have_any_order_and_white_space() {
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
    fn a_benchmark_has_its_ports_and_its_size() {
        let app = |text| parse(text).app;
        assert_eq!(app("app=bench"), App::Bench { port: 9001, bytes: 64 << 20 });
        assert_eq!(app("app=bench mb=1 port=65532"), App::Bench { port: 65532, bytes: 1 << 20 });
    }

    #[test]
    fn an_error_about_a_port_has_its_column() {
        for port in ["0", "65536", "abc", "-1", "+1", "1.5", "99999999999999999999"] {
            assert_eq!(problem(&format!("app=http port={port}")), (10, Problem::Port));
        }
        assert_eq!(parse("port=65535").app, App::Http { port: 65535, tls: false });
        assert_eq!(parse("port=1").app, App::Http { port: 1, tls: false });
    }

    #[test]
    fn each_mistake_has_its_own_error() {
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
            ("app=echo mb=5", 10, Problem::WrongApp),
            ("app=bench mb=0", 11, Problem::Megabytes),
            ("app=bench port=65533", 11, Problem::Ports),
            ("app=fetch url=ftp://1.2.3.4/", 11, Problem::Scheme),
            ("app=fetch url=http://10.0.0.300/", 11, Problem::Host),
            ("app=fetch url=http://a..b/", 11, Problem::Host),
            ("app=fetch url=http://-/", 11, Problem::Host),
            ("app=fetch url=http://example.org:x/", 11, Problem::Host),
            ("app=fetch url=http://1.2.3.4:0/", 11, Problem::Host),
            ("app=fetch url=http://user@1.2.3.4/", 11, Problem::Host),
            ("app=fetch url=http:///", 11, Problem::Host),
            ("app=http tls=yes", 10, Problem::Tls),
            ("app=echo tls=on", 10, Problem::WrongApp),
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
    fn an_error_has_the_column_the_word_and_the_permitted_values() {
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
    fn a_command_line_of_the_maximum_length_is_accepted_and_a_longer_one_refused() {
        let mut text = vec![b' '; MAX_LENGTH];
        assert_eq!(Config::parse(&text), Ok(Config::default()));
        text.push(b'x');
        assert_eq!(Config::parse(&text).unwrap_err().problem, Problem::TooLong);
        let long = vec![b'x'; MAX_LENGTH];
        assert!(Config::parse(&long).unwrap_err().word.len() <= 60);
    }

    #[test]
    fn a_stack_that_the_image_lacks_is_an_error() {
        let parse = |xensock, netfront, text: &str| {
            Config::parse_for(Stacks { xensock, netfront }, text.as_bytes())
                .map(|config| config.stack)
                .map_err(|error| (error.column, error.problem))
        };
        let netfront = Err((10, Problem::NoNetfront));
        assert_eq!(parse(true, false, ""), Ok(StackChoice::XenSock));
        assert_eq!(parse(true, false, "app=echo stack=netfront"), netfront);
        assert_eq!(parse(true, false, "app=echo stack=both"), netfront);
        assert_eq!(parse(false, true, ""), Ok(StackChoice::NetFront));
        assert_eq!(parse(false, true, "stack=xensock"), Err((1, Problem::NoXensock)));
        assert_eq!(parse(false, true, "stack=both"), Err((1, Problem::NoXensock)));
        assert_eq!(parse(false, true, "trace=pcap"), Err((1, Problem::NoXensock)));
        assert_eq!(parse(false, true, "ip=10.0.0.2/24"), Ok(StackChoice::NetFront));
    }

    #[test]
    fn the_documentation_has_every_key() {
        let text = include_str!("../../docs/configuration.md");
        for (key, _) in words::KEYS {
            assert!(text.contains(&format!("`{key}=")), "{key}");
        }
    }
}
