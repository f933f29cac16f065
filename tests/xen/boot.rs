//! What a loader passes to the kernel, and the stages of booting.

use crate::fixture::{Fixture, cases, example};
use crate::images::image;
use crate::service::{HTTP, PATIENCE, Service, sha256};
use anyhow::{Context, Result, ensure};
use lab::Domain;
use std::fs;
use std::process::Command;

cases![
    a_long_command_line_and_a_module_reach_the_app,
    a_version_0_loader_without_a_command_line_is_supported,
    boot_stages_are_logged,
];

fn a_long_command_line_and_a_module_reach_the_app(fixture: &Fixture) -> Result<()> {
    let lab = fixture.lab()?;
    // Not a whole number of pages, and without runs of equal bytes.
    let module: Vec<u8> =
        (0..1_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("module");
    fs::write(&file, &module)?;
    lab.push(&file, "/tmp/module")?;
    let line = format!("{}the end of the line", "x".repeat(4096 - 19));
    let config = image(fixture, "memory", &line)? + "ramdisk = \"/tmp/module\"\n";
    let guest = Domain::create(lab, "module", &config)?;
    guest.wait_for("4096 bytes, at its end xthe end of the line", PATIENCE)?;
    let line = guest.wait_for("module: ", PATIENCE)?;
    let digest = &sha256(&module)[..16];
    ensure!(line.contains(&format!("1000003 bytes, sha256 {digest}")), "{line}, not {digest}");
    // The image has now overwritten all free memory.
    let again = guest.wait_for("module still: ", PATIENCE)?;
    ensure!(again.contains(digest), "{again}");
    Ok(())
}

pub fn id(guest: &Domain) -> Result<u32> {
    guest.id()?.with_context(|| format!("{} is gone", guest.name()))
}

fn a_version_0_loader_without_a_command_line_is_supported(fixture: &Fixture) -> Result<()> {
    let lab = fixture.lab()?;
    let config = image(fixture, "memory", "")?;
    let built = example("memory")?;
    let symbols = String::from_utf8(Command::new("nm").arg(&built).output()?.stdout)?;
    let address = |name: &str| -> Result<[u8; 8]> {
        let line = symbols.lines().find(|line| line.ends_with(&format!(" {name}")));
        let line = line.with_context(|| format!("the image has no symbol {name}"))?;
        Ok(u64::from_str_radix(line.split(' ').next().unwrap_or_default(), 16)?.to_le_bytes())
    };
    // The ELF note has the entry's address after the note's name.
    let note = |entry| -> Result<Vec<u8>> { Ok([b"Xen\0", &address(entry)?[..]].concat()) };
    let (usual, other) = (note("pvh_start")?, note("version_0_start")?);
    let mut bytes = fs::read(&built)?;
    let mut places = bytes.windows(usual.len()).enumerate().filter(|(_, text)| *text == usual);
    let (at, _) = places.next().context("the image has no note")?;
    ensure!(places.next().is_none(), "the image has two notes");
    drop(places);
    bytes[at..at + other.len()].copy_from_slice(&other);
    let folder = tempfile::tempdir()?;
    let patched = folder.path().join("memory");
    fs::write(&patched, bytes)?;
    lab.push(&patched, "/root/memory-0")?;
    let without = config.lines().filter(|line| !line.starts_with("cmdline"));
    let config = without.collect::<Vec<_>>().join("\n").replace("/root/memory", "/root/memory-0");

    let guest = Domain::create(lab, "version0", &config)?;
    guest.wait_for("command line: 0 bytes", PATIENCE)?;
    guest.wait_for("loader's map: none", PATIENCE)?;
    let turn = guest.wait_for("turn 0: ", PATIENCE)?;
    ensure!(turn.contains("wrong: 0,"), "{turn}");
    Ok(())
}

fn boot_stages_are_logged(fixture: &Fixture) -> Result<()> {
    let guest = Service::start(fixture, HTTP, "http log=debug", "")?;
    guest.domain.wait_for("boot: ", PATIENCE)?;
    let console = guest.domain.console()?;
    let lines: Vec<_> = console.lines().filter_map(|line| line.split_once("boot: ")).collect();
    ensure!(lines.len() == 1, "{console}");
    let (_, line) = lines[0];
    let (stages, all) = line.rsplit_once(", ").context("no stages")?;
    let micros = |text: &str| -> Result<u64> {
        let digits = text.split(' ').find(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
        Ok(digits.with_context(|| format!("no number: {text}"))?.parse()?)
    };
    let names: Vec<_> = stages.split(", ").filter_map(|stage| stage.split(' ').next()).collect();
    ensure!(names == ["memory", "machine", "xenstore", "device", "listening"], "{line}");
    let parts = stages.split(", ").map(micros).collect::<Result<Vec<_>>>()?;
    let (sum, all) = (parts.iter().sum::<u64>(), micros(all)?);
    // Each time is rounded down.
    ensure!(sum <= all && all - sum < 5 && parts.iter().all(|part| *part > 0), "{line}");
    Ok(())
}
