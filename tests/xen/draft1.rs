//! Guests over XenSock draft 1, which only `attach-sockets` attaches.

use crate::fixture::{Fixture, cases};
use crate::service::{
    Device, ECHO, HTTP, Held, Service, comes_back_to, exchange, fetch, pattern, sha256,
};
use anyhow::{Result, ensure};
use std::thread;

cases![
    a_page_and_downloads_are_served_over_draft_1,
    a_half_closed_connection_gets_its_10_mb_echo_over_draft_1,
    fetch_works_over_draft_1,
    invalid_arguments_of_the_attach_scripts_are_refused_with_a_reason,
];

fn a_page_and_downloads_are_served_over_draft_1(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::start_over(Device::XenSock, fixture, HTTP, "http", "memory = 64")?;
    let page = String::from_utf8(guest.curl(&["--include", &guest.url("/")])?)?;
    ensure!(page.starts_with("HTTP/1.1 200") && page.contains("XenSock"), "{page}");
    let id = guest.domain.id()?.unwrap_or_default();
    let state = dom0.run(&format!("xenstore-read /local/domain/0/backend/xensock/{id}/0/state"))?;
    ensure!(state == "4", "its device is in state {state}");
    let before = Held::by_backend(dom0)?;
    let wanted = sha256(&pattern(3_000_000));
    thread::scope(|scope| {
        let downloads: Vec<_> =
            (0..10).map(|_| scope.spawn(|| guest.curl(&[&guest.url("/bytes/3000000")]))).collect();
        for download in downloads {
            let got = sha256(&download.join().expect("a download's thread panicked")?);
            ensure!(got == wanted, "a download's digest is {got}, not {wanted}");
        }
        Ok(())
    })?;
    for _ in 0..100 {
        let (status, _) = guest.get("/healthz")?;
        ensure!(status.contains("200"), "{status}");
    }
    comes_back_to(&before, || Held::by_backend(dom0))
}

fn a_half_closed_connection_gets_its_10_mb_echo_over_draft_1(fixture: &Fixture) -> Result<()> {
    let guest = Service::start_over(Device::XenSock, fixture, ECHO, "echo", "")?;
    exchange(guest.port, &pattern(10_000_000))
}

fn fetch_works_over_draft_1(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let server = Service::start_over(Device::XenSock, fixture, HTTP, "http", "")?;
    let port = server.inner_port;
    let fetch = |url: &str| fetch(dom0, Device::XenSock, &format!("url={url}"));
    let console = fetch(&format!("http://127.0.0.1:{port}/bytes/1000003"))?;
    let digest = sha256(&pattern(1_000_003));
    ensure!(console.contains("1000003") && console.contains(&digest), "{console}");
    let console = fetch("http://127.0.0.1:1/")?;
    ensure!(console.contains("refused"), "{console}");
    Ok(())
}

fn invalid_arguments_of_the_attach_scripts_are_refused_with_a_reason(
    fixture: &Fixture,
) -> Result<()> {
    let dom0 = fixture.lab()?;
    for (line, reason) in [
        ("attach-sockets", "usage"),
        ("attach-sockets nobody-of-this-name", "nobody-of-this-name"),
        ("attach-sockets 0 netfront", "netfront"),
        ("attach-sockets 0 pvcalls 4711", "4711"),
        ("detach-sockets", "usage"),
        ("detach-sockets 0", "no device pvcalls"),
    ] {
        let output = dom0.exec(line)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status != 0 && said.contains(reason), "{line}: {output:?}");
    }
    Ok(())
}
