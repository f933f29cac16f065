//! Guests of any kind: how the toolstack makes them, and how they end.

use crate::fixture::{Fixture, cases};
use anyhow::{Result, ensure};
use lab::{Domain, Tree};
use std::time::Duration;

cases![a_guest_of_linux_boots_and_its_console_is_kept, a_dropped_guest_is_gone,];

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

fn a_guest_of_linux_boots_and_its_console_is_kept(fixture: &Fixture) -> Result<()> {
    let lab = fixture.lab()?;
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

fn a_dropped_guest_is_gone(fixture: &Fixture) -> Result<()> {
    let lab = fixture.lab()?;
    lab.push(&Tree::here().cache().join("vmlinuz"), "/tmp/vmlinuz")?;
    let guest = Domain::create(lab, "dropped", LINUX)?;
    let name = guest.name().to_owned();
    ensure!(guest.id()?.is_some());
    drop(guest);
    ensure!(lab.exec(&format!("xl domid {name}"))?.status != 0, "{name} is there still");
    Ok(())
}
