//! Guests whose backend is killed and restarted, or whose device comes and goes.

use crate::fixture::{Fixture, cases, wait_until};
use crate::service::{
    Device, ECHO, HTTP, InUse, Load, PATIENCE, Service, comes_back_to, echo, pattern, rounds,
    sha256,
};
use anyhow::{Result, ensure};
use std::io::Read;

cases![
    a_server_survives_its_backend_being_killed_under_load,
    connections_end_with_the_backend_and_new_ones_are_served,
    a_device_can_be_attached_and_detached_while_the_guest_runs,
    a_guest_without_a_device_can_be_shut_down,
];

fn a_server_survives_its_backend_being_killed_under_load(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::http(fixture)?;
    let id = guest.domain.id()?;
    let in_use = || InUse::by(&guest, dom0);
    ensure!(guest.is_served());
    let before = InUse::at_rest(&guest, dom0)?;
    let rounds = rounds()?;
    for round in 1..=rounds {
        let load = Load::of(&guest)?;
        load.runs(&guest)?;
        dom0.run("kill -9 $(cat /run/xensockd.pid)")?;
        dom0.run("start-xensockd")?;
        wait_until("the guest serves again", PATIENCE, || Ok(guest.is_served()))?;
        drop(load);
        ensure!(guest.domain.id()? == id, "round {round}: the guest was replaced");
        comes_back_to(&before, in_use)?;
        let wanted = sha256(&pattern(1_000_000));
        ensure!(sha256(&guest.get("/bytes/1000000")?.1) == wanted, "round {round}: other bytes");
    }
    let console = guest.domain.console()?;
    ensure!(console.contains("the backend is gone"), "{console}");
    ensure!(console.matches("listening on").count() >= rounds, "{console}");
    ensure!(!console.contains("panic"), "{console}");
    Ok(())
}

fn connections_end_with_the_backend_and_new_ones_are_served(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::start(fixture, ECHO, "echo", "")?;
    let mut stream = guest.connect()?;
    echo(&mut stream)?;
    dom0.run("kill -9 $(cat /run/xensockd.pid)")?;
    // The backend's sockets have closed.
    ensure!(!matches!(stream.read(&mut [0]), Ok(1..)), "a connection outlived its backend");
    dom0.run("start-xensockd")?;
    wait_until("the guest echoes again", PATIENCE, || Ok(echo(&mut guest.connect()?).is_ok()))?;
    Ok(())
}

fn a_device_can_be_attached_and_detached_while_the_guest_runs(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let ports = fixture.port()?;
    let config = format!("{HTTP}\ncmdline = \"app=http port={}\"\n", ports.inner);
    let domain = Device::None.create(dom0, "http", &config)?;
    let said = domain.wait_for("no device for sockets", PATIENCE)?;
    ensure!(said.contains("pvcalls="), "it does not say what to do: {said}");
    dom0.run(&format!("attach-sockets {}", domain.name()))?;
    let guest = Service { domain, port: ports.host, inner_port: ports.inner };
    let name = guest.domain.name();
    wait_until("the guest serves", PATIENCE, || Ok(guest.is_served()))?;
    let again = dom0.exec(&format!("attach-sockets {name}"))?;
    ensure!(again.status != 0, "a device was attached twice");
    let before = InUse::at_rest(&guest, dom0)?;
    for force in ["", "--force"] {
        let _load = Load::of(&guest)?;
        dom0.run(&format!("detach-sockets {force} {name}"))?;
        wait_until("nobody serves", PATIENCE, || {
            Ok(dom0.run(&format!("netstat -ltn | grep -c :{} || true", ports.inner))? == "0")
        })?;
        dom0.run(&format!("attach-sockets {name}"))?;
        wait_until("the guest serves again", PATIENCE, || Ok(guest.is_served()))?;
    }
    comes_back_to(&before, || InUse::by(&guest, dom0))?;
    ensure!(!guest.domain.console()?.contains("panic"));
    Ok(())
}

fn a_guest_without_a_device_can_be_shut_down(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Device::None.create(dom0, "http", HTTP)?;
    guest.wait_for("no device for sockets", PATIENCE)?;
    dom0.run(&format!("xl shutdown -w {}", guest.name()))?;
    guest.wait_for_end(PATIENCE)
}
