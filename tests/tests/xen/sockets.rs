//! What sockets can do, tried by an image of its own against the real backend.

use crate::bench::{Bench, cases};
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

fn sockets_do_all_that_they_can_over_pv_calls(bench: &Bench) -> Result<()> {
    checks_pass(bench, Device::PvCalls, "", "")
}

fn sockets_do_all_that_they_can_over_draft_1(bench: &Bench) -> Result<()> {
    checks_pass(bench, Device::XenSock, "", "")
}

fn sockets_do_what_the_plain_dialects_say_where_the_backend_has_no_extension(
    bench: &Bench,
) -> Result<()> {
    let lab = bench.lab()?;
    lab.run("start-xensockd --plain")?;
    let outcomes = [Device::PvCalls, Device::XenSock].map(|of| checks_pass(bench, of, "plain", ""));
    // The other cases need it, however this one ends.
    lab.run("start-xensockd")?;
    outcomes.into_iter().collect()
}

fn sockets_of_dom0_and_of_the_guests_own_stack_do_the_same(bench: &Bench) -> Result<()> {
    let settings = format!("vif = [\"{}\"]", Interface::FIRST.vif());
    let words = format!("beside={}", Interface::DOM0);
    checks_pass(bench, Device::PvCalls, &words, &settings)
}

fn checks_pass(bench: &Bench, device: Device, words: &str, settings: &str) -> Result<()> {
    let port = bench.port()?.inner + 10_000;
    let config = image(bench, "sockets", &format!("port={port} {words}"))?;
    let guest = device.create(bench.lab()?, "sockets", &format!("{config}\n{settings}\n"))?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;
    ensure!(console.contains("checks are done: 0 failed"), "{device:?}: {console}");
    Ok(())
}
