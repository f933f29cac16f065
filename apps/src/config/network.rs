//! Which stack the sockets are of, and the network interface's addresses.

use super::{App, ConfigError, Problem, Word, Words};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;
use netfront::stack::{self, Ipv4, Ipv4Cidr, Ipv6Cidr};

/// As many DNS servers as a stack asks.
const MAX_SERVERS: usize = 3;

/// Whose sockets the app gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StackChoice {
    /// Those in dom0.
    #[default]
    XenSock,
    /// The guest's own, over its network interface.
    NetFront,
    /// Both: a server listens on both.
    Both,
}

/// The addresses of the network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// `net=dhcp`, or `ip=` and `gw=`.
    pub ipv4: Ipv4,
    /// `ip6=` and `gw6=`.
    pub ipv6: Option<(Ipv6Cidr, Option<Ipv6Addr>)>,
    /// `dns=`: in place of what the DHCP server says. Sockets of dom0 ask them over TCP.
    pub dns: Vec<IpAddr>,
    /// `tcp-buffer=`: what a connection receives before it is read, and what is written to it before it is
    /// acknowledged, in bytes.
    pub tcp_buffer: usize,
}

impl Default for Network {
    fn default() -> Self {
        Network { ipv4: Ipv4::Dhcp, ipv6: None, dns: Vec::new(), tcp_buffer: 64 << 10 }
    }
}

impl Network {
    /// A stack's configuration with these addresses. The seed shall be unlike that of any other boot.
    pub fn stack(&self, seed: u64) -> stack::Config {
        stack::Config {
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            dns: self.dns.clone(),
            receive_buffer: self.tcp_buffer,
            transmit_buffer: self.tcp_buffer,
            seed,
            ..stack::Config::default()
        }
    }
}

/// Where a trace is had, unless the command line says so: the port of rpcap.
const TRACE_PORT: u16 = 2002;

/// Splits `ADDRESS/BITS`.
fn cidr<A: FromStr>(text: &str, most: u8) -> Option<(A, u8)> {
    let (address, bits) = text.split_once('/')?;
    let digits = bits.bytes().all(|byte| byte.is_ascii_digit());
    let bits = bits.parse().ok().filter(|bits| digits && *bits <= most)?;
    Some((address.parse().ok()?, bits))
}

impl Words<'_> {
    pub(super) fn stack(&self, app: &App) -> Result<StackChoice, ConfigError> {
        match self.stack {
            None => Ok(StackChoice::XenSock),
            Some(word) => match word.value {
                "xensock" => Ok(StackChoice::XenSock),
                "netfront" => Ok(StackChoice::NetFront),
                "both" if matches!(app, App::Fetch { .. }) => Err(word.error(Problem::OneStack)),
                "both" => Ok(StackChoice::Both),
                _ => Err(word.error(Problem::Stack)),
            },
        }
    }

    pub(super) fn trace(&self, choice: StackChoice) -> Result<Option<u16>, ConfigError> {
        let Some(word) = self.trace else { return Ok(None) };
        if choice != StackChoice::NetFront {
            return Err(word.error(Problem::NoTrace));
        }
        let port = match word.value.split_once(':') {
            None if word.value == "pcap" => Some(TRACE_PORT),
            Some(("pcap", port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                port.parse().ok().filter(|port| *port != 0)
            }
            _ => None,
        };
        port.map(Some).ok_or(word.error(Problem::Trace))
    }

    pub(super) fn network(&self, choice: StackChoice) -> Result<Network, ConfigError> {
        let all = [self.net, self.ip, self.gw, self.ip6, self.gw6, self.tcp_buffer];
        if let (StackChoice::XenSock, Some(word)) = (choice, all.into_iter().flatten().next()) {
            return Err(word.error(Problem::NoInterface));
        }
        fn parsed<A: FromStr>(
            word: Option<Word<'_>>,
            p: Problem,
        ) -> Result<Option<A>, ConfigError> {
            word.map(|word| word.value.parse().map_err(|_| word.error(p))).transpose()
        }
        let gateway: Option<Ipv4Addr> = parsed(self.gw, Problem::Gateway)?;
        let ipv4 = match (self.net, self.ip) {
            (None, None) => Ipv4::Dhcp,
            (Some(word), None) if word.value == "dhcp" => Ipv4::Dhcp,
            (Some(word), _) => return Err(word.error(Problem::Net)),
            (None, Some(word)) => {
                let unicast = |(address, _): &(Ipv4Addr, u8)| {
                    !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast()
                };
                let address = cidr(word.value, 32).filter(unicast);
                let (address, bits) = address.ok_or(word.error(Problem::Address))?;
                Ipv4::Static { address: Ipv4Cidr::new(address, bits), gateway }
            }
        };
        if let (Ipv4::Dhcp, Some(word)) = (ipv4, self.gw) {
            return Err(word.error(Problem::StrayGateway));
        }
        let gateway: Option<Ipv6Addr> = parsed(self.gw6, Problem::Gateway)?;
        let ipv6 = match (self.ip6, self.gw6) {
            (None, None) => None,
            (None, Some(word)) => return Err(word.error(Problem::StrayGateway)),
            (Some(word), _) => {
                let unicast = |(address, _): &(Ipv6Addr, u8)| {
                    !address.is_unspecified() && !address.is_multicast()
                };
                let address = cidr(word.value, 128).filter(unicast);
                let (address, bits) = address.ok_or(word.error(Problem::Address6))?;
                Some((Ipv6Cidr::new(address, bits), gateway))
            }
        };
        let mut network = Network { ipv4, ipv6, ..Network::default() };
        if let Some(word) = self.dns {
            let servers = word.value.split(',').map(str::parse).collect::<Result<Vec<_>, _>>();
            let servers = servers.ok().filter(|servers| servers.len() <= MAX_SERVERS);
            network.dns = servers.ok_or(word.error(Problem::Dns))?;
        }
        if let Some(word) = self.tcp_buffer {
            network.tcp_buffer = (word.number(4, 1024, Problem::TcpBuffer)? as usize) << 10;
        }
        Ok(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_trace_is_of_the_guests_own_stack() {
        let trace = |text: &str| Config::parse(text.as_bytes()).unwrap().trace;
        assert_eq!(trace("stack=netfront"), None);
        assert_eq!(trace("stack=netfront trace=pcap"), Some(2002));
        assert_eq!(trace("stack=netfront trace=pcap:70"), Some(70));
        for wrong in
            ["trace=tcp", "trace=pcap:", "trace=pcap:0", "trace=pcap:65536", "trace=pcap:+1"]
        {
            assert_eq!(problem(&alloc::format!("stack=netfront {wrong}")), (16, Problem::Trace));
        }
        assert_eq!(problem("trace=pcap"), (1, Problem::NoTrace));
        assert_eq!(problem("stack=both trace=pcap"), (12, Problem::NoTrace));
    }

    fn problem(text: &str) -> (usize, Problem) {
        let error = Config::parse(text.as_bytes()).unwrap_err();
        (error.column, error.problem)
    }

    #[test]
    fn the_sockets_are_in_dom0_unless_the_command_line_says_otherwise() {
        for (text, stack) in [
            ("", StackChoice::XenSock),
            ("stack=xensock", StackChoice::XenSock),
            ("stack=netfront", StackChoice::NetFront),
            ("stack=both net=dhcp", StackChoice::Both),
        ] {
            let config = Config::parse(text.as_bytes()).unwrap();
            assert_eq!((config.stack, config.network.ipv4), (stack, Ipv4::Dhcp), "{text}");
        }
    }

    #[test]
    fn addresses_can_be_given() {
        let text = "stack=netfront ip=10.0.0.2/24 gw=10.0.0.1 dns=10.0.0.3,::3 ip6=fd00::2/64 gw6=fd00::1 tcp-buffer=9";
        let Network { ipv4, ipv6, dns, tcp_buffer } =
            Config::parse(text.as_bytes()).unwrap().network;
        let address = Ipv4Cidr::new([10, 0, 0, 2].into(), 24);
        assert_eq!(ipv4, Ipv4::Static { address, gateway: Some([10, 0, 0, 1].into()) });
        assert_eq!(ipv6.map(|(address, _)| address.prefix_len()), Some(64));
        assert_eq!(dns, [IpAddr::from([10, 0, 0, 3]), IpAddr::V6(3.into())]);
        assert_eq!(tcp_buffer, 9216);
        assert_eq!(Config::parse(b"dns=10.0.0.3").unwrap().network.dns.len(), 1);
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        for (text, column, what) in [
            ("stack=tcp", 1, Problem::Stack),
            ("ip=10.0.0.2/24", 1, Problem::NoInterface),
            ("stack=xensock tcp-buffer=64", 15, Problem::NoInterface),
            ("stack=netfront tcp-buffer=3", 16, Problem::TcpBuffer),
            ("app=fetch url=http://1.2.3.4/ stack=both", 31, Problem::OneStack),
            ("dns=1.1.1.1,2.2.2.2,3.3.3.3,4.4.4.4", 1, Problem::Dns),
            ("stack=netfront net=static", 16, Problem::Net),
            ("stack=netfront net=dhcp ip=10.0.0.2/24", 16, Problem::Net),
            ("stack=netfront ip=10.0.0.2", 16, Problem::Address),
            ("stack=netfront ip=10.0.0.2/33", 16, Problem::Address),
            ("stack=netfront ip=10.0.0.2/+8", 16, Problem::Address),
            ("stack=netfront ip=224.0.0.1/8", 16, Problem::Address),
            ("stack=netfront ip=0.0.0.0/8", 16, Problem::Address),
            ("stack=netfront gw=10.0.0.1", 16, Problem::StrayGateway),
            ("stack=netfront ip=10.0.0.2/24 gw=gate", 31, Problem::Gateway),
            ("stack=netfront ip6=10.0.0.2/24", 16, Problem::Address6),
            ("stack=netfront gw6=fd00::1", 16, Problem::StrayGateway),
            ("stack=netfront dns=there", 16, Problem::Dns),
        ] {
            assert_eq!(problem(text), (column, what), "{text}");
        }
    }
}
