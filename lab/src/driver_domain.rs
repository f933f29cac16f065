//! A driver domain: a Linux guest in which the backend daemon serves other guests. It has dom0's
//! programs, the daemon's package, and an interface on dom0's bridge.

use crate::archive::EXECUTABLE;
use crate::bridge::Interface;
use crate::dom0::Dom0;
use crate::domain::Domain;
use crate::image::Base;
use crate::modules;
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

/// What it needs of Linux.
const MODULES: &[&str] = &["xen-evtchn", "xen-gntdev", "xen-netfront"];

/// The files in dom0 from which it is created.
const KERNEL: &str = "/tmp/driver-vmlinuz";
const INITRAMFS: &str = "/tmp/driver.cpio";

/// How long it may take to boot.
const BOOT_TIME: Duration = Duration::from_secs(120);

/// A driver domain, which is destroyed on drop.
#[derive(Debug)]
pub struct DriverDomain {
    dom0: Dom0,
    domain: Domain,
    interface: Interface,
}

impl DriverDomain {
    /// Creates it, and waits until it has booted. The daemon does not run yet. `settings` are more
    /// lines of its configuration. All that one machine runs have the same `programs`: the host's
    /// file, and its path. Reports slow steps to `say`.
    pub fn start(
        dom0: &Dom0,
        tree: &Tree,
        interface: Interface,
        settings: &str,
        programs: &[(&Path, &str)],
        say: &dyn Fn(&str),
    ) -> Result<Self> {
        if dom0.exec(&format!("[ -e {INITRAMFS} ]"))?.status != 0 {
            let base = Base::get(tree, say)?;
            let initramfs = tree.cache().join("driver.cpio");
            write_initramfs(&base, tree, programs, &initramfs)?;
            dom0.push(&base.linux(), KERNEL)?;
            dom0.push(&initramfs, INITRAMFS)?;
        }
        let (vif, address) = (interface.vif(), interface.address());
        let config = format!(
            "type = \"pvh\"\nkernel = \"{KERNEL}\"\nramdisk = \"{INITRAMFS}\"\n\
             cmdline = \"console=hvc0 loglevel=5 rdinit=/init address={address}/25 \
             gateway={}\"\nmemory = 256\nvcpus = 1\ndriver_domain = 1\nvif = [\"{vif}\"]\n\
             tsc_mode = \"native\"\n{settings}\n",
            Interface::DOM0
        );
        let domain = Domain::create(dom0, "driver", &config)?;
        let driver = DriverDomain { dom0: dom0.clone(), domain, interface };
        driver.domain.wait_for("driver domain: ready", BOOT_TIME)?;
        Ok(driver)
    }

    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// A port of it, in dom0's network.
    pub fn port(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.interface.address(), port)
    }

    /// Starts the daemon, or restarts it, with these rules.
    pub fn serve(&self, rules: &str) -> Result<()> {
        let rules = shlex::try_quote(rules)?;
        let line = format!("printf %s {rules} >/etc/xensockd.toml; start-xensockd");
        self.run(&line).map(drop)
    }

    /// The daemon's log.
    pub fn log(&self) -> Result<String> {
        self.run("cat /var/log/xen/xensockd.log")
    }

    /// Runs a shell command line whose status must be 0, and returns its outputs.
    pub fn run(&self, line: &str) -> Result<String> {
        self.run_within(line, Duration::from_secs(180))
    }

    /// Like [`run`](DriverDomain::run), with another time limit.
    pub fn run_within(&self, line: &str, at_most: Duration) -> Result<String> {
        let script = format!("(\n{line}\n) 2>&1 </dev/null\necho \"=$?\"\n");
        let script = shlex::try_quote(&script)?.into_owned();
        let address = self.interface.address();
        let said =
            self.dom0.run_within(&format!("printf %s {script} | nc {address} 2300"), at_most)?;
        let (output, status) = said.rsplit_once('=').context("the driver domain says nothing")?;
        if status != "0" {
            bail!("driver domain: `{line}` ended with status {status}: {output}");
        }
        Ok(output.trim_end().to_owned())
    }
}

fn write_initramfs(
    base: &Base,
    tree: &Tree,
    programs: &[(&Path, &str)],
    path: &Path,
) -> Result<()> {
    let mut archive = base.begin(path)?;
    for (from, to) in programs {
        archive.copy(from, to, EXECUTABLE)?;
    }
    base.install(&tree.package(), &mut archive)?;
    archive.copy(&tree.linux().join("driver"), "/init", EXECUTABLE)?;
    modules::add(&mut archive, "/modules", base.packages(), MODULES.iter().copied())?;
    archive.finish()?.flush()?;
    Ok(())
}
