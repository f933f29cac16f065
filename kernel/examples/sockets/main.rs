//! Tests all features of the guest's sockets with any backend, and prints the results. Both ends
//! of each connection are in this guest, and connected through the backend's loopback interface.
//!
//! `port=N` is the first of some free ports there. `plain` means that the backend has no
//! extensions, so each must be refused with its error. `beside=ADDRESS` is dom0's address on its
//! bridge; it tests what all stacks have in common, between dom0's sockets and a stack in the
//! guest. `datagrams=N` is the port of `tests/examples/datagrams.rs` in dom0.
#![no_std]
#![no_main]

mod alike;
mod datagrams;

extern crate alloc;

use alike::*;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use datagrams::*;
use edge_nal::{Close, TcpShutdown};
use embassy_time::{Duration, with_timeout};
use embedded_io_async::{Read, Write};
use futures_util::future::join;
use kernel::System;
use kernel::machine::Domain;
use xen::Errno;
use xensock::front::{Frontend, Listener, Stream};
use xensock::wire::{Options, SocketOption};

kernel::entry!(main);

/// The time limit of a check.
const LIMIT: Duration = Duration::from_secs(60);

/// The result of a check: the error is the reason.
type Outcome = Result<(), String>;

/// The guest's sockets and their first port.
struct Bench {
    sockets: Frontend<Domain>,
    port: u16,
}

type End = Stream<Domain>;

async fn main(system: System) -> Result<(), String> {
    let line = core::str::from_utf8(system.command_line()).unwrap_or_default();
    let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
    let port =
        word("port=").and_then(|port| port.parse().ok()).ok_or("write port= and a number")?;
    let sockets = system.sockets(Default::default()).await.map_err(|error| error.to_string())?;
    let datagrams = word("datagrams=").and_then(|port| port.parse().ok());
    let datagrams = datagrams.ok_or("write datagrams= and a port of dom0")?;
    let mut tally = Tally::default();
    if let Some(dom0) = word("beside=") {
        let dom0 = dom0.parse().map_err(|_| "write beside= and dom0's address")?;
        both_stacks(&system, &sockets, dom0, [port, datagrams], &mut tally).await?;
    } else {
        one_stack(sockets, port, datagrams, word("plain").is_some(), &mut tally).await;
    }
    log::info!("checks are done: {} failed", tally.failed);
    Ok(())
}

/// The results.
#[derive(Default)]
struct Tally {
    failed: usize,
}

impl Tally {
    async fn check(&mut self, name: &str, check: impl Future<Output = Outcome>) {
        match with_timeout(LIMIT, check).await {
            Ok(Ok(())) => return log::info!("check {name}: ok"),
            Ok(Err(reason)) => log::error!("check {name}: {reason}"),
            Err(_) => log::error!("check {name}: timed out"),
        }
        self.failed += 1;
    }
}

macro_rules! checks {
    ($tally:ident, $on:expr, $($check:ident)*) => {
        $( $tally.check(stringify!($check), $check($on)).await; )*
    };
}

/// The checks for all stacks.
async fn alike(setup: Setup<'_, impl Near, impl Far>, tally: &mut Tally) {
    checks!(tally, &setup, bytes_go_both_ways a_refused_connection_fails
        several_connections_are_accepted_at_once binding_an_address_in_use_fails
        written_data_arrives_after_the_stream_is_dropped);
}

/// The checks for all stacks, except for dom0's sockets behind a backend without extensions.
async fn alike_with_extensions(setup: Setup<'_, impl Near, impl Far>, tally: &mut Tally) {
    checks!(tally, &setup, one_direction_closes_alone an_abort_resets_the_connection);
    alike(setup, tally).await;
}

/// The checks of datagrams for all stacks.
async fn datagrams_alike(exchange: Exchange<'_, impl Stack>, tally: &mut Tally) {
    checks!(tally, &exchange, datagrams_keep_their_bounds_and_name_their_sender
        a_datagram_that_does_not_fit_is_cut a_connected_socket_receives_from_its_peer_alone
        a_connected_socket_learns_that_its_peer_has_no_such_port
        binding_a_datagram_port_in_use_fails a_datagram_is_sent_after_its_socket_is_dropped
        a_datagram_beyond_64_kib_is_refused datagrams_go_both_ways_at_once);
}

/// Both ends of each connection are sockets of dom0.
async fn one_stack(
    sockets: Frontend<Domain>,
    port: u16,
    datagrams: u16,
    plain: bool,
    tally: &mut Tally,
) {
    let setup = |to| Setup { near: &sockets, far: &sockets, to, port };
    let bench = Bench { sockets: sockets.clone(), port };
    checks!(tally, &bench, readable_waits_for_a_connection connections_reuse_grants);
    if plain {
        alike(setup(Ipv4Addr::LOCALHOST.into()), tally).await;
        checks!(tally, &bench, each_extension_is_refused);
        return;
    }
    alike_with_extensions(setup(Ipv4Addr::LOCALHOST.into()), tally).await;
    alike_with_extensions(setup(Ipv6Addr::LOCALHOST.into()), tally).await;
    for dom0 in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let exchange = Exchange { stack: &sockets, peer: (dom0, datagrams).into(), port };
        datagrams_alike(exchange, tally).await;
    }
    checks!(tally, &bench, options_are_set_and_read both_ends_know_their_addresses
        rings_are_resized_under_traffic);
}

/// One end of each connection is a socket of dom0, the other one is in the guest's own stack.
async fn both_stacks(
    system: &System,
    sockets: &Frontend<Domain>,
    dom0: IpAddr,
    [port, datagrams]: [u16; 2],
    tally: &mut Tally,
) -> Result<(), String> {
    let stack = system.network(Default::default(), Default::default(), None).await;
    let stack = stack.map_err(|error| error.to_string())?;
    stack.configured().await;
    let own = stack.ipv4().ok_or("the interface has no address")?.address();
    log::info!("from dom0 to {own}");
    alike_with_extensions(Setup { near: sockets, far: &stack, to: own.into(), port }, tally).await;
    log::info!("from {own} to dom0");
    alike_with_extensions(Setup { near: &stack, far: sockets, to: dom0, port }, tally).await;
    let peer = (dom0, datagrams).into();
    datagrams_alike(Exchange { stack: &stack, peer, port }, tally).await;
    Ok(())
}

fn failed<E: Debug>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error:?}")
}

fn expect<T: PartialEq + Debug>(what: &str, got: T, wanted: T) -> Outcome {
    if got == wanted { Ok(()) } else { Err(format!("{what}: {got:?} and not {wanted:?}")) }
}

/// Bytes that reveal losses and swaps.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

impl Bench {
    fn address(&self, offset: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port + offset).into()
    }

    async fn listen(&self, offset: u16) -> Result<Listener<Domain>, String> {
        self.sockets.bind(self.address(offset)).await.map_err(failed("bind"))
    }

    /// Both ends of a connection; the accepted one is the second.
    async fn pair(&self, listener: &Listener<Domain>, to: SocketAddr) -> Result<[End; 2], String> {
        let (near, far) = join(self.sockets.connect(to), listener.accept()).await;
        Ok([near.map_err(failed("connect"))?, far.map_err(failed("accept"))?])
    }
}

async fn transfer(from: &mut impl Write, to: &mut impl Read, data: &[u8]) -> Outcome {
    let mut got = vec![0; data.len()];
    let (wrote, read) = join(from.write_all(data), to.read_exact(&mut got)).await;
    wrote.map_err(failed("write"))?;
    read.map_err(failed("read"))?;
    if got == data { Ok(()) } else { Err("the received bytes differ from those sent".to_string()) }
}

async fn readable_waits_for_a_connection(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let early = with_timeout(Duration::from_millis(200), listener.readable()).await;
    expect("no connection yet", early.is_err(), true)?;
    let (ready, near) = join(listener.readable(), bench.sockets.connect(bench.address(0))).await;
    ready.map_err(failed("poll"))?;
    let _near = near.map_err(failed("connect"))?;
    listener.accept().await.map(drop).map_err(failed("accept"))
}

async fn connections_reuse_grants(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let mut most = 0;
    for round in 0..20 {
        let [mut near, mut far] = bench.pair(&listener, bench.address(0)).await?;
        near.write_all(&[round]).await.map_err(failed("write"))?;
        let mut byte = [0];
        far.read_exact(&mut byte).await.map_err(failed("read"))?;
        expect("the byte", byte, [round])?;
        near.close(Close::Both).await.map_err(failed("close"))?;
        far.close(Close::Both).await.map_err(failed("close"))?;
        let grants = bench.sockets.statistics().grants;
        if round == 3 {
            most = grants;
        }
        if round > 3 && grants > most {
            return Err(format!("{grants} grants after {round} connections, {most} after 3"));
        }
    }
    Ok(())
}

async fn each_extension_is_refused(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let [mut near, _far] = bench.pair(&listener, bench.address(0)).await?;
    let refused = Err(Errno::EOPNOTSUPP);
    expect("half-close", near.close(Close::Write).await, refused)?;
    expect("an option", near.set_option(SocketOption::KeepAlive, 1).await, refused)?;
    expect("a name", near.local_addr().await.map(drop), refused)?;
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, bench.port));
    let six = bench.sockets.connect(six).await.map(drop);
    expect("IPv6", six, Err(Errno::EAFNOSUPPORT))?;
    let datagrams = bench.sockets.bind_udp(bench.address(1)).await.map(drop);
    expect("datagrams", datagrams, refused)
}

async fn options_are_set_and_read(bench: &Bench) -> Outcome {
    let options = Options::new().with(SocketOption::KeepAlive, 1).with(SocketOption::KeepIdle, 77);
    let listener = bench.listen(0).await?;
    let connecting = bench.sockets.connect_with(bench.address(0), options);
    let (near, far) = join(connecting, listener.accept()).await;
    let (mut near, _far) = (near.map_err(failed("connect"))?, far.map_err(failed("accept"))?);
    expect("SO_KEEPALIVE", near.option(SocketOption::KeepAlive).await, Ok(1))?;
    expect("TCP_KEEPIDLE", near.option(SocketOption::KeepIdle).await, Ok(77))?;
    for (option, value) in [
        (SocketOption::NoDelay, 0),
        (SocketOption::KeepInterval, 9),
        (SocketOption::KeepCount, 3),
        (SocketOption::BusyPoll, 20),
        (SocketOption::Linger, 2),
    ] {
        near.set_option(option, value).await.map_err(failed("set"))?;
        expect(&format!("{option:?}"), near.option(option).await, Ok(value))?;
    }
    // Two listeners can share an address if both set the option.
    let shares = Options::new().with(SocketOption::ReusePort, 1);
    let first = bench.sockets.bind_with(bench.address(1), shares).await.map_err(failed("bind"))?;
    expect("SO_REUSEPORT", first.option(SocketOption::ReusePort).await, Ok(1))?;
    bench.sockets.bind_with(bench.address(1), shares).await.map(drop).map_err(failed("share"))
}

async fn both_ends_know_their_addresses(bench: &Bench) -> Outcome {
    let listener =
        bench.sockets.bind((Ipv4Addr::LOCALHOST, 0).into()).await.map_err(failed("bind"))?;
    let to = listener.local_addr();
    expect("a port was chosen", to.port() != 0, true)?;
    let [near, far] = bench.pair(&listener, to).await?;
    let (near_local, far_local) = (near.local_addr().await, far.local_addr().await);
    expect("its peer", near.peer_addr(), Some(to))?;
    expect("the other's own name", far_local, Ok(to))?;
    expect("the other's peer", far.peer_addr(), near_local.ok())
}

async fn rings_are_resized_under_traffic(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let [mut near, mut far] = bench.pair(&listener, bench.address(0)).await?;
    let data = pattern(50_000);
    let mut sizes = Vec::new();
    for size in [4096, 100_000, 8192, 65536, 4096] {
        transfer(&mut near, &mut far, &data).await?;
        let mut tries = 0;
        // The former ring may still hold bytes.
        while let Err(error) = near.set_option(SocketOption::SendBuffer, size).await {
            tries += 1;
            if error != Errno::EBUSY || tries > 100 {
                return Err(format!("a size of {size}: {error}"));
            }
            embassy_time::Timer::after_millis(10).await;
        }
        sizes.push(near.option(SocketOption::SendBuffer).await.map_err(failed("size"))?);
        transfer(&mut far, &mut near, &data).await?;
    }
    let fits = sizes.windows(2).all(|pair| pair[0] != pair[1]) && sizes[1] >= 100_000;
    expect(&format!("the sizes {sizes:?} follow the requests"), fits, true)
}
