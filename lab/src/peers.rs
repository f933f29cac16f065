//! Clients and servers of other projects in dom0, for tests: Debian's dig, nc and iperf3,
//! chrony and avahi.

use crate::archive::{Archive, EXECUTABLE, READABLE};
use crate::cache;
use crate::dom0::Dom0;
use crate::image::library_path;
use crate::packages::Packages;
use crate::process;
use crate::tree::Tree;
use anyhow::Result;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::Command;

const PROGRAMS: &[&str] = &[
    "/usr/sbin/chronyd",
    "/usr/sbin/avahi-daemon",
    "/usr/bin/avahi-browse",
    "/usr/bin/dbus-daemon",
    "/usr/bin/dig",
    "/usr/bin/nslookup",
    "/bin/nc.openbsd",
    "/usr/bin/iperf3",
];

/// A bus on which everything is allowed.
const BUS: &str = "\
    <busconfig>\
    <listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>\
    <policy context=\"default\"><allow send_destination=\"*\"/><allow receive_sender=\"*\"/>\
    <allow own=\"*\"/><allow user=\"*\"/></policy>\
    </busconfig>";

/// Copies the programs into dom0, unless they are there. Downloads them if they are missing here.
/// `start-avahi` starts avahi on the bridge.
pub fn install_peers(dom0: &Dom0, tree: &Tree, say: &dyn Fn(&str)) -> Result<()> {
    if dom0.exec("test -e /root/peers")?.status == 0 {
        return Ok(());
    }
    let _lock = cache::lock(&tree.cache())?;
    let packages = Packages::peers(tree, say)?;
    let archive = tree.cache().join("peers.cpio");
    let mut peers = Archive::new(BufWriter::new(File::create(&archive)?));
    let mut libraries = BTreeMap::new();
    for program in PROGRAMS {
        let from = packages.path(program);
        peers.copy(&from, program, EXECUTABLE)?;
        libraries.extend(packages.libraries(&from)?);
    }
    for (name, from) in libraries {
        peers.copy(&from, &library_path(&name), EXECUTABLE)?;
    }
    peers.copy(&tree.root().join("lab/dom0/start-avahi"), "/usr/sbin/start-avahi", EXECUTABLE)?;
    peers.file("/etc/dbus.conf", READABLE, BUS.as_bytes())?;
    peers.finish()?.flush()?;
    // Copying takes longer than unpacking.
    process::output(Command::new("gzip").arg("-1f").arg(&archive))?;
    dom0.push(&archive.with_extension("cpio.gz"), "/root/peers.gz")?;
    let unpack = "cd / && gzip -dc /root/peers.gz | cpio -idu 2>/dev/null";
    dom0.run(&format!("{unpack} && rm /root/peers.gz && touch /root/peers")).map(drop)
}
