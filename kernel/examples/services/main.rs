//! Services of datagrams (UDP), over dom0's sockets or over the guest's own stack. Each word starts
//! one:
//!
//! | word | service |
//! |---|---|
//! | `dns=PORT` | a DNS server for the names of all words `name=NAME:ADDRESS` |
//! | `ntp=ADDRESS:PORT` | sets the guest's clock by an NTP server, once |
//! | `mdns=NAME:ADDRESS` | NAME.local has this address, which also serves HTTP at port 80 |
//! | `iperf=PORT` | an iperf3 server that receives datagrams: `iperf3 -c HOST -p PORT -u` |
//! | `sleep=PORT` | a socket that never receives |
//!
//! `stack=netfront` is the guest's own stack.
#![no_std]
#![no_main]

mod dns;
mod iperf;
mod mdns;
mod ntp;

extern crate alloc;

use alloc::string::{String, ToString};
use core::fmt::Display;
use core::future::pending;
use core::net::{Ipv4Addr, SocketAddr};
use core::str::FromStr;
use edge_nal::{TcpBind, UdpBind};
use futures_util::future::try_join5;
use kernel::System;

kernel::entry!(main);

async fn main(system: System) -> Result<(), String> {
    let line = Words(core::str::from_utf8(system.command_line()).map_err(text)?);
    // mDNS gets numbers from `getrandom`, which has a seed from now on.
    let _random = system.random().await.map_err(text)?;
    if line.all("stack=").any(|stack| stack == "netfront") {
        let stack = system.network(Default::default(), Default::default(), None).await;
        let stack = stack.map_err(text)?;
        stack.configured().await;
        serve(&system, &stack, line).await
    } else {
        let sockets = system.sockets(Default::default()).await.map_err(text)?;
        serve(&system, &sockets, line).await
    }
}

/// Runs the services. They end with the first error.
async fn serve<S: TcpBind + UdpBind>(
    system: &System,
    stack: &S,
    line: Words<'_>,
) -> Result<(), String>
where
    <S as TcpBind>::Error: Display,
    <S as UdpBind>::Error: Display,
{
    let dns = async {
        let Some(port) = line.one("dns=")? else { return Ok(()) };
        let zone = line.all("name=").map(str::parse).collect::<Result<_, _>>()?;
        dns::serve(stack, port, zone).await
    };
    let ntp = async {
        let Some(server) = line.one("ntp=")? else { return Ok(()) };
        ntp::set_clock(system, stack, server).await
    };
    let mdns = async {
        let Some(host) = line.one("mdns=")? else { return Ok(()) };
        mdns::respond(stack, host).await
    };
    let iperf = async {
        let Some(port) = line.one("iperf=")? else { return Ok(()) };
        iperf::serve(stack, port).await
    };
    let sleep = async {
        let Some(port) = line.one("sleep=")? else { return Ok(()) };
        let _socket = UdpBind::bind(stack, any(port)).await.map_err(failed("bind"))?;
        log::info!("sleeping on port {port}");
        pending().await
    };
    try_join5(dns, ntp, mdns, iperf, sleep).await.map(drop)
}

/// The words of the command line.
#[derive(Clone, Copy)]
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    /// The values of all words that begin with `key`.
    fn all(self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0.split_whitespace().filter_map(move |word| word.strip_prefix(key))
    }

    fn one<T: FromStr<Err: Display>>(self, key: &str) -> Result<Option<T>, String> {
        let value = self.all(key).next();
        let value = value.map(|value| value.parse().map_err(failed(value)));
        value.transpose()
    }
}

/// A name and its address, written `NAME:ADDRESS`.
struct Named<A> {
    name: String,
    address: A,
}

impl<A: FromStr<Err: Display>> FromStr for Named<A> {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let (name, address) = word.split_once(':').ok_or("write NAME:ADDRESS")?;
        Ok(Named { name: name.to_string(), address: address.parse().map_err(text)? })
    }
}

/// A port of all IPv4 addresses.
fn any(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn failed<E: Display>(what: &str) -> impl Fn(E) -> String {
    move |error| alloc::format!("{what}: {error}")
}
