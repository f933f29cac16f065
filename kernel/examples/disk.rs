//! A cache of a disk that another domain or host serves, or a client of such a disk. Words of the
//! command line:
//!
//! | word | meaning |
//! |---|---|
//! | `role=cache`, `role=client` | what this guest does |
//! | `upstream=ADDRESS` | the disk: `xen:0/disk`, `tcp:10.0.2.15:900/disk` |
//! | `stack=xensock`, `stack=netfront` | where its sockets live; without this word it has none |
//! | `tcp=IP:PORT` | others reach this guest there: its clients, and servers that use its buffers |
//! | `http=PORT` | shows its neighbours at this port |
//! | `cache=BLOCKS` | cache: how many blocks it keeps |
//! | `check=FIRST..END` | client: which blocks it reads, again and again |
//! | `own=FIRST..END` | client: which blocks it writes, and nobody else does |
//! | `pause=MILLISECONDS` | client: between its rounds |
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Display;
use core::net::{Ipv4Addr, SocketAddr};
use core::ops::Range;
use core::str::FromStr;
use disk::cache::Cache;
use disk::client::Disk;
use disk::neighbours::Neighbours;
use disk::server::{Limits, serve};
use disk::{BLOCK, Blocks, page};
use edge_nal::{TcpBind, TcpConnect};
use embassy_time::{Duration, Timer};
use idc::either::Either;
use idc::tcp::Tcp;
use idc::transport::Transport;
use idc::{Address, LocalBuffer, Node};
use kernel::System;
use sha2::{Digest, Sha256};

kernel::entry!(main);

/// Pages of a link, as a power of two.
const ORDER: u32 = 4;

/// The couriers of others that may use this guest's buffers at a time.
const COURIERS: usize = 8;

/// The transactions of this guest's at its disk, at a time.
const TRANSACTIONS: u16 = 4;

/// How many blocks a client reads or writes at once.
const PIECE: u64 = 128;

type Outcome<T = ()> = Result<T, String>;

#[derive(Clone, Default)]
struct Config {
    role: String,
    upstream: Option<Address>,
    stack: Option<String>,
    tcp: Option<SocketAddr>,
    http: Option<u16>,
    cache: Option<usize>,
    check: Option<Range<u64>>,
    own: Option<Range<u64>>,
    pause: Option<u64>,
}

impl Config {
    fn parse(line: &[u8]) -> Outcome<Self> {
        let line = core::str::from_utf8(line).map_err(failed("the command line"))?;
        let mut config = Config::default();
        for word in line.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "role" => config.role = value.to_string(),
                "upstream" => config.upstream = Some(value.parse().map_err(failed(key))?),
                "stack" => config.stack = Some(value.to_string()),
                "tcp" => config.tcp = Some(number(key, value)?),
                "http" => config.http = Some(number(key, value)?),
                "cache" => config.cache = Some(number(key, value)?),
                "check" => config.check = Some(range(key, value)?),
                "own" => config.own = Some(range(key, value)?),
                "pause" => config.pause = Some(number(key, value)?),
                // The kernel's own words.
                "log" | "evtchn" => {}
                _ => return Err(format!("the word {word:?} is unknown")),
            }
        }
        Ok(config)
    }
}

fn number<N: FromStr<Err: Display>>(key: &str, value: &str) -> Outcome<N> {
    value.parse().map_err(failed(&format!("{key}={value}")))
}

fn range(key: &str, value: &str) -> Outcome<Range<u64>> {
    let (first, end) = value.split_once("..").ok_or(format!("write {key}=FIRST..END"))?;
    Ok(number(key, first)?..number(key, end)?)
}

fn failed<E: Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

async fn main(system: System) -> Outcome {
    let config = Config::parse(system.command_line())?;
    match config.stack.as_deref() {
        Some("xensock") => {
            let stack = system.sockets(Default::default()).await.map_err(failed("sockets"))?;
            with_sockets(&system, config, Box::leak(Box::new(stack))).await
        }
        Some("netfront") => {
            let stack = system.network(Default::default(), Default::default(), None).await;
            let stack = stack.map_err(failed("network"))?;
            stack.configured().await;
            with_sockets(&system, config, Box::leak(Box::new(stack))).await
        }
        Some(other) => Err(format!("stack={other}: write xensock or netfront")),
        None => {
            let domains = system.idc(ORDER).await.map_err(failed("idc"))?;
            run(&system, config, domains, Neighbours::default()).await
        }
    }
}

/// Runs this guest with sockets, so that it reaches domains and hosts.
async fn with_sockets<S: TcpConnect + TcpBind>(
    system: &System,
    config: Config,
    stack: &'static S,
) -> Outcome {
    let neighbours = Neighbours::default();
    let listen = async |port| {
        let listener = stack.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await;
        let listener = listener.map_err(|error| format!("port {port}: {error:?}"))?;
        Ok::<_, String>(&*Box::leak(Box::new(listener)))
    };
    let hosts = Tcp::new(stack, config.tcp);
    if let Some(at) = config.tcp {
        let (hosts, listener) = (hosts.clone(), listen(at.port()).await?);
        system.spawn(async move { log::error!("TCP: {:?}", hosts.serve(listener).await) });
    }
    if let Some(port) = config.http {
        let (listener, neighbours) = (listen(port).await?, neighbours.clone());
        let title = format!("{} of a disk", config.role);
        system.spawn(async move {
            log::error!("the page: {:?}", page::serve(listener, &title, &neighbours).await)
        });
    }
    let domains = system.idc(ORDER).await.map_err(failed("idc"))?;
    run(system, config, Either { domains, hosts }, neighbours).await
}

/// Does what the command line says.
async fn run(
    system: &System,
    config: Config,
    transport: impl Transport + 'static,
    neighbours: Neighbours,
) -> Outcome {
    let random =
        system.random().await.map_err(|_| "a node needs RDRAND, or a seed in data/seed")?;
    let node = Node::new(transport, random);
    let buffers = node.clone();
    system.spawn(async move { log::error!("buffers: {}", buffers.serve_buffers(COURIERS).await) });
    let upstream = config.upstream.clone().ok_or("write upstream= and an address")?;
    let opened = Disk::open(&node, &upstream, TRANSACTIONS, &neighbours);
    let (disk, drive) = opened.map_err(failed("upstream"))?;
    system.spawn(drive);
    match &*config.role {
        "cache" => {
            let cache = Cache::new(disk, config.cache.unwrap_or(1024));
            let address = "any/disk".parse().map_err(failed("serve"))?;
            system.listening();
            let error = serve(&node, &address, &cache, Limits::default(), &neighbours).await;
            Err(format!("cannot serve: {error}"))
        }
        "client" => work(&disk, &config).await,
        other => Err(format!("role={other}: write cache or client")),
    }
}

/// Writes and reads blocks, round after round.
async fn work(disk: &impl Blocks, config: &Config) -> Outcome {
    let size = disk.size().await.map_err(failed("size"))?;
    let check = config.check.clone().unwrap_or(0..size);
    log::info!("the disk has {size} blocks");
    for round in 1.. {
        if let Some(own) = &config.own {
            write_and_compare(disk, own, round).await?;
        }
        let digest = digest(disk, &check).await?;
        log::info!("round {round}: blocks {check:?} have the digest {digest}");
        Timer::after(Duration::from_millis(config.pause.unwrap_or(1000))).await;
    }
    Ok(())
}

/// The pieces of a range of blocks.
fn pieces(blocks: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = blocks.end;
    blocks.clone().step_by(PIECE as usize).map(move |first| first..end.min(first + PIECE))
}

fn bytes(blocks: &Range<u64>) -> usize {
    (blocks.end - blocks.start) as usize * BLOCK
}

async fn digest(disk: &impl Blocks, blocks: &Range<u64>) -> Outcome<String> {
    let mut digest = Sha256::new();
    for piece in pieces(blocks) {
        let buffer = LocalBuffer::try_new(bytes(&piece)).map_err(failed("memory"))?;
        disk.read(piece.start, &buffer).await.map_err(failed("read"))?;
        digest.update(buffer.to_vec());
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What this client writes to its own blocks in a round.
fn content(blocks: &Range<u64>, round: u64) -> Vec<u8> {
    let mut content = vec![0; bytes(blocks)];
    for (block, bytes) in blocks.clone().zip(content.chunks_mut(BLOCK)) {
        let words = bytes.chunks_mut(8).zip(0u64..);
        words.for_each(|(word, at)| {
            word.copy_from_slice(&(round << 40 | block << 12 | at).to_le_bytes())
        });
    }
    content
}

async fn write_and_compare(disk: &impl Blocks, own: &Range<u64>, round: u64) -> Outcome {
    for piece in pieces(own) {
        let content = LocalBuffer::from(content(&piece, round));
        disk.write(piece.start, &content).await.map_err(failed("write"))?;
    }
    disk.flush().await.map_err(failed("flush"))?;
    for piece in pieces(own) {
        let buffer = LocalBuffer::try_new(bytes(&piece)).map_err(failed("memory"))?;
        disk.read(piece.start, &buffer).await.map_err(failed("read"))?;
        if buffer.to_vec() != content(&piece, round) {
            return Err(format!("round {round}: blocks {piece:?} are not as written"));
        }
    }
    Ok(())
}
