//! Tries, against whatever backend serves this guest, all that its sockets can do, and says what came of
//! it: each connection has both of its ends here, and goes through the backend's loopback interface.
//!
//! `port=N` is the first of some ports that are free there. `plain` says that the backend has no
//! extension, so that each of them must be refused by name.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use edge_nal::{Close, TcpShutdown, TcpSplit};
use embassy_time::{Duration, with_timeout};
use embedded_io_async::{Read, Write};
use futures_util::future::{join, join_all};
use kernel::System;
use kernel::machine::Domain;
use xen::Errno;
use xensock::front::{Frontend, Listener, Stream};
use xensock::wire::{Options, SocketOption};

kernel::entry!(main);

/// How long one of the checks may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What a check ends with: a sentence about what was wrong.
type Outcome = Result<(), String>;

/// The guest's sockets, and the ports that they may use.
struct Bench {
    sockets: Frontend<Domain>,
    port: u16,
}

type End = Stream<Domain>;

async fn main(system: System) -> Result<(), String> {
    let line = core::str::from_utf8(system.command_line()).unwrap_or_default();
    let port = line.split_whitespace().find_map(|word| word.strip_prefix("port="));
    let port = port.and_then(|port| port.parse().ok()).ok_or("say port=, and a number")?;
    let plain = line.split_whitespace().any(|word| word == "plain");
    let sockets = system.sockets(Default::default()).await.map_err(|error| error.to_string())?;
    let bench = Bench { sockets, port };

    let mut failed = 0;
    macro_rules! checks {
        ($($check:ident)*) => { $(
            match with_timeout(LIMIT, $check(&bench)).await {
                Ok(Ok(())) => log::info!("check {}: ok", stringify!($check)),
                Ok(Err(reason)) => {
                    failed += 1;
                    log::error!("check {}: {reason}", stringify!($check));
                }
                Err(_) => {
                    failed += 1;
                    log::error!("check {}: it takes too long", stringify!($check));
                }
            }
        )* };
    }
    checks!(bytes_go_both_ways a_refused_connection_says_so several_connections_are_accepted_at_once
        a_connection_can_be_waited_for_without_a_ring an_address_in_use_says_so
        connections_use_grants_again);
    if plain {
        checks!(extensions_are_refused_by_name);
    } else {
        checks!(options_are_set_and_asked_for one_direction_closes_alone both_ends_know_their_names
            connections_go_over_ipv6 rings_change_their_size_under_traffic
            an_aborted_connection_is_a_reset);
    }
    log::info!("checks are done: {failed} failed");
    Ok(())
}

fn say<E: Debug>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error:?}")
}

fn expect<T: PartialEq + Debug>(what: &str, got: T, wanted: T) -> Outcome {
    if got == wanted { Ok(()) } else { Err(format!("{what}: {got:?} and not {wanted:?}")) }
}

/// Bytes that show when they are out of order or lost.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

impl Bench {
    fn address(&self, offset: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port + offset).into()
    }

    async fn listen(&self, offset: u16) -> Result<Listener<Domain>, String> {
        self.sockets.bind(self.address(offset)).await.map_err(say("bind"))
    }

    /// Both ends of a connection, the accepted one last.
    async fn pair(&self, listener: &Listener<Domain>, to: SocketAddr) -> Result<[End; 2], String> {
        let (near, far) = join(self.sockets.connect(to), listener.accept()).await;
        Ok([near.map_err(say("connect"))?, far.map_err(say("accept"))?])
    }
}

async fn transfer(from: &mut impl Write, to: &mut impl Read, data: &[u8]) -> Outcome {
    let mut got = vec![0; data.len()];
    let (wrote, read) = join(from.write_all(data), to.read_exact(&mut got)).await;
    wrote.map_err(say("write"))?;
    read.map_err(say("read"))?;
    if got == data { Ok(()) } else { Err("what came is not what was sent".to_string()) }
}

async fn bytes_go_both_ways(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let [mut near, mut far] = bench.pair(&listener, bench.address(0)).await?;
    let (there, back) = (pattern(700_000), pattern(600_001));
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
        (near.split(), far.split());
    let (one, other) = join(
        transfer(&mut near_write, &mut far_read, &there),
        transfer(&mut far_write, &mut near_read, &back),
    )
    .await;
    one.and(other)?;
    near.close(Close::Both).await.map_err(say("close"))?;
    expect("the end", far.read(&mut [0]).await, Ok(0))
}

async fn a_refused_connection_says_so(bench: &Bench) -> Outcome {
    let refused = bench.sockets.connect(bench.address(1)).await.map(drop);
    expect("connect", refused, Err(Errno::ECONNREFUSED))
}

async fn several_connections_are_accepted_at_once(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let accepting = join_all((0..5).map(|_| listener.accept()));
    let connecting = join_all((0..5).map(|_| bench.sockets.connect(bench.address(0))));
    let (accepted, connected) = join(accepting, connecting).await;
    for (number, stream) in (0u8..).zip(connected) {
        stream.map_err(say("connect"))?.write_all(&[number]).await.map_err(say("write"))?;
    }
    let mut seen = Vec::new();
    for stream in accepted {
        let mut byte = [0];
        let mut stream = stream.map_err(say("accept"))?;
        stream.read_exact(&mut byte).await.map_err(say("read"))?;
        seen.push(byte[0]);
    }
    seen.sort_unstable();
    expect("who came", seen, vec![0, 1, 2, 3, 4])
}

async fn a_connection_can_be_waited_for_without_a_ring(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let early = with_timeout(Duration::from_millis(200), listener.readable()).await;
    expect("nobody is there", early.is_err(), true)?;
    let (ready, near) = join(listener.readable(), bench.sockets.connect(bench.address(0))).await;
    ready.map_err(say("poll"))?;
    let _near = near.map_err(say("connect"))?;
    listener.accept().await.map(drop).map_err(say("accept"))
}

async fn an_address_in_use_says_so(bench: &Bench) -> Outcome {
    let _listener = bench.listen(0).await?;
    let second = bench.sockets.bind(bench.address(0)).await.map(drop);
    expect("bind", second, Err(Errno::EADDRINUSE))
}

async fn connections_use_grants_again(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let mut most = 0;
    for round in 0..20 {
        let [mut near, mut far] = bench.pair(&listener, bench.address(0)).await?;
        near.write_all(&[round]).await.map_err(say("write"))?;
        let mut byte = [0];
        far.read_exact(&mut byte).await.map_err(say("read"))?;
        expect("the byte", byte, [round])?;
        near.close(Close::Both).await.map_err(say("close"))?;
        far.close(Close::Both).await.map_err(say("close"))?;
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

async fn extensions_are_refused_by_name(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let [mut near, _far] = bench.pair(&listener, bench.address(0)).await?;
    let refused = Err(Errno::EOPNOTSUPP);
    expect("half-close", near.close(Close::Write).await, refused)?;
    expect("an option", near.set_option(SocketOption::KeepAlive, 1).await, refused)?;
    expect("a name", near.local_addr().await.map(drop), refused)?;
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, bench.port));
    let six = bench.sockets.connect(six).await.map(drop);
    expect("IPv6", six, Err(Errno::EAFNOSUPPORT))
}

async fn options_are_set_and_asked_for(bench: &Bench) -> Outcome {
    let options = Options::new().with(SocketOption::KeepAlive, 1).with(SocketOption::KeepIdle, 77);
    let listener = bench.listen(0).await?;
    let connecting = bench.sockets.connect_with(bench.address(0), options);
    let (near, far) = join(connecting, listener.accept()).await;
    let (mut near, _far) = (near.map_err(say("connect"))?, far.map_err(say("accept"))?);
    expect("SO_KEEPALIVE", near.option(SocketOption::KeepAlive).await, Ok(1))?;
    expect("TCP_KEEPIDLE", near.option(SocketOption::KeepIdle).await, Ok(77))?;
    for (option, value) in [
        (SocketOption::NoDelay, 0),
        (SocketOption::KeepInterval, 9),
        (SocketOption::KeepCount, 3),
        (SocketOption::BusyPoll, 20),
        (SocketOption::Linger, 2),
    ] {
        near.set_option(option, value).await.map_err(say("set"))?;
        expect(&format!("{option:?}"), near.option(option).await, Ok(value))?;
    }
    // Two listeners share an address when both say so.
    let shares = Options::new().with(SocketOption::ReusePort, 1);
    let first = bench.sockets.bind_with(bench.address(1), shares).await.map_err(say("bind"))?;
    expect("SO_REUSEPORT", first.option(SocketOption::ReusePort).await, Ok(1))?;
    bench.sockets.bind_with(bench.address(1), shares).await.map(drop).map_err(say("share"))
}

async fn one_direction_closes_alone(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let [mut near, mut far] = bench.pair(&listener, bench.address(0)).await?;
    let data = pattern(300_000);
    let asking = async {
        near.write_all(&data).await.map_err(say("write"))?;
        near.close(Close::Write).await.map_err(say("half-close"))?;
        expect("a write after that", near.write(b"x").await, Err(Errno::EPIPE))?;
        let mut answer = [0; 6];
        near.read_exact(&mut answer).await.map_err(say("read"))?;
        expect("the answer", &answer, b"answer")
    };
    let answering = async {
        let (mut got, mut some) = (Vec::new(), vec![0; 8192]);
        loop {
            match far.read(&mut some).await.map_err(say("read"))? {
                0 => break,
                count => got.extend_from_slice(&some[..count]),
            }
        }
        expect("what came", got == data, true)?;
        far.write_all(b"answer").await.map_err(say("write"))
    };
    let (asked, answered) = join(asking, answering).await;
    asked.and(answered)
}

async fn both_ends_know_their_names(bench: &Bench) -> Outcome {
    let listener =
        bench.sockets.bind((Ipv4Addr::LOCALHOST, 0).into()).await.map_err(say("bind"))?;
    let to = listener.local_addr();
    expect("a port was chosen", to.port() != 0, true)?;
    let [near, far] = bench.pair(&listener, to).await?;
    let (near_local, far_local) = (near.local_addr().await, far.local_addr().await);
    expect("its peer", near.peer_addr(), Some(to))?;
    expect("the other's own name", far_local, Ok(to))?;
    expect("the other's peer", far.peer_addr(), near_local.ok())
}

async fn connections_go_over_ipv6(bench: &Bench) -> Outcome {
    let at = SocketAddr::from((Ipv6Addr::LOCALHOST, bench.port));
    let listener = bench.sockets.bind(at).await.map_err(say("bind"))?;
    let [mut near, mut far] = bench.pair(&listener, at).await?;
    expect("its peer", far.peer_addr().map(|peer| peer.ip()), Some(at.ip()))?;
    transfer(&mut near, &mut far, &pattern(100_000)).await
}

async fn rings_change_their_size_under_traffic(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let [mut near, mut far] = bench.pair(&listener, bench.address(0)).await?;
    let data = pattern(50_000);
    let mut sizes = Vec::new();
    for size in [4096, 100_000, 8192, 65536, 4096] {
        transfer(&mut near, &mut far, &data).await?;
        let mut tries = 0;
        // What the ring before still holds is on its way.
        while let Err(error) = near.set_option(SocketOption::SendBuffer, size).await {
            tries += 1;
            if error != Errno::EBUSY || tries > 100 {
                return Err(format!("a size of {size}: {error}"));
            }
            embassy_time::Timer::after_millis(10).await;
        }
        sizes.push(near.option(SocketOption::SendBuffer).await.map_err(say("size"))?);
        transfer(&mut far, &mut near, &data).await?;
    }
    let fits = sizes.windows(2).all(|pair| pair[0] != pair[1]) && sizes[1] >= 100_000;
    expect(&format!("the sizes {sizes:?} follow the wishes"), fits, true)
}

async fn an_aborted_connection_is_a_reset(bench: &Bench) -> Outcome {
    let listener = bench.listen(0).await?;
    let [mut near, mut far] = bench.pair(&listener, bench.address(0)).await?;
    near.write_all(b"x").await.map_err(say("write"))?;
    near.abort().await.map_err(say("abort"))?;
    let mut some = [0; 8];
    let end = loop {
        match far.read(&mut some).await {
            Ok(1..) => {}
            end => break end,
        }
    };
    expect("what the other end sees", end, Err(Errno::ECONNRESET))
}
