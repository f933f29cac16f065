//! Ends that are killed under load, and what they leave.
//!
//! The client checks at the end of each connection that all it has submitted is complete, and the
//! service counts what belongs to another connection; clients that connect later ask for that.

use super::ends::{Process, guest, id, is_busy, is_over, lines};
use crate::fixture::{Fixture, cases, wait_until};
use crate::service::{PATIENCE, comes_back_to, rounds};
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain};
use std::thread;
use std::time::Duration;

cases![
    a_guests_service_survives_clients_that_are_killed_under_load,
    a_guests_client_survives_services_that_are_killed_under_load,
    guests_and_processes_are_freed_when_their_service_is_destroyed_under_load,
];

/// What a guest holds of its own and of others, and what xenstored keeps for it: its own nodes and
/// its watches.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    in_use: String,
    /// The pages that its heap has not taken.
    free: u64,
    nodes: String,
    quota: String,
}

impl Held {
    fn by(guest: &Domain, dom0: &Dom0) -> Result<Held> {
        let console = guest.console()?;
        let in_use = *lines(&console, "in use: ").last().context("nothing is in use")?;
        let usage = in_use.split_once("in use: ").and_then(|(_, usage)| usage.split_once("; "));
        let (in_use, free) = usage.with_context(|| in_use.to_owned())?;
        let free = free.split(' ').next().unwrap_or_default().parse()?;
        let id = id(guest)?;
        let list = format!("xenstore-ls -f /local/domain/{id}/data/idc | cut -d = -f 1 | sort");
        let nodes = dom0.run(&list)?;
        let quota = dom0.run(&format!("xenstore-control quota {id}"))?;
        Ok(Held { in_use: in_use.to_owned(), free, nodes, quota })
    }

    /// Waits until it stays the same for a while, and measures.
    fn at_rest(guest: &Domain, dom0: &Dom0) -> Result<Held> {
        let mut before = Held::by(guest, dom0)?;
        comes_back_to(&true, || {
            thread::sleep(Duration::from_secs(1));
            let now = Held::by(guest, dom0)?;
            let is_same = now == before;
            before = now;
            Ok(is_same)
        })?;
        Ok(before)
    }

    /// Checks that `kills` loses nothing of a guest's. It runs once more if something is lost the
    /// first time: a peak may grow the heap, which keeps its pages, or gives them back after a
    /// later one.
    fn is_the_same_after(
        guest: &Domain,
        dom0: &Dom0,
        mut kills: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut once = || {
            let before = Held::at_rest(guest, dom0)?;
            kills()?;
            comes_back_to(&before, || {
                let now = Held::by(guest, dom0)?;
                Ok(Held { free: now.free.min(before.free), ..now })
            })
        };
        once().or_else(|first| once().context(first))
    }
}

fn a_guests_service_survives_clients_that_are_killed_under_load(fixture: &Fixture) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    let service = guest(fixture, "serve=any/exam clients=2")?;
    let at = format!("load=xen:{}/exam", id(&service)?);
    let kill = |is_guest_first: bool| {
        let (client, process) = (guest(fixture, &at)?, Process::start(fixture, &at)?);
        is_busy(&client, 1)?;
        process.wait_for("is busy")?;
        if is_guest_first {
            client.destroy();
            process.kill();
        } else {
            process.kill();
            client.destroy();
        }
        anyhow::Ok(())
    };
    // The first ones grow the heap. A process that is killed leaves its nodes, so it takes a while
    // until the service gives it up.
    kill(true)?;
    let door = format!("/local/domain/{}/data/idc/-door", id(&service)?);
    let rests = || Ok(Held::by(&service, dom0)?.nodes.trim() == door);
    wait_until("the service has given its clients up", PATIENCE, rests)?;
    let rounds = 2 * rounds()?;
    Held::is_the_same_after(&service, dom0, || {
        (0..rounds).try_for_each(|round| kill(round % 2 == 0))
    })
}

fn a_guests_client_survives_services_that_are_killed_under_load(fixture: &Fixture) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    let client = guest(fixture, "load=xen:0/exam")?;
    let mut round = 0;
    let mut kill = || {
        round += 1;
        let service = Process::start(fixture, "serve=any/exam")?;
        is_busy(&client, round)?;
        service.kill();
        is_over(&client, round)
    };
    kill()?;
    // It looks for the service's buffers for a while.
    let rests = || Ok(!Held::by(&client, dom0)?.nodes.contains("-buffers"));
    wait_until("the client has given the buffers up", PATIENCE, rests)?;
    let rounds = 2 * rounds()?;
    Held::is_the_same_after(&client, dom0, || (0..rounds).try_for_each(|_| kill()))?;
    ensure!(client.id()?.is_some(), "the client found something wrong: {}", client.console()?);
    Ok(())
}

fn guests_and_processes_are_freed_when_their_service_is_destroyed_under_load(
    fixture: &Fixture,
) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    for _ in 0..rounds()? {
        let service = guest(fixture, "serve=any/exam clients=2")?;
        let number = id(&service)?;
        let at = format!("load=xen:{number}/exam");
        let (client, process) = (guest(fixture, &at)?, Process::start(fixture, &at)?);
        is_busy(&client, 1)?;
        process.wait_for("is busy")?;
        service.destroy();
        client.wait_for("is over", PATIENCE)?;
        process.wait_for("is over")?;
        client.wait_for(" 0 foreign pages, ", PATIENCE)?;
        process.holds_nothing()?;
        // As long as its pages are mapped, Xen keeps a domain that was destroyed.
        let listed = || Ok(dom0.exec(&format!("xl list {number}"))?.status != 0);
        wait_until("Xen frees the service's guest", PATIENCE, listed)?;
        ensure!(client.id()?.is_some(), "the client found something wrong: {}", client.console()?);
    }
    Ok(())
}
