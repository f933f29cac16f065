//! Guests that are saved, restored and migrated.

use crate::fixture::{Fixture, cases, wait_until};
use crate::service::{
    Device, ECHO, HTTP, InUse, Load, PATIENCE, Service, comes_back_to, echo, pattern, rounds,
    sha256,
};
use anyhow::{Result, ensure};
use lab::Dom0;
use std::io::Read;

cases![
    a_server_serves_after_save_and_restore_under_load,
    a_checkpointed_guest_keeps_its_connections,
    a_connection_ends_when_its_guest_is_saved,
    a_restored_guest_over_draft_1_serves_once_its_device_is_attached,
    a_guest_migrates,
];

fn is_right(guest: &Service, dom0: &Dom0) -> Result<()> {
    let wanted = sha256(&pattern(1_000_000));
    ensure!(sha256(&guest.get("/bytes/1000000")?.1) == wanted, "other bytes");
    let now: u64 = dom0.run("date +%s")?.parse()?;
    let guests = guest.metrics()?["unix_time_seconds"];
    ensure!(guests.abs_diff(now) < 30, "it is {now} in dom0 and {guests} in the guest");
    Ok(())
}

fn a_server_serves_after_save_and_restore_under_load(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::http(fixture)?;
    let name = guest.domain.name().to_owned();
    let before = InUse::at_rest(&guest, dom0)?;
    let mut uptime = 0;
    let rounds = rounds()?;
    for round in 1..=rounds {
        let load = Load::of(&guest)?;
        load.runs(&guest)?;
        let now = guest.metrics()?["uptime_seconds"];
        ensure!(now >= uptime, "round {round}: the guest's clock has gone back");
        uptime = now;
        dom0.run(&format!("xl save {name} /root/saved"))?;
        ensure!(guest.domain.id()?.is_none(), "it was saved and still runs");
        dom0.run("xl restore /root/saved && rm /root/saved")?;
        wait_until("the guest serves again", PATIENCE, || Ok(guest.is_served()))?;
        drop(load);
        is_right(&guest, dom0)?;
        comes_back_to(&before, || InUse::by(&guest, dom0))?;
    }
    let console = guest.domain.console()?;
    ensure!(console.matches("restored").count() == rounds, "{console}");
    ensure!(!console.contains("panic"), "{console}");
    ensure!(guest.metrics()?["quarantined_pages"] == 0);
    dom0.run(&format!("xl shutdown -w {name}"))?;
    guest.domain.wait_for_end(PATIENCE)
}

fn a_checkpointed_guest_keeps_its_connections(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::start(fixture, ECHO, "echo", "")?;
    let mut stream = guest.connect()?;
    for _ in 0..2 {
        echo(&mut stream)?;
        dom0.run(&format!("xl save -c {} /root/saved && rm /root/saved", guest.domain.name()))?;
        echo(&mut stream)?;
    }
    guest.domain.wait_for("resumed: this domain continues", PATIENCE)?;
    Ok(())
}

fn a_connection_ends_when_its_guest_is_saved(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::start(fixture, ECHO, "echo", "")?;
    let mut stream = guest.connect()?;
    echo(&mut stream)?;
    dom0.run(&format!("xl save {} /root/saved", guest.domain.name()))?;
    ensure!(!matches!(stream.read(&mut [0]), Ok(1..)), "a connection outlived its guest");
    dom0.run("xl restore /root/saved && rm /root/saved")?;
    wait_until("the guest echoes again", PATIENCE, || Ok(echo(&mut guest.connect()?).is_ok()))
}

fn a_restored_guest_over_draft_1_serves_once_its_device_is_attached(
    fixture: &Fixture,
) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::start_over(Device::XenSock, fixture, HTTP, "http", "")?;
    let name = guest.domain.name();
    dom0.run(&format!("xl save {name} /root/saved && xl restore /root/saved && rm /root/saved"))?;
    guest.domain.wait_for("waiting for it", PATIENCE)?;
    dom0.run(&format!("attach-sockets {name} xensock"))?;
    wait_until("the guest serves again", PATIENCE, || Ok(guest.is_served()))?;
    is_right(&guest, dom0)
}

fn a_guest_migrates(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::http(fixture)?;
    let id = guest.domain.id()?;
    let load = Load::of(&guest)?;
    load.runs(&guest)?;
    // Without ssh: this host is also the destination.
    dom0.run(&format!("xl migrate -s '' {} 'xl migrate-receive'", guest.domain.name()))?;
    wait_until("the guest serves again", PATIENCE, || Ok(guest.is_served()))?;
    drop(load);
    ensure!(guest.domain.id()? != id, "it is the same domain");
    is_right(&guest, dom0)
}
