//! Event channels of both of Xen's ABIs, and the grant table, up to their limits.

use crate::fixture::{Fixture, cases};
use crate::images::image;
use crate::service::{HTTP, PATIENCE, Service, pattern};
use anyhow::{Result, ensure};
use lab::Domain;

cases![
    a_guest_serves_with_event_channels_of_either_abi,
    ports_and_grants_can_be_used_to_the_last_one_with_the_fifo_abi,
    ports_and_grants_can_be_used_to_the_last_one_with_the_2_level_abi,
];

fn a_guest_serves_with_event_channels_of_either_abi(fixture: &Fixture) -> Result<()> {
    // Xen supports both, so FIFO is the default.
    for (word, abi) in [("", "FIFO"), ("evtchn=fifo", "FIFO"), ("evtchn=2l", "2-level")] {
        let guest = Service::start(fixture, HTTP, &format!("http log=debug {word}"), "")?;
        for _ in 0..3 {
            let (status, bytes) = guest.get("/bytes/100003")?;
            ensure!(status.contains("200") && bytes == pattern(100_003), "{word}: {status}");
        }
        let console = guest.domain.console()?;
        ensure!(console.contains(&format!("event channels: {abi} ABI")), "{word}: {console}");
    }
    Ok(())
}

fn ports_and_grants_can_be_used_to_the_last_one_with_the_fifo_abi(fixture: &Fixture) -> Result<()> {
    // `max_event_channels` is the highest port; Xen's own limit for the table is in the lab's
    // `qemu.rs`.
    let console = checks_pass(fixture, "evtchn=fifo ports=6001 frames=100", 6000, 100)?;
    ensure!(console.contains("event channels: FIFO ABI"), "{console}");
    Ok(())
}

fn ports_and_grants_can_be_used_to_the_last_one_with_the_2_level_abi(
    fixture: &Fixture,
) -> Result<()> {
    let console = checks_pass(fixture, "evtchn=2l ports=4096 frames=2", 6000, 2)?;
    ensure!(console.contains("event channels: 2-level ABI"), "{console}");
    Ok(())
}

/// Runs the image with these limits and returns its console output.
fn checks_pass(fixture: &Fixture, cmdline: &str, ports: u32, frames: u32) -> Result<String> {
    let config = image(fixture, "events", cmdline)?;
    let limits = format!("max_event_channels = {ports}\nmax_grant_frames = {frames}\n");
    let guest = Domain::create(fixture.lab()?, "events", &format!("{config}{limits}"))?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;
    ensure!(console.contains("checks are done: 0 failed"), "{cmdline}: {console}");
    Ok(console)
}
