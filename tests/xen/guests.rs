//! Guests of any kind: how the lab creates and destroys them.

use crate::fixture::{Fixture, cases};
use anyhow::{Result, ensure};
use lab::{Domain, Tree};
use std::time::Duration;

cases![a_linux_guest_boots_and_its_console_is_kept, a_dropped_guest_is_destroyed];

/// The time limit from a guest's creation to the awaited output.
const START_TIME: Duration = Duration::from_secs(120);

const LINUX: &str = r#"
type = "pvh"
kernel = "/tmp/vmlinuz"
cmdline = "console=hvc0"
memory = 192
vcpus = 1
tsc_mode = "native"
"#;

fn a_linux_guest_boots_and_its_console_is_kept(fixture: &Fixture) -> Result<()> {
    let lab = fixture.lab()?;
    lab.push(&Tree::here().cache().join("vmlinuz"), "/tmp/vmlinuz")?;
    let guest = Domain::create(lab, "linux", LINUX)?;
    guest.wait_for("Linux version", START_TIME)?;
    // Without a file system it ends by itself. Its output must be kept.
    guest.wait_for("Unable to mount root fs", START_TIME)?;
    guest.wait_for_end(START_TIME)?;
    ensure!(guest.console()?.contains("Linux version"));
    let said = guest.wait_for("never to be said", START_TIME).unwrap_err().to_string();
    ensure!(said.contains("never to be said") && said.contains("Linux version"), "{said}");
    Ok(())
}

fn a_dropped_guest_is_destroyed(fixture: &Fixture) -> Result<()> {
    let lab = fixture.lab()?;
    lab.push(&Tree::here().cache().join("vmlinuz"), "/tmp/vmlinuz")?;
    let guest = Domain::create(lab, "dropped", LINUX)?;
    let name = guest.name().to_owned();
    ensure!(guest.id()?.is_some());
    drop(guest);
    ensure!(lab.exec(&format!("xl domid {name}"))?.status != 0, "{name} still exists");
    Ok(())
}
