//! A hostile guest beside an honest pair: `kernel/examples/hostile_idc.rs` are all three, or the
//! one that serves is a process of dom0.

use super::ends::{Process, guest, id};
use crate::fixture::{Fixture, cases, wait_until};
use crate::images::image;
use crate::service::PATIENCE;
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain};

cases![
    an_honest_pair_goes_on_beside_a_hostile_guest,
    a_process_of_dom0_serves_others_beside_a_hostile_guest,
];

/// For how many seconds the honest guest's work is counted.
const SECONDS: usize = 5;

/// The pages of a link, and the most links whose pages one domain keeps mapped: four, and those
/// that it has when it leaves the last of these.
const LINK: u64 = 33;
const KEPT: u64 = 8;

fn actor(fixture: &Fixture, words: &str) -> Result<Domain> {
    let config = image(fixture, "hostile_idc", words)? + "memory = 48\npvcalls = []\n";
    let role = words.split('=').next().unwrap_or_default();
    Domain::create(fixture.lab()?, &format!("hostile-idc-{role}"), &config)
}

/// A guest that hinders a domain, once it is at it.
fn hostile(fixture: &Fixture, victim: u32) -> Result<Domain> {
    let hostile = actor(fixture, &format!("hostile={victim}"))?;
    wait_until("the hostile guest has a link", PATIENCE, || {
        let console = hostile.console()?;
        Ok(console.lines().any(|line| line.ends_with(" links") && !line.ends_with(" 0 links")))
    })?;
    Ok(hostile)
}

/// What the honest guest has done in each second: answers, reads, failures.
fn seconds(honest: &Domain) -> Result<Vec<[u64; 3]>> {
    let console = honest.console()?;
    let lines = console.lines().filter_map(|line| line.split_once("in a second: "));
    let seconds = lines.filter_map(|(_, counts)| {
        let mut counts = counts.split(", ").map(|one| one.split(' ').next()?.parse().ok());
        Some([counts.next()??, counts.next()??, counts.next()??])
    });
    Ok(seconds.collect())
}

/// How much the honest guest does in the next seconds.
fn work(honest: &Domain) -> Result<[u64; 3]> {
    let start = seconds(honest)?.len() + 1;
    wait_until("the honest guest works", PATIENCE, || {
        Ok(seconds(honest)?.len() >= start + SECONDS)
    })?;
    let seconds = seconds(honest)?;
    let sum = |at| seconds[start..start + SECONDS].iter().map(|second| second[at]).sum();
    Ok([0, 1, 2].map(sum))
}

/// An honest guest, once it works.
fn honest(fixture: &Fixture, victim: u32) -> Result<Domain> {
    let honest = actor(fixture, &format!("honest={victim}"))?;
    wait_until("the honest guest reads", PATIENCE, || {
        Ok(seconds(&honest)?.iter().any(|[answers, reads, _]| *answers > 0 && *reads > 0))
    })
    .with_context(|| honest.console().unwrap_or_default())?;
    Ok(honest)
}

/// What the server has had in use: grants, foreign pages, ports, quarantined pages, KiB of heap.
fn in_use(server: &Domain) -> Result<Vec<[u64; 5]>> {
    let console = server.console()?;
    let lines = console.lines().filter_map(|line| line.split_once("in use: "));
    let usage = lines.filter_map(|(_, counts)| {
        let mut counts = counts.split(", ").map(|one| one.split(' ').next()?.parse().ok());
        let mut next = || counts.next().flatten();
        Some([next()?, next()?, next()?, next()?, next()?])
    });
    Ok(usage.collect())
}

/// Waits until a domain's nodes are gone that it or others have made for another domain.
fn leaves_no_nodes(dom0: &Dom0, at: u32, number: u32) -> Result<()> {
    wait_until("nothing of the hostile guest is left", PATIENCE, || {
        let nodes = dom0.run(&format!("xenstore-ls -f /local/domain/{at}/data/idc"))?;
        let named = [format!("/{number} "), format!("@{number} ")];
        Ok(!nodes.lines().any(|line| named.iter().any(|name| line.contains(name))))
    })
}

fn an_honest_pair_goes_on_beside_a_hostile_guest(fixture: &Fixture) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    let server = actor(fixture, "serve")?;
    server.wait_for("serving", PATIENCE)?;
    let victim = id(&server)?;
    let first = honest(fixture, victim)?;
    let alone = work(&first)?;
    let used = *in_use(&server)?.last().context("the server says nothing")?;
    let hostile = hostile(fixture, victim)?;
    let number = id(&hostile)?;
    let beside = work(&first)?;
    // Somebody else comes.
    let second = honest(fixture, victim)?;
    let later = work(&first)?;
    println!("in {SECONDS} s: {alone:?} answers, reads and failures; {beside:?}, {later:?} beside");
    println!("{}", hostile.console()?.lines().last().unwrap_or_default());
    for done in [beside, later] {
        ensure!(done[0] > 0 && done[1] > 0, "{done:?} instead of {alone:?}");
    }
    for honest in [&first, &second] {
        let console = honest.console()?;
        ensure!(!console.contains("Disconnect"), "{console}");
    }
    let most = |at: usize| Ok::<_, anyhow::Error>(in_use(&server)?.iter().map(|it| it[at]).max());
    println!("at most {:?} grants, {:?} quarantined, {:?} KiB", most(0)?, most(3)?, most(4)?);
    ensure!(most(3)? <= Some(KEPT * LINK), "{:?}", in_use(&server)?);
    drop((hostile, second));
    leaves_no_nodes(dom0, victim, number)?;
    wait_until("the server has back what the others had", PATIENCE, || {
        Ok(in_use(&server)?.last().is_some_and(|now| now[..4] == used[..4]))
    })
    .with_context(|| format!("{used:?} before: {:?}", in_use(&server)))?;
    let heap = in_use(&server)?.last().map_or(0, |now| now[4]);
    ensure!(heap < used[4] + 256, "{heap} KiB of heap instead of {}", used[4]);
    let after = work(&first)?;
    ensure!(after[0] > 0 && after[1] > 0, "{after:?} instead of {alone:?}");
    Ok(())
}

fn a_process_of_dom0_serves_others_beside_a_hostile_guest(fixture: &Fixture) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    let serves = Process::start(fixture, "serve=any/exam clients=6")?;
    serves.wait_for("serving at")?;
    let load = guest(fixture, "load=xen:0/exam")?;
    load.wait_for("connection 1 is busy", PATIENCE)?;
    let usage = || -> Result<Option<String>> {
        let log = serves.log()?;
        Ok(log.lines().rev().find_map(|line| Some(line.split_once("in use: ")?.1.to_owned())))
    };
    let (used, memory) = (usage()?, serves.memory()?);
    let hostile = hostile(fixture, 0)?;
    let number = id(&hostile)?;
    let examines = guest(fixture, "examine=xen:0/exam")?;
    println!("{}", examines.wait_for("the exam is passed", PATIENCE)?);
    println!("{}", hostile.console()?.lines().last().unwrap_or_default());
    println!("{:?} and {memory} KiB before, {:?} and {} KiB", used, usage()?, serves.memory()?);
    examines.wait_for_end(PATIENCE)?;
    drop(hostile);
    leaves_no_nodes(dom0, 0, number)?;
    wait_until("the process has back what the others had", PATIENCE, || Ok(usage()? == used))
        .with_context(|| format!("{used:?} before, {:?}", usage()))?;
    ensure!(serves.memory()? < memory + (16 << 10), "{} KiB, {memory} before", serves.memory()?);
    let console = load.console()?;
    ensure!(!console.contains("is over"), "{console}");
    serves.kill();
    load.wait_for("connection 1 is over", PATIENCE).map(drop)
}
