//! A Linux guest that runs one program over its network interface: what a service without this
//! project's kernel would be, as small as Debian's kernel permits.

use crate::archive::{EXECUTABLE, READABLE};
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
const MODULES: &[&str] = &["xen-netfront"];

/// A Linux guest's kernel and initramfs.
pub struct LinuxServer {
    /// The kernel, which is dom0's.
    pub kernel: PathBuf,
    /// The initramfs with the program.
    pub initramfs: PathBuf,
}

impl LinuxServer {
    /// Writes the initramfs of a guest that runs the host's `program`.
    pub fn build(tree: &Tree, program: &Path, say: &dyn Fn(&str)) -> Result<Self> {
        let _lock = cache::lock(&tree.cache())?;
        let packages = Packages::get(tree, say)?;
        let server = Self {
            kernel: tree.cache().join("vmlinuz"),
            initramfs: tree.cache().join("linux-server.cpio"),
        };
        let mut archive = small_guest(&server.initramfs, APPLETS)?;
        archive.copy(&tree.linux().join("serve"), "/init", EXECUTABLE)?;
        let mut order = String::new();
        for module in modules::resolve(&packages.path("/lib/modules"), MODULES.iter().copied())? {
            let file = format!("{}.ko", module.name);
            archive.file(&format!("/modules/{file}"), READABLE, &module.content)?;
            order += &format!("{file}\n");
        }
        archive.file("/modules/order", READABLE, order.as_bytes())?;
        archive.copy(program, "/program", EXECUTABLE)?;
        for (name, from) in packages.libraries(program)? {
            archive.copy(&from, &library_path(&name), EXECUTABLE)?;
        }
        archive.finish()?.flush()?;
        Ok(server)
    }

    /// The kernel's command line: the interface's `address` with its network's length, and the
    /// program's words.
    pub fn command_line(&self, address: &str, words: &str) -> String {
        format!("console=hvc0 quiet rdinit=/init address={address} run=\\\"{words}\\\"")
    }
}
