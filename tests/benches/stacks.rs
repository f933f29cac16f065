//! Sockets in dom0 next to a stack in the guest, in one boot: bulk transfer, round trips, requests,
//! and their hypercalls and notifications. The client runs in dom0.
//!
//! The machine is emulated and shared, so ratios say more than figures. The guest hashes incoming
//! data, which takes the same time over both.

use anyhow::{Context, Result};
use lab::{Domain, Interface, Lab, Options, Tree};
use std::collections::BTreeMap;
use std::time::Duration;

const HTTP: &str = include_str!("../../xensockd/dist/http.cfg");
const PATIENCE: Duration = Duration::from_secs(60);

/// The client's names of figures, and their descriptions.
const FIGURES: &[(&str, &str)] = &[
    ("out_mib_per_s", "out of the guest, MiB/s"),
    ("in_mib_per_s", "into the guest, hashed, MiB/s"),
    ("echo_mib_per_s", "in and out at once, MiB/s"),
    ("round_trip_us", "64 bytes there and back, us"),
    ("requests_per_s", "requests/s, one connection"),
    ("requests_at_once_per_s", "requests/s, 16 connections"),
    ("connections_per_s", "requests/s, each a connection"),
    ("out_hypercalls_per_mib", "hypercalls per MiB out"),
    ("in_hypercalls_per_mib", "hypercalls per MiB in"),
    ("out_notifications_per_mib", "notifications per MiB out"),
    ("in_notifications_per_mib", "notifications per MiB in"),
    ("out_frames_sent_per_mib", "frames sent per MiB out"),
    ("in_frames_received_per_mib", "frames received per MiB in"),
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
    let mut figures = BTreeMap::new();
    for (app, port) in [("http", 80), ("echo", 7)] {
        let device = match stack {
            "netfront" => format!("pvcalls = []\nvif = [\"{}\"]", Interface::FIRST.vif()),
            _ => String::new(),
        };
        let words = format!("app={app} port={port} stack={stack}");
        let guest =
            Domain::create(lab, app, &format!("{HTTP}\n{device}\ncmdline = \"{words}\"\n"))?;
        guest.wait_for(&format!("serving on port {port}"), PATIENCE)?;
        if stack == "netfront" {
            guest.wait_for("the address is", PATIENCE)?;
        }
        let output = lab.run(&format!("/root/client {app} {address}:{port}"))?;
        for line in output.lines() {
            let (name, value) = line.split_once(' ').context("a line without a figure")?;
            figures.insert(name.to_owned(), value.parse()?);
        }
    }
    Ok(figures)
}
