//! Start-up time: from `xl unpause` to a guest's first byte, next to a Linux guest.
//!
//! The machine is emulated and shared, so the ratio within one run says more than the times. Linux
//! has no file system: its time ends when it looks for one, before it starts any program.

use anyhow::{Context, Result};
use lab::{Dom0, Lab, Options, Tree};
use std::fs;

/// Linux takes much longer, so it has fewer rounds.
const GUEST_ROUNDS: usize = 9;
const LINUX_ROUNDS: usize = 3;

const HTTP: &str = include_str!("../../xensockd/dist/http.cfg");

const LINUX: &str = "name = \"linux\"\ntype = \"pvh\"\nkernel = \"/tmp/vmlinuz\"\n\
                     cmdline = \"console=hvc0\"\nmemory = 192\nvcpus = 1\ntsc_mode = \"native\"\n\
                     on_crash = \"destroy\"\non_reboot = \"destroy\"\n";

fn main() -> Result<()> {
    // `cargo bench` passes options of its own harness.
    let tree = Tree::here();
    let mut options = Options::new(tree.target().join("bench-lab"));
    options.add_built(&tree)?;
    let lab = Lab::boot(&tree, &options, &|text| println!("lab: {text}"))?;
    lab.push(&tree.cache().join("vmlinuz"), "/tmp/vmlinuz")?;
    lab.write("/root/linux.cfg", LINUX)?;
    lab.write("/root/http.cfg", HTTP)?;

    let served = "wget -q -O /dev/null http://127.0.0.1:80/healthz 2>/dev/null";
    let guest = median(GUEST_ROUNDS, || timed(&lab, "http", served)).context("xensock-kernel")?;
    let size = fs::metadata(tree.kernel())?.len();
    println!("stripped image                                   {} KiB", size / 1024);
    println!("xl unpause to the first served byte, median      {guest:.2} s");

    let looking = "grep -q 'Unable to mount root' /var/log/xen/guest-linux.log";
    let linux = median(LINUX_ROUNDS, || timed(&lab, "linux", looking)).context("Linux")?;
    println!("xl unpause to Linux looking for a root, median   {linux:.2} s");
    println!("ratio                                            {:.2}", guest / linux);
    Ok(())
}

/// Seconds from `xl unpause` to the moment when `done` succeeds in dom0.
fn timed(dom0: &Dom0, name: &str, done: &str) -> Result<f64> {
    let seconds = dom0.run(&format!(
        "rm -f /var/log/xen/guest-{name}.log; \
         xl create -q -p /root/{name}.cfg 2>/dev/null || exit 1; \
         now() {{ cut -d' ' -f1 /proc/uptime; }}; \
         from=$(now); xl unpause {name}; until {done}; do :; done; to=$(now); \
         xl destroy {name} 2>/dev/null; echo $from $to"
    ))?;
    let (from, to) = seconds.split_once(' ').context("no two times")?;
    Ok(to.parse::<f64>()? - from.parse::<f64>()?)
}

fn median(rounds: usize, mut one: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut all = (0..rounds).map(|_| one()).collect::<Result<Vec<_>>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}
