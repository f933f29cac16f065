//! Images of one's own: the example of the README, and the one that breaks the machine's rules.

use crate::bench::{Bench, cases};
use crate::service::PATIENCE;
use anyhow::{Result, ensure};
use lab::{Domain, Tree};
use std::io::Read;
use std::net::TcpStream;

cases![
    the_example_of_the_readme_greets,
    each_broken_rule_ends_in_a_report_that_names_it,
    without_xen_the_kernel_says_what_it_needs,
];

/// Puts an example's image into dom0, and returns a configuration that runs it.
pub fn image(bench: &Bench, name: &str, cmdline: &str) -> Result<String> {
    let built = Tree::here().target().join("x86_64-xen-pvh/release/examples").join(name);
    bench.lab()?.push(&built, &format!("/root/{name}"))?;
    Ok(format!(
        "type = \"pvh\"\nkernel = \"/root/{name}\"\ncmdline = \"{cmdline}\"\nmemory = 32\n\
         pvcalls = [\"backend=0\"]\ntsc_mode = \"native\"\n"
    ))
}

fn the_example_of_the_readme_greets(bench: &Bench) -> Result<()> {
    let lab = bench.lab()?;
    let _guest = Domain::create(lab, "hello", &image(bench, "hello", "")?)?;
    let port = crate::bench::free_port()?;
    lab.forward(port, 7000)?;
    crate::bench::wait_until("the guest greets", PATIENCE, || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut said = String::new();
        // Until the guest listens, the connection is cut.
        let _ = stream.read_to_string(&mut said);
        Ok(said.starts_with("Hello from a guest"))
    })
}

fn each_broken_rule_ends_in_a_report_that_names_it(bench: &Bench) -> Result<()> {
    let lab = bench.lab()?;
    for (fault, report) in [
        ("null", "write: the page is not mapped"),
        ("write-code", "write: the page's rights forbid it"),
        ("write-constant", "write: the page's rights forbid it"),
        ("execute-heap", "execute: the page's rights forbid it"),
        ("execute-stack", "execute: the page's rights forbid it"),
        ("nothing-there", "write: the page is not mapped"),
        ("stack", "stack"),
        ("opcode", "invalid opcode"),
        ("panic", "as the command line asked"),
        ("memory", "memory"),
    ] {
        let config = image(bench, "faults", &format!("fault={fault}"))?;
        let guest = Domain::create(lab, "faults", &config)?;
        guest.wait_for_end(PATIENCE)?;
        let console = guest.console()?;
        ensure!(console.contains(report), "{fault}: no {report:?} in {console}");
        ensure!(!console.contains("nothing happened"), "{fault}: {console}");
    }
    Ok(())
}

fn without_xen_the_kernel_says_what_it_needs(_: &Bench) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("serial.log");
    let mut qemu = std::process::Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(Tree::here().kernel())
        .arg("-serial")
        .arg(format!("file:{}", log.display()))
        .spawn()?;
    let said = crate::bench::wait_until("the kernel speaks", PATIENCE, || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        Ok(said.contains("there is no Xen here") && said.contains("type=\"pvh\""))
    });
    qemu.kill()?;
    qemu.wait()?;
    said
}
