//! A Linux guest that runs one program: what a service without this project's kernel would be, as
//! small as Debian's kernel permits.

use crate::archive::{EXECUTABLE, PRIVATE};
use crate::cache;
use crate::image::{library_path, small_guest};
use crate::modules;
use crate::packages::Packages;
use crate::tree::Tree;
use anyhow::Result;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What the guest prints when its init begins.
pub const INIT_RUNS: &str = "lab: init runs";

const APPLETS: &[&str] = &["insmod", "ip", "mount", "sh"];

/// What the program needs of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// A network interface.
    Network,
    /// Pages and event channels that it shares with other domains' programs.
    Neighbours,
}

impl Needs {
    fn modules(self) -> &'static [&'static str] {
        match self {
            Needs::Network => &["xen-netfront"],
            Needs::Neighbours => &["xen-evtchn", "xen-gntalloc", "xen-gntdev"],
        }
    }

    fn file(self) -> &'static str {
        match self {
            Needs::Network => "linux-server.cpio",
            Needs::Neighbours => "linux-neighbour.cpio",
        }
    }
}

/// A Linux guest's kernel and initramfs.
pub struct LinuxServer {
    /// The kernel, which is dom0's.
    pub kernel: PathBuf,
    /// The initramfs with the program.
    pub initramfs: PathBuf,
}

impl LinuxServer {
    /// Writes the initramfs of a guest that runs the host's `program`, which finds these `files`:
    /// the host's file, and its path.
    pub fn build(
        tree: &Tree,
        needs: Needs,
        program: &Path,
        files: &[(&Path, &str)],
        say: &dyn Fn(&str),
    ) -> Result<Self> {
        let _lock = cache::lock(&tree.cache())?;
        let packages = Packages::get(tree, say)?;
        let server = Self {
            kernel: tree.cache().join("vmlinuz"),
            initramfs: tree.cache().join(needs.file()),
        };
        let mut archive = small_guest(&server.initramfs, APPLETS)?;
        archive.copy(&tree.linux().join("serve"), "/init", EXECUTABLE)?;
        let modules = needs.modules().iter().copied();
        modules::add(&mut archive, "/modules", &packages, modules)?;
        archive.copy(program, "/program", EXECUTABLE)?;
        for (name, from) in packages.libraries(program)? {
            archive.copy(&from, &library_path(&name), EXECUTABLE)?;
        }
        for (from, path) in files {
            archive.copy(from, path, PRIVATE)?;
        }
        archive.finish()?.flush()?;
        Ok(server)
    }

    /// The kernel's command line: the program's words, and the interface's `address` with its
    /// network's length, if it has one.
    pub fn command_line(&self, address: Option<&str>, words: &str) -> String {
        let address = address.map_or(String::new(), |address| format!(" address={address}"));
        format!("console=hvc0 quiet rdinit=/init{address} run=\\\"{words}\\\"")
    }
}
