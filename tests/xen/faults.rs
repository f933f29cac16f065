//! Guests that cause faults: each fault ends the guest, with a crash report of the cause, the
//! address and the callers. `kernel/examples/faults.rs` is the guest.

use crate::fixture::{Fixture, cases, example, wait_until};
use crate::service::PATIENCE;
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain};
use std::process::Command;

cases![
    each_fault_ends_in_a_report_with_its_cause,
    a_crash_report_has_registers_build_id_and_function_names,
    a_guest_that_crashes_ends_even_if_nothing_reads_its_console,
    a_crashed_guest_is_preserved_if_its_configuration_says_so,
    an_nmi_makes_a_hanging_guest_report_where_it_hangs,
];

/// Each fault, texts of its report, and functions in its backtrace, the innermost first.
const FAULTS: [(&str, &[&str], &[&str]); 26] = [
    (
        "write-null",
        &["page fault", "null pointer", "write: the page is not mapped"],
        &["faults::write_to"],
    ),
    (
        "read-null",
        &["page fault", "null pointer", "read: the page is not mapped"],
        &["faults::read_from"],
    ),
    (
        "call-null",
        &["rip 0x0,", "null pointer", "execute: the page is not mapped"],
        &["faults::call"],
    ),
    (
        "write-near-null",
        &["address 0x10 (page zero: a null pointer), write"],
        &["faults::write_to"],
    ),
    (
        "read-near-null",
        &["address 0xff8 (page zero: a null pointer), read"],
        &["faults::read_from"],
    ),
    ("call-near-null", &["rip 0xff8,", "null pointer", "execute"], &["faults::call"]),
    ("write-code", &["(code), write: the page's rights forbid it"], &["faults::write_to"]),
    (
        "write-constant",
        &["(a constant), write: the page's rights forbid it"],
        &["faults::write_to"],
    ),
    (
        "write-names",
        &["(the functions' names), write: the page's rights forbid it"],
        &["faults::write_to"],
    ),
    (
        "execute-constant",
        &["(a constant), execute: the page's rights forbid it"],
        &["faults::call"],
    ),
    (
        "execute-data",
        &["(a static variable), execute: the page's rights forbid it"],
        &["faults::call"],
    ),
    ("execute-heap", &["execute: the page's rights forbid it"], &["faults::call"]),
    ("execute-stack", &["(a stack), execute: the page's rights forbid it"], &["faults::call"]),
    (
        "nothing-there",
        &["address 0x400000000000, write: the page is not mapped"],
        &["faults::write_to"],
    ),
    ("not-canonical", &["general protection fault"], &["faults::write_to"]),
    ("stack", &["page fault", "(a stack overflow)"], &["::recurse+"; 32]),
    (
        "stack-in-panic",
        &["page fault", "(a stack overflow)"],
        &["core::panicking::panic_fmt", "::recurse+"],
    ),
    ("opcode", &["invalid opcode"], &["faults::"]),
    ("sse", &["an SSE or MMX instruction, but SSE and MMX are switched off"], &["faults::"]),
    ("avx", &["an AVX instruction, but SSE and AVX are switched off"], &["faults::"]),
    (
        "x87",
        &["device not available", "an x87 instruction, but the FPU is switched off"],
        &["faults::"],
    ),
    ("division", &["division error"], &["faults::"]),
    (
        "panic",
        &["panicked at kernel/examples/faults.rs", "as the command line asked"],
        &["faults::"],
    ),
    (
        "panic-in-panic",
        &["a crash in the crash report: panicked at kernel/examples/faults.rs"],
        &["<faults::Unspeakable as core::fmt::Display>::fmt", "faults::"],
    ),
    (
        "fault-in-panic",
        &["a crash in the crash report: page fault", "null pointer"],
        &["faults::read_from", "faults::"],
    ),
    ("memory", &["memory allocation of 100000 bytes failed"], &["faults::exhaust"]),
];

/// The size of the console's ring in bytes: one of the reports does not fit into it.
const RING: usize = 2048;

/// The number of guests that are created before the first one's report is read.
const AT_ONCE: usize = 7;

/// Copies the image into dom0 without symbols: reports must take names from its own list.
fn push(fixture: &Fixture) -> Result<&Dom0> {
    let folder = tempfile::tempdir()?;
    let stripped = folder.path().join("faults");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(example("faults")?).status()?;
    ensure!(status.success(), "strip failed");
    let lab = fixture.lab()?;
    lab.push(&stripped, "/root/faults")?;
    Ok(lab)
}

/// A configuration that causes this fault.
fn config(fault: &str) -> String {
    format!(
        "type = \"pvh\"\nkernel = \"/root/faults\"\ncmdline = \"log=debug fault={fault}\"\n\
         memory = 32\ntsc_mode = \"native\"\n"
    )
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The functions in a report, the innermost first.
fn callers(report: &str) -> Vec<&str> {
    let words = report.lines().map(|line| line.trim().splitn(3, ' ').collect::<Vec<_>>());
    words
        .filter(|words| words.len() == 3 && words[0].parse::<u32>().is_ok())
        .filter_map(|words| words[1].starts_with("0x").then(|| words[2]))
        .collect()
}

fn each_fault_ends_in_a_report_with_its_cause(fixture: &Fixture) -> Result<()> {
    let lab = push(fixture)?;
    for faults in FAULTS.chunks(AT_ONCE) {
        let guests = faults.iter().map(|(fault, ..)| Domain::create(lab, "faults", &config(fault)));
        let guests = guests.collect::<Result<Vec<_>>>()?;
        for ((fault, texts, functions), guest) in faults.iter().zip(guests) {
            guest.wait_for_end(PATIENCE)?;
            let console = guest.console()?;
            for text in *texts {
                ensure!(console.contains(text), "{fault}: no {text:?} in {console}");
            }
            let mut callers = callers(&console).into_iter();
            for function in *functions {
                let named = callers.any(|caller| caller.contains(function));
                ensure!(named, "{fault}: no {function} where it should be in {console}");
            }
            ensure!(console.contains("end of the report"), "{fault}: the report is cut: {console}");
            ensure!(
                *fault != "stack" || console.len() > RING + 1000,
                "{fault}: not long: {console}"
            );
            ensure!(!console.contains("nothing happened"), "{fault}: {console}");
        }
    }
    Ok(())
}

fn a_crash_report_has_registers_build_id_and_function_names(fixture: &Fixture) -> Result<()> {
    let lab = push(fixture)?;
    let guest = Domain::create(lab, "report", &config("write-near-null"))?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;

    let notes = output(Command::new("readelf").arg("-n").arg(example("faults")?))?;
    let build_id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: "));
    let build_id = build_id.context("readelf shows no build id")?;
    let said: Vec<_> = console.lines().filter(|line| line.contains(build_id)).collect();
    ensure!(said.len() == 2, "not the build id {build_id} in {console}");
    ensure!(said[0].contains("DEBUG") && console.starts_with(said[0]), "{console}");
    ensure!(said[1] == format!("build id {build_id}"), "{console}");

    let report = console.split_once("\nxensock-kernel: page fault").context("no report")?.1;
    for register in ["rax", "rsp", "r15", "rip", "rflags"] {
        ensure!(report.contains(&format!("{register} ")), "{register}: {console}");
    }
    // The lines of the backtrace. The image's line table must name the same function.
    let places: Vec<_> =
        report.lines().filter(|line| line.contains(" 0x") && line.contains('+')).collect();
    ensure!(places.len() > 3 && places[0].contains("faults::write_to+"), "{console}");
    let address = |line: &str| line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut addr2line = Command::new("addr2line");
    let found = output(addr2line.args(["-Cfe"]).arg(example("faults")?).arg(address(places[0])))?;
    ensure!(found.contains("write_to"), "{found} is not {}", places[0]);

    // Xen's log has the same report.
    let log = lab.run("xl dmesg")?;
    for line in report.lines().skip(1).map(str::trim_end).filter(|line| !line.is_empty()) {
        ensure!(log.contains(line), "Xen's log has no {line:?}: {log}");
    }
    Ok(())
}

fn a_guest_that_crashes_ends_even_if_nothing_reads_its_console(fixture: &Fixture) -> Result<()> {
    let lab = push(fixture)?;
    // xl waits for the console daemon.
    let guest = Domain::create_paused(lab, "unread", &config("stack"))?;
    let id = guest.id()?.context("the guest has no number")?;
    lab.run("kill -STOP $(pidof xenconsoled)")?;
    let ended = guest.unpause().and_then(|()| guest.wait_for_end(PATIENCE));
    // The other tests need xensockd, even if this one fails.
    lab.run("kill -CONT $(pidof xenconsoled)")?;
    ended?;
    // The console's ring was full, so the rest is only in Xen's log.
    let console = guest.console()?;
    ensure!(!console.contains("end of the report"), "the console was read: {console}");
    let log = lab.run("xl dmesg")?;
    let end = |line: &str| line.contains(&format!("(d{id})")) && line.contains("end of the report");
    ensure!(log.lines().any(end), "Xen's log has no end of d{id}'s report: {log}");
    Ok(())
}

fn a_crashed_guest_is_preserved_if_its_configuration_says_so(fixture: &Fixture) -> Result<()> {
    let lab = push(fixture)?;
    let config = format!("{}\non_crash = \"preserve\"\n", config("panic"));
    let guest = Domain::create(lab, "preserved", &config)?;
    let name = guest.name().to_owned();
    // The columns are name, id, memory, CPUs, state and time.
    let state = || lab.run(&format!("xl list {name} | awk 'NR == 2 {{ print $5 }}'"));
    wait_until("xl shows the guest as crashed", PATIENCE, || Ok(state()?.contains('c')))?;
    // It stays until it is destroyed.
    ensure!(guest.id()?.is_some(), "the guest is gone");
    guest.destroy();
    ensure!(lab.exec(&format!("xl domid {name}"))?.status != 0, "{name} still exists");
    Ok(())
}

fn an_nmi_makes_a_hanging_guest_report_where_it_hangs(fixture: &Fixture) -> Result<()> {
    let lab = push(fixture)?;
    let guest = Domain::create(lab, "hang", &config("hang"))?;
    guest.wait_for("hanging", PATIENCE)?;
    lab.run(&format!("xl trigger {} nmi", guest.name()))?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;
    ensure!(console.contains("non-maskable interrupt"), "{console}");
    // The NMI may arrive before the function has returned from logging.
    let hangs = callers(&console).iter().any(|name| name.contains("faults::hang"));
    ensure!(hangs, "{console}");
    Ok(())
}
