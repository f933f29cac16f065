//! Sockets in dom0 next to a stack in the guest, in one boot: bulk transfer, round trips, requests,
//! and their processor time, hypercalls and notifications. The client runs in dom0.
//!
//! The machine is emulated and shared, so ratios say more than figures.

use anyhow::{Context, Result};
use lab::{Domain, Interface, Lab, Options, Tree};
use std::collections::BTreeMap;
use std::time::Duration;

const HTTP: &str = include_str!("../../xensockd/dist/http.cfg");
const PATIENCE: Duration = Duration::from_secs(60);

/// The client's names of figures, and their descriptions.
const FIGURES: &[(&str, &str)] = &[
    ("out_mib_per_s", "out of the guest, MiB/s"),
    ("in_mib_per_s", "into the guest, MiB/s"),
    ("both_mib_per_s", "in and out at once, MiB/s"),
    ("round_trip_us", "64 bytes there and back, us"),
    ("requests_per_s", "requests/s, one connection"),
    ("requests_of_64_per_s", "requests/s, 64 connections"),
    ("connections_per_s", "connections/s, 64 bytes each"),
    ("out_guest_cpu_s_per_gib", "guest's CPU seconds per GiB out"),
    ("in_guest_cpu_s_per_gib", "guest's CPU seconds per GiB in"),
    ("out_dom0_cpu_s_per_gib", "dom0's CPU seconds per GiB out"),
    ("in_dom0_cpu_s_per_gib", "dom0's CPU seconds per GiB in"),
    ("out_hypercalls_per_mib", "hypercalls per MiB out"),
    ("in_hypercalls_per_mib", "hypercalls per MiB in"),
    ("out_notifications_per_mib", "notifications per MiB out"),
    ("in_notifications_per_mib", "notifications per MiB in"),
];

fn main() -> Result<()> {
    let tree = Tree::here();
    let mut options = Options::new(tree.target().join("bench-lab"));
    options.add_built(&tree)?;
    let client = tree.target().join("host/examples/client");
    options.files.push((client, "/root/client".into()));
    let lab = Lab::boot(&tree, &options, &|text| println!("lab: {text}"))?;
    let dom0 = measure(&lab, "xensock", "127.0.0.1").context("over dom0's sockets")?;
    let own = format!("{}", Interface::FIRST.address());
    let own = measure(&lab, "netfront", &own).context("over the guest's own stack")?;
    println!("{:34}{:>12}{:>12}{:>10}", "", "xensock", "netfront", "ratio");
    for (name, meaning) in FIGURES {
        let (one, other) = (dom0.get(*name).copied(), own.get(*name).copied());
        let (one, other) = (one.unwrap_or(f64::NAN), other.unwrap_or(f64::NAN));
        println!("{meaning:34}{one:12.1}{other:12.1}{:10.2}", other / one);
    }
    Ok(())
}

/// The client's figures for a guest with this stack and address.
fn measure(lab: &Lab, stack: &str, address: &str) -> Result<BTreeMap<String, f64>> {
    let device = match stack {
        "netfront" => format!("pvcalls = []\nvif = [\"{}\"]", Interface::FIRST.vif()),
        _ => String::new(),
    };
    let words = format!("app=bench stack={stack}");
    let guest =
        Domain::create(lab, "bench", &format!("{HTTP}\n{device}\ncmdline = \"{words}\"\n"))?;
    guest.wait_for("serving on ports", PATIENCE)?;
    if stack == "netfront" {
        guest.wait_for("the address is", PATIENCE)?;
    }
    let (name, phases) = (guest.name(), "out in both round-trip requests connections");
    let output = lab.run(&format!("/root/client {address}:9001 domain={name} {phases}"))?;
    let figure = |line: &str| {
        let (name, value) = line.split_once(' ').context("a line without a figure")?;
        Ok((name.to_owned(), value.parse().with_context(|| line.to_owned())?))
    };
    output.lines().map(figure).collect()
}
