//! `lab run --app disk`: a disk, a cache of it and two clients, until Ctrl-C.

use super::run::interrupts;
use super::say;
use anyhow::{Result, bail};
use lab::{DiskChain, DiskPorts, Domain, Lab, Options, Tree, dom0_port};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// The app's name.
pub const APP: &str = "disk";

/// The ports of dom0.
const PORTS: DiskPorts = DiskPorts { page: 80, disk: 900 };

/// How often the consoles are looked at.
const POLL: Duration = Duration::from_secs(1);

/// Shows the page at `port` of this machine.
pub fn run(tree: &Tree, mut options: Options, port: u16) -> Result<ExitCode> {
    options.add_built(tree)?;
    let [server, image] = DiskChain::programs(tree);
    for (program, make) in [(server, "disk"), (image, "disk"), (tree.package(), "deb")] {
        if !program.is_file() {
            bail!("{} is missing; `make {make}` builds it", program.display());
        }
    }
    options.forwards.push((port, dom0_port(PORTS.page)));
    let lab = Lab::boot(tree, &options, &say)?;
    let interrupted = interrupts()?;
    say("starting a server, a cache and two clients of a disk");
    let mut chain = DiskChain::start(&lab, tree, PORTS, DiskChain::BLOCKS)?;
    println!();
    println!("    http://localhost:{port}/     who talks to the cache; /status.json: the same");
    println!("    `target/lab exec killall -9 disk-server` kills the server; it starts again");
    println!("    Ctrl-C ends all; below are the clients' consoles");
    println!();
    let mut shown = [0, 0];
    while !interrupted.load(Ordering::Relaxed) {
        if !lab.is_running() {
            bail!("QEMU ended; its logs are in {}", lab.folder().display());
        }
        if chain.start_server()? {
            say("the server of the file has ended, and was started again");
        }
        for (guest, shown) in [&chain.near, &chain.far].into_iter().zip(&mut shown) {
            *shown = show(guest, *shown)?;
        }
        thread::sleep(POLL);
    }
    println!();
    say("ending the guests and Xen");
    Ok(ExitCode::SUCCESS)
}

/// Prints the whole lines of a guest's console beyond the first `shown` bytes. Returns how many
/// bytes are shown now.
fn show(guest: &Domain, shown: usize) -> Result<usize> {
    let console = guest.console()?;
    let new = console.get(shown..).unwrap_or_default();
    let new = &new[..new.rfind('\n').map_or(0, |end| end + 1)];
    new.lines().for_each(|line| println!("{}: {line}", guest.name()));
    Ok(shown + new.len())
}
