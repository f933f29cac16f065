//! Guests: how the toolstack makes them, and what this project's own kernel serves.

use crate::bench::{Bench, cases, wait_until};
use anyhow::{Context, Result, ensure};
use lab::{Domain, Tree, http};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

cases![
    a_guest_of_linux_boots_and_its_console_is_kept,
    a_dropped_guest_is_gone,
    the_guest_of_http_cfg_serves_http,
    the_guest_of_echo_cfg_echoes,
];

/// How long a guest may take from its creation to what it is there for.
const START_TIME: Duration = Duration::from_secs(120);

const LINUX: &str = r#"
type = "pvh"
kernel = "/tmp/vmlinuz"
cmdline = "console=hvc0"
memory = 192
vcpus = 1
tsc_mode = "native"
"#;

fn a_guest_of_linux_boots_and_its_console_is_kept(bench: &Bench) -> Result<()> {
    let lab = bench.lab()?;
    lab.push(&Tree::here().cache().join("vmlinuz"), "/tmp/vmlinuz")?;
    let guest = Domain::create(lab, "linux", LINUX)?;
    guest.wait_for("Linux version", START_TIME)?;
    // It has no file system at all, so it must end by itself, and its words must stay.
    guest.wait_for("Unable to mount root fs", START_TIME)?;
    guest.wait_for_end(START_TIME)?;
    ensure!(guest.console()?.contains("Linux version"));
    let said = guest.wait_for("never to be said", START_TIME).unwrap_err().to_string();
    ensure!(said.contains("never to be said") && said.contains("Linux version"), "{said}");
    Ok(())
}

fn a_dropped_guest_is_gone(bench: &Bench) -> Result<()> {
    let lab = bench.lab()?;
    lab.push(&Tree::here().cache().join("vmlinuz"), "/tmp/vmlinuz")?;
    let guest = Domain::create(lab, "dropped", LINUX)?;
    let name = guest.name().to_owned();
    ensure!(guest.id()?.is_some());
    drop(guest);
    ensure!(lab.exec(&format!("xl domid {name}"))?.status != 0, "{name} is there still");
    Ok(())
}

fn the_guest_of_http_cfg_serves_http(bench: &Bench) -> Result<()> {
    let (_guest, port) = serve(bench, "http", 80)?;
    wait_until("the guest answers", START_TIME, || Ok(http::get(port, "/", &[]).is_ok()))?;
    let answer = http::get(port, "/", &[])?;
    ensure!(answer.status == 200 && !answer.body.is_empty(), "{answer:?}");
    let answer = http::get(port, "/no/such/page", &[])?;
    ensure!(answer.status == 404, "{answer:?}");
    Ok(())
}

fn the_guest_of_echo_cfg_echoes(bench: &Bench) -> Result<()> {
    let (_guest, port) = serve(bench, "echo", 7)?;
    let echo = |text: &[u8]| -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(START_TIME))?;
        stream.write_all(text)?;
        let mut got = vec![0; text.len()];
        stream.read_exact(&mut got)?;
        Ok(got)
    };
    wait_until(
        "the guest answers",
        START_TIME,
        || Ok(echo(b"hello").is_ok_and(|x| x == b"hello")),
    )?;
    let text: Vec<u8> = (0..50_000_u32).map(|i| ((i * i) >> 5) as u8).collect();
    ensure!(echo(&text)? == text, "the echo differs");
    Ok(())
}

/// Creates the guest of tests/dom0/NAME.cfg, and forwards a port to the one it listens on.
fn serve(bench: &Bench, name: &str, port: u16) -> Result<(Domain, u16)> {
    let config = Tree::here().guests()?.remove(name).context("no such guest")?;
    let lab = bench.lab()?;
    let guest = Domain::create(lab, name, &std::fs::read_to_string(config)?)?;
    let host = crate::bench::free_port()?;
    lab.forward(host, port)?;
    Ok((guest, host))
}
