//! Two guests that share pages and an event channel, without a third domain.
//! `kernel/examples/neighbours.rs` are the guests.

use crate::fixture::{Fixture, cases, wait_until};
use crate::images::image;
use crate::service::PATIENCE;
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain};
use std::sync::atomic::{AtomicU32, Ordering};

cases![
    two_guests_share_pages_and_events,
    pages_of_a_destroyed_guest_stay_until_they_are_unmapped,
    a_saved_guest_loses_the_pages_of_others,
];

/// Two guests: one grants pages and a port to the other.
struct Pair<'l> {
    dom0: &'l Dom0,
    grants: Domain,
    maps: Domain,
}

impl<'l> Pair<'l> {
    fn create(fixture: &'l Fixture) -> Result<Self> {
        let dom0: &Dom0 = fixture.lab()?;
        let guest = |role: &str| {
            // With less memory, Xen 4.17 does not restore a guest: its pool for page tables, which
            // grows with the memory, is too small for that.
            let config = image(fixture, "neighbours", role)? + "memory = 48\npvcalls = []\n";
            Domain::create(dom0, &format!("neighbours-{role}"), &config)
        };
        Ok(Self { dom0, grants: guest("grant")?, maps: guest("map")? })
    }

    /// Gives both guests a task, and returns its number.
    fn order(&self, task: &str) -> Result<u32> {
        let number = next_number();
        let (grants, maps) = (id(&self.grants)?, id(&self.maps)?);
        for (guest, peer) in [(grants, maps), (maps, grants)] {
            order(self.dom0, guest, peer, task, number)?;
        }
        Ok(number)
    }

    /// Has both guests share pages and events, and waits until nothing is shared any more.
    fn exchange(&self) -> Result<()> {
        let number = self.order("exchange")?;
        let done = format!("exchange {number} is done");
        self.maps.wait_for(&done, PATIENCE)?;
        self.grants.wait_for(&done, PATIENCE).map(drop)
    }

    /// Has one guest map the other one's pages until the next task.
    fn hold(&self) -> Result<()> {
        self.order("hold")?;
        self.maps.wait_for("are held", PATIENCE).map(drop)
    }
}

fn next_number() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

fn order(dom0: &Dom0, guest: u32, peer: u32, task: &str, number: u32) -> Result<()> {
    let node = format!("/local/domain/{guest}/data/order");
    dom0.run(&format!("xenstore-write {node} '{peer} {task} {number}'")).map(drop)
}

fn id(guest: &Domain) -> Result<u32> {
    guest.id()?.with_context(|| format!("{} has ended", guest.name()))
}

/// How many pages were free after each task.
fn free_pages(console: &str) -> Vec<u32> {
    let lines = console.lines().filter_map(|line| line.split_once(" is done; "));
    lines.filter_map(|(_, rest)| rest.split(' ').next()?.parse().ok()).collect()
}

/// Checks in Xen's own tables that neither guest has granted or mapped anything, but for the two
/// pages that the toolstack grants dom0.
fn nothing_is_shared(pair: &Pair) -> Result<()> {
    const END: &str = "gnttab_usage_print_all ] done";
    let printed = || pair.dom0.run("xl dmesg");
    let before = printed()?.matches(END).count();
    pair.dom0.run("xl debug-keys g")?;
    wait_until("Xen prints its grant tables", PATIENCE, || {
        Ok(printed()?.matches(END).count() > before)
    })?;
    let printed = printed()?;
    let tables = printed.rsplit(END).nth(1).context("Xen prints no table")?;
    for id in [id(&pair.grants)?, id(&pair.maps)?] {
        let table = tables.split_once(&format!("grant-table for remote d{id} "));
        let table = table.with_context(|| format!("no table of {id} in {tables}"))?.1;
        let table = table.split("grant-table for").next().unwrap_or_default();
        ensure!(table.matches("[0x").count() == 2, "{table}");
    }
    Ok(())
}

fn two_guests_share_pages_and_events(fixture: &Fixture) -> Result<()> {
    const TIMES: usize = 3;
    let pair = Pair::create(fixture)?;
    for _ in 0..TIMES {
        pair.exchange()?;
    }
    for guest in [&pair.grants, &pair.maps] {
        let free = free_pages(&guest.console()?);
        ensure!(free.len() == TIMES && free.iter().all(|pages| *pages == free[0]), "{free:?}");
    }
    let console = pair.maps.console()?;
    for text in ["513 pages mapped: 1 hypercall,", "513 pages unmapped: 1 hypercall,"] {
        ensure!(console.matches(text).count() == 2 * TIMES, "{console}");
    }
    let times: Vec<_> = console.lines().filter(|line| line.ends_with(" us")).collect();
    println!("{}", times[times.len() - 5..].join("\n"));
    nothing_is_shared(&pair)
}

fn pages_of_a_destroyed_guest_stay_until_they_are_unmapped(fixture: &Fixture) -> Result<()> {
    let pair = Pair::create(fixture)?;
    pair.hold()?;
    let (left, gone) = (id(&pair.maps)?, id(&pair.grants)?);
    let Pair { dom0, grants, maps } = pair;
    let is_listed = || dom0.exec(&format!("xl list {gone}")).map(|output| output.status == 0);
    grants.destroy();
    ensure!(is_listed()?, "Xen has freed a guest whose pages are mapped");
    order(dom0, left, gone, "rest", next_number())?;
    maps.wait_for("held until rest: read right, written right", PATIENCE)?;
    wait_until("Xen frees the guest", PATIENCE, || Ok(!is_listed()?))?;
    let number = next_number();
    order(dom0, left, gone, "refuse", number)?;
    maps.wait_for(&format!("refuse {number} is done"), PATIENCE).map(drop)
}

fn a_saved_guest_loses_the_pages_of_others(fixture: &Fixture) -> Result<()> {
    let pair = Pair::create(fixture)?;
    let name = pair.maps.name();
    pair.hold()?;
    pair.dom0.run(&format!("xl save -c {name} /root/saved"))?;
    pair.exchange()?;
    pair.maps.wait_for("held until exchange: read right, written right", PATIENCE)?;
    pair.hold()?;
    pair.dom0.run(&format!("xl save {name} /root/saved && xl restore /root/saved"))?;
    pair.exchange()?;
    let lost = "page 5 has 0xff at 0";
    let lost = format!("held until exchange: read {lost}, written {lost}");
    let console = pair.maps.console()?;
    for text in ["513 pages of other domains were mapped and are lost", &lost] {
        ensure!(console.matches(text).count() == 1, "no {text:?} in {console}");
    }
    nothing_is_shared(&pair)
}
