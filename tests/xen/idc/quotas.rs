//! xenstored's quotas and Xen's limits, which many endpoints do not exceed.

use super::ends::{Process, guest, guest_with, id, is_busy};
use crate::fixture::{Fixture, cases};
use crate::service::PATIENCE;
use anyhow::{Context, Result, ensure};
use lab::Dom0;

cases![
    two_guests_are_connected_by_a_hundred_endpoints,
    a_service_has_six_clients_in_as_many_domains,
];

/// How many of something xenstored keeps for a domain.
fn kept(dom0: &Dom0, domain: u32, what: &str) -> Result<u32> {
    let quota = dom0.run(&format!("xenstore-control quota {domain}"))?;
    let line = quota.lines().find(|line| line.starts_with(what));
    let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    number.with_context(|| format!("{what} in {quota}"))
}

fn two_guests_are_connected_by_a_hundred_endpoints(fixture: &Fixture) -> Result<()> {
    const COUNT: u32 = 100;
    let dom0: &Dom0 = fixture.lab()?;
    let service = guest_with(fixture, &format!("serve=any/exam clients={COUNT} order=1"), 96)?;
    let at = format!("load=xen:{}/exam instances={COUNT} order=1", id(&service)?);
    let client = guest_with(fixture, &at, 96)?;
    client.wait_for("all are busy", PATIENCE)?;
    for guest in [&service, &client] {
        let (nodes, watches) =
            (kept(dom0, id(guest)?, "nodes")?, kept(dom0, id(guest)?, "watches")?);
        println!("{nodes} nodes and {watches} watches");
        // Their limits are 1000 and 128.
        ensure!(nodes >= 2 * COUNT, "what has the domain shown to the other one?");
        ensure!(watches < 10, "there is a watch for each endpoint");
    }
    Ok(())
}

fn a_service_has_six_clients_in_as_many_domains(fixture: &Fixture) -> Result<()> {
    let service = guest(fixture, "serve=any/exam clients=6")?;
    let at = format!("load=xen:{}/exam", id(&service)?);
    let guests = (0..5).map(|_| guest(fixture, &at)).collect::<Result<Vec<_>>>()?;
    let process = Process::start(fixture, &at)?;
    for client in &guests {
        is_busy(client, 1)?;
    }
    process.wait_for("is busy")
}
