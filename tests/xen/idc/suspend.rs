//! Guests that are saved, restored and migrated under load.

use super::ends::{Process, guest, id, is_busy, is_over};
use crate::fixture::{Fixture, cases, wait_until};
use crate::service::{PATIENCE, rounds};
use anyhow::{Result, ensure};
use lab::{Dom0, Domain};

cases![
    a_saved_client_leaves_and_connects_again_under_load,
    a_saved_service_is_found_as_another_domain_under_load,
    two_saved_guests_meet_again_under_load,
    a_reused_domain_number_is_another_remote_end,
];

/// A restore that may give a domain a number that another one had more than a second ago.
const RESTORE: &str = "sleep 2; LIBXL_DOMID_REUSE_TIMEOUT=0 xl restore";

fn save_and_restore(dom0: &Dom0, guest: &Domain) -> Result<()> {
    dom0.run(&format!("xl save {} /root/saved", guest.name()))?;
    dom0.run("xl restore /root/saved && rm /root/saved").map(drop)
}

/// Saves a guest that then goes on, as the same domain.
fn checkpoint(dom0: &Dom0, guest: &Domain) -> Result<()> {
    dom0.run(&format!("xl save -c {} /root/saved && rm /root/saved", guest.name())).map(drop)
}

/// Checks that a guest has left its connections before it was saved.
fn nothing_was_lost(guest: &Domain) -> Result<()> {
    let console = guest.console()?;
    ensure!(!console.contains("lost") && !console.contains("panic"), "{console}");
    Ok(())
}

fn a_saved_client_leaves_and_connects_again_under_load(fixture: &Fixture) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    let process = Process::start(fixture, "serve=any/exam")?;
    let service = guest(fixture, "serve=any/exam")?;
    let at = format!("load=xen:{}/exam", id(&service)?);
    for client in [guest(fixture, "load=xen:0/exam")?, guest(fixture, &at)?] {
        is_busy(&client, 1)?;
        for round in 0..rounds()?.div_ceil(2) {
            save_and_restore(dom0, &client)?;
            is_busy(&client, 2 + 2 * round)?;
            checkpoint(dom0, &client)?;
            is_busy(&client, 3 + 2 * round)?;
        }
        // Without ssh: this host is also the destination.
        dom0.run(&format!("xl migrate -s '' {} 'xl migrate-receive'", client.name()))?;
        // The console's log has the name that the domain had at first.
        let incoming = format!("{}--incoming", client.name());
        let is_busy = || Ok(dom0.console(&incoming)?.contains("is busy"));
        wait_until("the migrated client is busy", PATIENCE, is_busy)?;
        nothing_was_lost(&client)?;
    }
    drop(process);
    nothing_was_lost(&service)
}

fn a_saved_service_is_found_as_another_domain_under_load(fixture: &Fixture) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    let service = guest(fixture, "serve=any/exam clients=2")?;
    for _ in 0..rounds()?.div_ceil(2) {
        let at = format!("load=xen:{}/exam", id(&service)?);
        let (client, process) = (guest(fixture, &at)?, Process::start(fixture, &at)?);
        is_busy(&client, 1)?;
        process.wait_for("is busy")?;
        checkpoint(dom0, &service)?;
        is_busy(&client, 2)?;
        process.wait_for("connection 2 is busy")?;
        save_and_restore(dom0, &service)?;
        is_over(&client, 2)?;
        client.wait_for(" 0 foreign pages, ", PATIENCE)?;
        process.wait_for("connection 2 is over")?;
        process.holds_nothing()?;
    }
    nothing_was_lost(&service)
}

fn two_saved_guests_meet_again_under_load(fixture: &Fixture) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    let service = guest(fixture, "serve=any/exam")?;
    let number = id(&service)?;
    let client = guest(fixture, &format!("load=xen:{number}/exam"))?;
    is_busy(&client, 1)?;
    for round in 0..rounds()?.div_ceil(2) {
        for guest in [&service, &client] {
            // It keeps its number.
            dom0.run(&format!("xl save -D {0} /root/{0}.saved", guest.name()))?;
        }
        for guest in [&client, &service] {
            dom0.run(&format!("{RESTORE} /root/{0}.saved && rm /root/{0}.saved", guest.name()))?;
        }
        ensure!(id(&service)? == number, "the service has another number");
        is_busy(&client, 2 + round)?;
    }
    [&service, &client].into_iter().try_for_each(nothing_was_lost)
}

fn a_reused_domain_number_is_another_remote_end(fixture: &Fixture) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    let (first, second) = (guest(fixture, "serve=any/exam")?, guest(fixture, "serve=any/exam")?);
    let (number, other) = (id(&first)?, id(&second)?);
    second.wait_for("serving at", PATIENCE)?;
    dom0.run(&format!("xl save -D {} /root/saved", second.name()))?;
    // The first guest's number replaces the second one's in the configuration, which begins after
    // 52 bytes of the file and keeps its length.
    let spaces = " ".repeat(other.to_string().len() - number.to_string().len());
    let edit = format!("s/\"domid\": {other},/\"domid\": {spaces}{number},/");
    let (read, write) = ("bs=1 skip=52 count=500", "bs=1 seek=52 conv=notrunc");
    dom0.run(&format!("dd if=/root/saved {read} | sed '{edit}' | dd of=/root/saved {write}"))?;
    // The client's number is higher, so it maps nothing, and the first guest ends at once.
    let client = guest(fixture, &format!("load=xen:{number}/exam"))?;
    is_busy(&client, 1)?;
    // The client sees nothing of what happens, but the result.
    dom0.run(&format!("xl pause {}", client.name()))?;
    first.destroy();
    dom0.run(&format!("{RESTORE} /root/saved && rm /root/saved"))?;
    ensure!(id(&second)? == number, "the second guest has another number");
    second.wait_for("restored", PATIENCE)?;
    client.unpause()?;
    is_over(&client, 1)?;
    is_busy(&client, 2)?;
    nothing_was_lost(&second)
}
