//! A disk that domains pass on: a process of dom0 serves a file, a guest caches it, and two more
//! guests use the cache, one through shared memory and one over the network.

use crate::bridge::Interface;
use crate::dom0::Dom0;
use crate::domain::Domain;
use crate::qemu::dom0_port;
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The file in dom0.
const FILE: &str = "/root/disk.img";

/// The port at which a client with a network interface serves its buffers.
const BUFFERS: u16 = 901;

const PROGRAM: &str = "/root/disk-server";
const IMAGE: &str = "/root/disk";

/// A disk and its users. All of it ends when this is dropped.
pub struct DiskChain {
    server: Option<Process>,
    dom0: Dom0,
    /// The guest that caches the disk, and shows its neighbours on a page.
    pub cache: Domain,
    /// The client that reaches the cache through shared memory.
    pub near: Domain,
    /// The client that reaches it over the network. Its command line has another address of the
    /// cache; the rest is the same.
    pub far: Domain,
}

/// The ports of dom0 at which the guest that caches the disk has its sockets.
#[derive(Clone, Copy, Debug)]
pub struct DiskPorts {
    /// For its page.
    pub page: u16,
    /// For clients that come over the network.
    pub disk: u16,
}

impl DiskChain {
    /// The bytes of a block, and the number of blocks.
    pub const BLOCK: usize = 4096;
    /// The number of blocks.
    pub const BLOCKS: u32 = 1024;
    /// The blocks that both clients only read.
    pub const READ: Range<u32> = 0..960;
    /// The blocks that only one client writes, the near one and the far one.
    pub const OWN: [Range<u32>; 2] = [960..992, 992..DiskChain::BLOCKS];

    /// The programs: `make disk` builds them.
    pub fn programs(tree: &Tree) -> [PathBuf; 2] {
        [
            tree.target().join("host/examples/disk"),
            tree.target().join("x86_64-xen-pvh/release/examples/disk"),
        ]
    }

    /// Makes a file of random bytes, and starts its server, a cache of so many blocks and both
    /// clients.
    pub fn start(dom0: &Dom0, tree: &Tree, ports: DiskPorts, cached: u32) -> Result<Self> {
        for (program, place) in DiskChain::programs(tree).iter().zip([PROGRAM, IMAGE]) {
            dom0.push(program, place).context("`make disk` builds the programs")?;
        }
        let bytes = DiskChain::BLOCKS as usize * DiskChain::BLOCK;
        dom0.run(&format!("head -c {bytes} /dev/urandom >{FILE}"))?;
        let server = Process::start(dom0)?;
        let at = dom0_port(ports.disk);
        let words = format!(
            "role=cache cache={cached} upstream=xen:0/disk stack=xensock tcp={at} http={}",
            ports.page
        );
        let cache = Domain::create(dom0, "cache", &config(&words, "pvcalls = [\"backend=0\"]"))?;
        let id = cache.id()?.context("the cache has ended")?;
        let client = |name, number: u8, upstream: &str| {
            let interface = Interface::numbered(number);
            let (address, own) = (interface.address(), &DiskChain::OWN[usize::from(number)]);
            let words = format!(
                "role=client upstream={upstream} stack=netfront tcp={address}:{BUFFERS} \
                 check={:?} own={own:?}",
                DiskChain::READ
            );
            let devices = format!("vif = [\"{}\"]", interface.vif());
            Domain::create(dom0, name, &config(&words, &devices))
        };
        let near = client("near", 0, &format!("xen:{id}/disk"))?;
        let far = client("far", 1, &format!("tcp:{at}/disk"))?;
        Ok(DiskChain { server: Some(server), dom0: dom0.clone(), cache, near, far })
    }

    /// Copies the file in dom0 to this machine.
    pub fn pull_file(&self, to: &Path) -> Result<()> {
        self.dom0.pull(FILE, to)
    }

    /// Kills the server, whatever it does (`kill -9`).
    pub fn kill_server(&mut self) {
        self.server = None;
    }

    /// Starts the server again if it does not run. Returns whether it was started.
    pub fn start_server(&mut self) -> Result<bool> {
        if let Some(server) = &self.server
            && server.runs()?
        {
            return Ok(false);
        }
        self.server = Some(Process::start(&self.dom0)?);
        Ok(true)
    }
}

/// A guest that runs the image with these words.
fn config(words: &str, devices: &str) -> String {
    format!(
        "type = \"pvh\"\nkernel = \"{IMAGE}\"\ncmdline = \"{words}\"\nmemory = 64\n{devices}\n\
         tsc_mode = \"native\"\n"
    )
}

/// A process of dom0, which is killed on drop.
struct Process {
    dom0: Dom0,
    id: String,
}

impl Process {
    fn start(dom0: &Dom0) -> Result<Self> {
        let line = format!("{PROGRAM} {FILE} --xen </dev/null >>/var/log/disk.log 2>&1 & echo $!");
        Ok(Process { dom0: dom0.clone(), id: dom0.run(&line)? })
    }

    fn runs(&self) -> Result<bool> {
        Ok(self.dom0.exec(&format!("kill -0 {}", self.id))?.status == 0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.dom0.exec(&format!("kill -9 {}", self.id));
    }
}
