//! A disk that goes from dom0 through a guest that caches it to two others: `lab::DiskChain`.

use crate::fixture::{Fixture, Ports, cases, example, program, wait_until};
use crate::service::{PATIENCE, sha256};
use anyhow::{Context, Result, ensure};
use lab::{DiskChain, DiskPorts, Dom0, Domain, Tree};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::thread;
use std::time::Duration;

cases![
    two_guests_read_a_file_of_dom0_through_one_cache,
    a_file_loses_nothing_while_its_server_is_killed_again_and_again,
];

/// A disk and the port of its page.
struct Served {
    chain: DiskChain,
    page: Ports,
}

impl Served {
    fn start(fixture: &Fixture, cached: u32) -> Result<Self> {
        example("disk")?;
        program("disk")?;
        let dom0: &Dom0 = fixture.lab()?;
        let page = fixture.port()?;
        let ports = DiskPorts { page: page.inner, disk: fixture.port()?.inner };
        let chain = DiskChain::start(dom0, &Tree::here(), ports, cached)?;
        Ok(Served { chain, page })
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.page.host))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("the answer has no body")?;
        Ok(body.to_owned())
    }

    /// The neighbours of the cache.
    fn neighbours(&self) -> Result<Vec<Value>> {
        let mut status: Value = serde_json::from_str(&self.get("/status.json")?)?;
        match status["neighbours"].take() {
            Value::Array(neighbours) => Ok(neighbours),
            other => anyhow::bail!("{other} instead of the neighbours"),
        }
    }

    /// Pauses the clients, wherever they are, and waits until the server has done what it was asked
    /// to do.
    fn pause_clients(&self, dom0: &Dom0) -> Result<()> {
        for client in [&self.chain.near, &self.chain.far] {
            dom0.run(&format!("xl pause {}", client.name()))?;
        }
        thread::sleep(Duration::from_secs(1));
        Ok(())
    }

    /// The digest of those blocks of the file that are only read, and each own block's round.
    fn file(&self) -> Result<(String, [Vec<u64>; 2])> {
        let folder = tempfile::tempdir()?;
        let copy = folder.path().join("disk");
        self.chain.pull_file(&copy)?;
        let bytes = std::fs::read(copy)?;
        let blocks = |range: &Range<u32>| {
            &bytes[range.start as usize * DiskChain::BLOCK..range.end as usize * DiskChain::BLOCK]
        };
        let rounds = DiskChain::OWN.map(|own| rounds(&own, blocks(&own)));
        let [near, far] = rounds;
        Ok((sha256(blocks(&DiskChain::READ)), [near?, far?]))
    }
}

/// In which round each block was written, as `kernel/examples/disk.rs` does: each word has the
/// round, the block and its own number. Fails if a block has the words of several rounds.
fn rounds(own: &Range<u32>, bytes: &[u8]) -> Result<Vec<u64>> {
    let blocks = own.clone().zip(bytes.chunks(DiskChain::BLOCK));
    blocks
        .map(|(block, bytes)| {
            let words = bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            let words: Vec<_> = words.collect();
            let round = words[0] >> 40;
            let expected = (0..).map(|at| round << 40 | u64::from(block) << 12 | at);
            ensure!(words.iter().copied().eq(expected.take(words.len())), "block {block} is torn");
            Ok(round)
        })
        .collect()
}

/// The rounds that a client has finished, with the digests of what it has read.
fn finished(client: &Domain) -> Result<Vec<(u64, String)>> {
    let console = client.console()?;
    let rounds = console.lines().filter_map(|line| {
        let (_, rest) = line.split_once("round ")?;
        let (round, rest) = rest.split_once(": ")?;
        Some((round.parse().ok()?, rest.rsplit(' ').next()?.to_owned()))
    });
    Ok(rounds.collect())
}

/// Waits until a client has finished this round.
fn wait_for(client: &Domain, round: u64) -> Result<()> {
    client.wait_for(&format!("round {round}: "), PATIENCE).map(drop)
}

fn two_guests_read_a_file_of_dom0_through_one_cache(fixture: &Fixture) -> Result<()> {
    let served = Served::start(fixture, DiskChain::BLOCKS)?;
    let chain = &served.chain;
    let clients = [&chain.near, &chain.far];
    clients.iter().try_for_each(|client| wait_for(client, 2))?;
    served.pause_clients(fixture.lab()?)?;
    let (digest, written) = served.file()?;
    for (client, written) in clients.iter().zip(written) {
        let read = finished(client)?;
        ensure!(read.iter().all(|(_, read)| *read == digest), "{digest} was read as {read:?}");
        ensure!(written.iter().all(|round| *round > 0), "{written:?} was written");
    }
    let neighbours = served.neighbours()?;
    let near = format!("xen:{}", chain.near.id()?.context("the near client has ended")?);
    let roles = [("xen:0/disk", "server"), (&near, "client"), ("tcp:10.0.2.131:", "client")];
    for (address, role) in roles {
        let is_it = |one: &&Value| one["address"].as_str().unwrap_or("").starts_with(address);
        let one = neighbours.iter().find(is_it);
        let one = one.with_context(|| format!("no {address} in {neighbours:?}"))?;
        ensure!(one["role"] == role && one["state"] == "connected", "{one}");
        ensure!(one["failures"] == 0 && one["connections"] == 1, "{one}");
    }
    let sum = |name: &str| neighbours.iter().filter_map(|one| one[name].as_u64()).sum::<u64>();
    let (hits, misses) = (sum("hits"), sum("misses"));
    // Each block is read from dom0 once, unless both clients miss it at the same time.
    ensure!(misses <= 2 * u64::from(DiskChain::BLOCKS) && hits > misses, "{hits} of {misses}");
    println!("{hits} blocks came from memory, {misses} from dom0");
    let page = served.get("/")?;
    ensure!(page.contains(&format!("<td>{near}<td>client<td>connected")), "{page}");
    Ok(())
}

fn a_file_loses_nothing_while_its_server_is_killed_again_and_again(
    fixture: &Fixture,
) -> Result<()> {
    const KILLS: u64 = 5;
    // Most reads miss, so that reads are in flight as well as writes.
    let mut served = Served::start(fixture, 64)?;
    for number in 0..KILLS {
        let rounds = finished(&served.chain.near)?.last().map_or(0, |(round, _)| *round);
        wait_for(&served.chain.near, rounds + 1)?;
        thread::sleep(Duration::from_millis(300 * number));
        served.chain.kill_server();
        let is_waiting = || Ok(served.neighbours()?[0]["state"] == "waiting");
        wait_until("the page shows that the server is gone", PATIENCE, is_waiting)?;
        ensure!(served.chain.start_server()?, "the server was not killed");
    }
    let clients = [&served.chain.near, &served.chain.far];
    let last = clients.map(finished);
    for (client, last) in clients.iter().zip(last) {
        wait_for(client, last?.last().map_or(0, |(round, _)| *round) + 1)?;
    }
    let server = &served.neighbours()?[0];
    ensure!(server["connections"].as_u64() > Some(KILLS), "{server}");
    served.pause_clients(fixture.lab()?)?;
    let (digest, written) = served.file()?;
    for (client, written) in clients.iter().zip(written) {
        let read = finished(client)?;
        ensure!(read.iter().all(|(_, read)| *read == digest), "{digest} was read as {read:?}");
        let last = read.last().context("no round")?.0;
        // The next round may be half written.
        let known = |round: &u64| (last..=last + 1).contains(round);
        ensure!(written.iter().all(known), "{written:?} after round {last}");
        println!("{}: {last} rounds", client.name());
    }
    Ok(())
}
