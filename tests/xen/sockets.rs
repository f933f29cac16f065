//! What sockets can do, tried by an image of its own against the real backend.

use crate::fixture::{Fixture, cases};
use crate::images::image;
use crate::service::{Device, PATIENCE};
use anyhow::{Result, ensure};
use lab::Interface;

cases![
    sockets_do_all_that_they_can_over_pv_calls,
    sockets_do_all_that_they_can_over_draft_1,
    sockets_of_dom0_and_of_the_guests_own_stack_do_the_same,
    sockets_do_what_the_plain_dialects_say_where_the_backend_has_no_extension,
];

fn sockets_do_all_that_they_can_over_pv_calls(fixture: &Fixture) -> Result<()> {
    checks_pass(fixture, Device::PvCalls, "", "")
}

fn sockets_do_all_that_they_can_over_draft_1(fixture: &Fixture) -> Result<()> {
    checks_pass(fixture, Device::XenSock, "", "")
}

fn sockets_do_what_the_plain_dialects_say_where_the_backend_has_no_extension(
    fixture: &Fixture,
) -> Result<()> {
    let lab = fixture.lab()?;
    lab.run("start-xensockd --plain")?;
    let outcomes =
        [Device::PvCalls, Device::XenSock].map(|of| checks_pass(fixture, of, "plain", ""));
    // The other cases need it, however this one ends.
    lab.run("start-xensockd")?;
    outcomes.into_iter().collect()
}

fn sockets_of_dom0_and_of_the_guests_own_stack_do_the_same(fixture: &Fixture) -> Result<()> {
    let settings = format!("vif = [\"{}\"]", Interface::FIRST.vif());
    let words = format!("beside={}", Interface::DOM0);
    checks_pass(fixture, Device::PvCalls, &words, &settings)
}

fn checks_pass(fixture: &Fixture, device: Device, words: &str, settings: &str) -> Result<()> {
    let port = fixture.port()?.inner + 10_000;
    let config = image(fixture, "sockets", &format!("port={port} {words}"))?;
    let guest = device.create(fixture.lab()?, "sockets", &format!("{config}\n{settings}\n"))?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;
    ensure!(console.contains("checks are done: 0 failed"), "{device:?}: {console}");
    Ok(())
}
