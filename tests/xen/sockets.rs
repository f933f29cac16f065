//! All socket operations, tested by an image against the real backend.

use crate::datagrams::Echo;
use crate::fixture::{Fixture, cases};
use crate::images::image;
use crate::service::{Device, PATIENCE};
use anyhow::{Result, ensure};
use lab::Interface;

cases![
    all_socket_operations_work_over_pv_calls,
    all_socket_operations_work_over_draft_1,
    sockets_in_dom0_and_in_the_guests_stack_behave_alike,
    sockets_work_without_the_backends_extensions,
];

fn all_socket_operations_work_over_pv_calls(fixture: &Fixture) -> Result<()> {
    checks_pass(fixture, Device::PvCalls, "", "")
}

fn all_socket_operations_work_over_draft_1(fixture: &Fixture) -> Result<()> {
    checks_pass(fixture, Device::XenSock, "", "")
}

fn sockets_work_without_the_backends_extensions(fixture: &Fixture) -> Result<()> {
    let lab = fixture.lab()?;
    lab.run("start-xensockd --plain")?;
    let outcomes =
        [Device::PvCalls, Device::XenSock].map(|of| checks_pass(fixture, of, "plain", ""));
    // The other tests need xensockd, even if this one fails.
    lab.run("start-xensockd")?;
    outcomes.into_iter().collect()
}

fn sockets_in_dom0_and_in_the_guests_stack_behave_alike(fixture: &Fixture) -> Result<()> {
    let settings = format!("vif = [\"{}\"]", Interface::FIRST.vif());
    let words = format!("beside={}", Interface::DOM0);
    checks_pass(fixture, Device::PvCalls, &words, &settings)
}

fn checks_pass(fixture: &Fixture, device: Device, words: &str, settings: &str) -> Result<()> {
    let port = fixture.port()?.inner + 10_000;
    let echo = Echo::start(fixture)?;
    let words = format!("port={port} datagrams={} {words}", echo.port);
    let config = image(fixture, "sockets", &words)?;
    let guest = device.create(fixture.lab()?, "sockets", &format!("{config}\n{settings}\n"))?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;
    ensure!(console.contains("checks are done: 0 failed"), "{device:?}: {console}");
    Ok(())
}
