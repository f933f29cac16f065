//! Datagrams (UDP), and names, which are resolved by them.

pub mod floods;
pub mod peers;

use crate::fixture::{Fixture, cases, program};
use crate::service::{Device, HTTP, Service, fetch, pattern, sha256};
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Interface};

cases![names_are_resolved_by_datagrams_and_long_answers_by_streams];

fn names_are_resolved_by_datagrams_and_long_answers_by_streams(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let near = Interface::FIRST;
    let server = Service::start_over(Device::Netfront(near), fixture, HTTP, "http", "")?;
    let digest = sha256(&pattern(10_001));
    // The aliases of long.lab do not fit into a datagram.
    let alias = |letter: &str| format!("{0}.{0}.{0}.lab", letter.repeat(60));
    let aliases = ["long.lab".to_owned(), alias("a"), alias("b"), alias("c"), "server.lab".into()];
    let names: Vec<_> =
        aliases.windows(2).map(|pair| format!("--cname={}", pair.join(","))).collect();
    let names = names.join(" ");
    dom0.run(&format!("start-dnsmasq --host-record=server.lab,{} {names}", near.address()))?;
    let asked = || -> Result<u64> {
        let counts = dom0.run("grep ^Udp: /proc/net/snmp | tail -n 1")?;
        Ok(counts.split(' ').nth(1).context("no count of datagrams")?.parse()?)
    };
    let outcome = ["server.lab", "long.lab"].into_iter().try_for_each(|name| {
        let before = asked()?;
        let here = format!("ip=10.0.2.140/25 dns={}", Interface::DOM0);
        let url = format!("{here} url=http://{name}:{}/bytes/10001", server.inner_port);
        let console = fetch(dom0, Device::Netfront(Interface::numbered(1)), &url)?;
        ensure!(console.contains(&digest), "{name}: {console}");
        ensure!(asked()? > before, "{name}: the server received no datagram");
        Ok(())
    });
    dom0.run("start-dnsmasq")?;
    outcome
}

/// The program `tests/examples/datagrams.rs` in dom0, which ends when this is dropped.
pub struct Echo<'a> {
    dom0: &'a Dom0,
    id: String,
    /// Its first port.
    pub port: u16,
}

impl<'a> Echo<'a> {
    pub fn start(fixture: &'a Fixture) -> Result<Echo<'a>> {
        let dom0 = fixture.lab()?;
        let port = fixture.port()?.inner + 20_000;
        dom0.push(&program("datagrams")?, "/root/datagrams")?;
        let id = dom0.run(&format!(
            "/root/datagrams {port} >/tmp/datagrams 2>&1 & echo $!; \
             for try in $(seq 100); do grep -q ready /tmp/datagrams && break; sleep 0.1; done"
        ))?;
        let said = dom0.run("cat /tmp/datagrams")?;
        ensure!(said.contains("ready"), "{said}");
        Ok(Echo { dom0, id, port })
    }
}

impl Drop for Echo<'_> {
    fn drop(&mut self) {
        // The machine may have ended.
        let _ = self.dom0.exec(&format!("kill {}", self.id));
    }
}
