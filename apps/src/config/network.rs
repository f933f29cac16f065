//! The stack of the sockets, and the network interface's addresses.

use super::words::{ConfigError, Problem, Words, number_in};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;
use netfront::stack::{self, Ipv4, Ipv4Cidr, Ipv6Cidr};

/// The most DNS servers that a stack queries.
const MAX_SERVERS: usize = 3;

/// The stack of the app's sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StackChoice {
    /// Sockets in dom0.
    #[default]
    XenSock,
    /// The guest's own stack, over its network interface.
    NetFront,
    /// Both: a server listens on both.
    Both,
}

/// The stacks that an image has; by default all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stacks {
    /// Sockets in dom0.
    pub xensock: bool,
    /// The guest's own stack.
    pub netfront: bool,
}

impl Default for Stacks {
    fn default() -> Stacks {
        Stacks { xensock: true, netfront: true }
    }
}

/// The addresses of the network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// `net=dhcp`, or `ip=` and `gw=`.
    pub ipv4: Ipv4,
    /// `ip6=` and `gw6=`.
    pub ipv6: Option<(Ipv6Cidr, Option<Ipv6Addr>)>,
    /// `dns=`: the DNS servers, instead of those from DHCP.
    pub dns: Vec<IpAddr>,
    /// `tcp-buffer=`: each connection's receive buffer, and its transmit buffer, in bytes.
    pub tcp_buffer: usize,
}

impl Default for Network {
    fn default() -> Self {
        Network { ipv4: Ipv4::Dhcp, ipv6: None, dns: Vec::new(), tcp_buffer: 64 << 10 }
    }
}

impl Network {
    /// The stack's configuration. Each boot needs its own seed.
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

/// The port for a trace if the command line names none: that of rpcap.
const TRACE_PORT: u16 = 2002;

/// Splits `ADDRESS/BITS`.
fn cidr<A: FromStr>(text: &str, most: u8) -> Option<(A, u8)> {
    let (address, bits) = text.split_once('/')?;
    Some((address.parse().ok()?, number_in(0, most)(bits)?))
}

pub(super) fn stack(words: &Words<'_>, stacks: Stacks) -> Result<StackChoice, ConfigError> {
    let Some(word) = words.get("stack") else {
        return Ok(if stacks.xensock { StackChoice::XenSock } else { StackChoice::NetFront });
    };
    match word.value {
        "xensock" | "both" if !stacks.xensock => Err(word.error(Problem::NoXensock)),
        "netfront" | "both" if !stacks.netfront => Err(word.error(Problem::NoNetfront)),
        "xensock" => Ok(StackChoice::XenSock),
        "netfront" => Ok(StackChoice::NetFront),
        "both" => Ok(StackChoice::Both),
        _ => Err(word.error(Problem::Stack)),
    }
}

pub(super) fn trace(
    words: &Words<'_>,
    choice: StackChoice,
    stacks: Stacks,
) -> Result<Option<u16>, ConfigError> {
    let Some(word) = words.get("trace") else { return Ok(None) };
    if choice != StackChoice::NetFront {
        return Err(word.error(Problem::NoTrace));
    }
    if !stacks.xensock {
        return Err(word.error(Problem::NoXensock));
    }
    words.read("trace", |trace| match trace.split_once(':') {
        None if trace == "pcap" => Some(TRACE_PORT),
        Some(("pcap", port)) => number_in(1, 65535)(port),
        _ => None,
    })
}

pub(super) fn network(words: &Words<'_>, choice: StackChoice) -> Result<Network, ConfigError> {
    let of_interface = ["net", "ip", "gw", "ip6", "gw6", "tcp-buffer"];
    if choice == StackChoice::XenSock
        && let Some(word) = of_interface.into_iter().find_map(|key| words.get(key))
    {
        return Err(word.error(Problem::NoInterface));
    }
    if let (Some(word), true) = (words.get("net"), words.get("ip").is_some()) {
        return Err(word.error(Problem::Net));
    }
    words.read("net", |net| (net == "dhcp").then_some(()))?;
    let gateway = words.read("gw", |gateway| gateway.parse().ok())?;
    let address = words.read("ip", |ip| {
        cidr(ip, 32).filter(|(ip, _): &(Ipv4Addr, _)| {
            !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast()
        })
    })?;
    let gateway6 = words.read("gw6", |gateway| gateway.parse().ok())?;
    let address6 = words.read("ip6", |ip| {
        cidr(ip, 128).filter(|(ip, _): &(Ipv6Addr, _)| !ip.is_unspecified() && !ip.is_multicast())
    })?;
    let stray = [("gw", address.is_none()), ("gw6", address6.is_none())];
    let stray = stray.iter().find_map(|(key, is_stray)| words.get(key).filter(|_| *is_stray));
    if let Some(word) = stray {
        return Err(word.error(Problem::StrayGateway));
    }
    let servers = words.read("dns", |dns| {
        let servers = dns.split(',').map(|server| server.parse().ok()).collect::<Option<Vec<_>>>();
        servers.filter(|servers| servers.len() <= MAX_SERVERS)
    })?;
    let tcp_buffer = words.read("tcp-buffer", number_in(4, 1024))?;
    let default = Network::default();
    Ok(Network {
        ipv4: address.map_or(default.ipv4, |(ip, bits)| Ipv4::Static {
            address: Ipv4Cidr::new(ip, bits),
            gateway,
        }),
        ipv6: address6.map(|(ip, bits)| (Ipv6Cidr::new(ip, bits), gateway6)),
        dns: servers.unwrap_or_default(),
        tcp_buffer: tcp_buffer.map_or(default.tcp_buffer, |kib: usize| kib << 10),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_trace_needs_the_guests_own_stack() {
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
    fn the_stack_is_xensock_by_default() {
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
    fn addresses_can_be_static() {
        let text = "stack=netfront ip=10.0.0.2/24 gw=10.0.0.1 dns=10.0.0.3,::3 ip6=fd00::2/64 \
                    gw6=fd00::1 tcp-buffer=9";
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
    fn each_mistake_has_its_own_error() {
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
