//! Datagrams of all sizes, floods of them, and what dies in a flood.

use super::peers::{Running, services};
use crate::fixture::{Fixture, cases, program, wait_until};
use crate::service::{Device, HTTP, Held, PATIENCE, comes_back_to, median};
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain};

cases![
    datagrams_of_all_sizes_come_back,
    a_flood_leaves_streams_half_of_their_rate,
    nothing_is_left_of_floods_and_of_those_who_die_in_them,
];

/// A guest with the benchmark's servers, and its client in dom0.
struct Bench<'a> {
    dom0: &'a Dom0,
    domain: Domain,
    port: u16,
}

impl<'a> Bench<'a> {
    fn start(fixture: &'a Fixture, device: Device) -> Result<Self> {
        let dom0 = fixture.lab()?;
        dom0.push(&program("client")?, "/root/client")?;
        let port = fixture.port()?.inner;
        for _ in 1..4 {
            fixture.port()?;
        }
        let words = format!("app=bench port={port} mb={MB} idle-timeout=0");
        let domain = device.create(dom0, "bench", &format!("{HTTP}\ncmdline = \"{words}\"\n"))?;
        domain.wait_for("serving on ports", PATIENCE)?;
        Ok(Bench { dom0, domain, port })
    }

    fn client(&self, words: &str) -> Result<String> {
        client(self.dom0, self.port, words)
    }

    fn number(&self, name: &str) -> Result<u64> {
        let page = format!("http://127.0.0.1:{}/metrics", self.port + 3);
        let page = self.dom0.run(&format!("wget -qO- {page}"))?;
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("xensock_{name} ")));
        line.and_then(|line| line.parse().ok()).with_context(|| format!("{name}: {page}"))
    }

    /// Grants and event channels at rest.
    fn in_use(&self) -> Result<[u64; 2]> {
        Ok([self.number("grants_in_use")?, self.number("ports_open")?])
    }
}

const MB: u32 = 16;

fn client(dom0: &Dom0, port: u16, words: &str) -> Result<String> {
    dom0.run(&format!("/root/client 127.0.0.1:{port} mb={MB} bare=yes {words}"))
}

/// A flood of datagrams to a guest's ports and, by its source, out of the guest.
fn flood(dom0: &Dom0, port: u16) -> Result<Running<'_>> {
    let line = format!("/root/client 127.0.0.1:{port} datagram-flood >/dev/null 2>&1 & echo $!");
    Ok(Running { dom0, end: format!("kill -9 {}", dom0.run(&line)?) })
}

fn datagrams_of_all_sizes_come_back(fixture: &Fixture) -> Result<()> {
    for device in [Device::PvCalls, Device::XenSock] {
        let bench = Bench::start(fixture, device)?;
        wait_until("the server of datagrams", PATIENCE, || {
            let said = bench.client("datagram-sizes")?;
            println!("{device:?}: {said}");
            Ok(said == "datagram_sizes 12")
        })?;
        // The rings of draft 1 have at most 64 KiB.
        if device == Device::PvCalls {
            let said = bench.client("longest-datagram")?;
            ensure!(said == "datagram_sizes 1", "{said}");
        }
    }
    Ok(())
}

fn a_flood_leaves_streams_half_of_their_rate(fixture: &Fixture) -> Result<()> {
    /// Half, without what the machine's noise takes.
    const SHARE: f64 = 0.45;
    /// As long as the median of the last turns is too bad, there is another one.
    const TURNS: usize = 30;
    const LAST: usize = 9;
    let bench = Bench::start(fixture, Device::PvCalls)?;
    let rate = || -> Result<f64> {
        let said = bench.client("out")?;
        let line = said.lines().find_map(|line| line.strip_prefix("out_mib_per_s "));
        Ok(line.with_context(|| said.clone())?.trim().parse()?)
    };
    rate()?;
    let mut shares = Vec::new();
    loop {
        let alone = rate()?;
        let flood = flood(bench.dom0, bench.port)?;
        let beside = rate()?;
        drop(flood);
        shares.push(beside / alone);
        println!("{beside:.1} of {alone:.1} MiB/s");
        if median(&shares[shares.len().saturating_sub(LAST)..]) >= SHARE {
            return Ok(());
        }
        ensure!(shares.len() < TURNS, "{shares:?}");
    }
}

fn nothing_is_left_of_floods_and_of_those_who_die_in_them(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let before = Held::by_backend(dom0)?;
    for device in [Device::PvCalls, Device::XenSock] {
        let bench = Bench::start(fixture, device)?;
        bench.client("datagrams count=10")?;
        let at_rest = bench.in_use()?;
        let received = || bench.number("app_received_bytes_total");
        // The client dies, and the guest goes on.
        let start = received()?;
        let killed = flood(dom0, bench.port)?;
        wait_until("the flood arrives", PATIENCE, || Ok(received()? > start + 1_000_000))?;
        drop(killed);
        comes_back_to(&at_rest, || bench.in_use())?;
        ensure!(bench.client("datagram-sizes")? == "datagram_sizes 12");
        // The guest dies.
        let start = received()?;
        let _flood = flood(dom0, bench.port)?;
        wait_until("the flood arrives", PATIENCE, || Ok(received()? > start + 1_000_000))?;
        dom0.run(&format!("xl destroy {}", bench.domain.name()))?;
        comes_back_to(&before, || Held::by_backend(dom0))?;

        // A guest that never receives shuts down as any other.
        let port = fixture.port()?.inner;
        let sleeper = services(fixture, device, &format!("sleep={port}"), "")?;
        sleeper.wait_for("sleeping", PATIENCE)?;
        let _flood = flood(dom0, port)?;
        dom0.run(&format!("sleep 2; xl shutdown -w {}", sleeper.name()))?;
        comes_back_to(&before, || Held::by_backend(dom0))?;
    }
    Ok(())
}
