//! The images that QEMU boots: the hypervisor, Linux, and dom0's initramfs in two parts.
//!
//! The base (busybox, Xen's tools, modules, ssh) is built once and kept. Files that change often
//! (kernel, backend, configurations) are in a small second archive.

use crate::archive::{Archive, EXECUTABLE, PRIVATE, READABLE};
use crate::cache;
use crate::modules;
use crate::packages::Packages;
use crate::process;
use crate::qemu::Options;
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use walkdir::WalkDir;

/// The version of the base; incremented when this code builds another base from the same inputs.
const FORMAT: u32 = 4;

/// dom0's drivers: Xen's interfaces, the network card, the guests' network.
const MODULES: &str = "\
    xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs e1000 xen-netback bridge sch_netem";

/// The folder of Xen's programs, in the package and in dom0.
const XEN_BIN: &str = "/usr/lib/xen-4.17/bin";
const XEN_TOOLS: &str = "\
    libxl-save-helper lsevtchn readnotes xen-cpuid xen-diag xen-hptool xen-hvmctx \
    xen-init-dom0 xenconsole xenconsoled xenctx xenperf xenpm xenstored xenstore-control \
    xentop xentrace xl";
/// Files of this project: where they are in the source tree, and where in dom0.
const OUR_FILES: &[(&str, &str, u32)] = &[
    ("lab/dom0/init", "/init", EXECUTABLE),
    ("lab/dom0/profile", "/etc/profile", READABLE),
    ("lab/dom0/vif-bridge", "/etc/xen/scripts/vif-bridge", EXECUTABLE),
    ("lab/dom0/start-dnsmasq", "/usr/sbin/start-dnsmasq", EXECUTABLE),
    ("lab/dom0/stop-dnsmasq", "/usr/sbin/stop-dnsmasq", EXECUTABLE),
    ("lab/dom0/start-xensockd", "/usr/sbin/start-xensockd", EXECUTABLE),
    ("lab/dom0/xensockd.toml", RULES, READABLE),
];
/// What the guests may do.
const RULES: &str = "/etc/xensockd.toml";
const XENSTORE_TOOLS: &str = "chmod exists list ls read rm watch write";

/// The kernel that the guests' configurations name.
const GUEST_KERNEL: &str = "/root/xensock-kernel";

/// Folders that programs expect.
const FOLDERS: &str = "\
    /dev /etc/xen/scripts /proc /root /run /sys /tmp /var/lib/xen /var/lib/xenstored \
    /var/log/xen";

/// The images that are the same for every boot.
pub struct Base {
    cache: PathBuf,
    packages: Packages,
}

impl Base {
    /// Builds what is missing or out of date. Reports slow steps to `say`.
    pub fn get(tree: &Tree, say: &dyn Fn(&str)) -> Result<Self> {
        let cache = tree.cache();
        let _lock = cache::lock(&cache)?;
        let packages = Packages::get(tree, say)?;
        let base = Self { cache, packages };
        cache::up_to_date(&base.cache.join("base.key"), &key(tree)?, || {
            say("building dom0's image");
            base.build(tree)
        })?;
        Ok(base)
    }

    /// The hypervisor.
    pub fn xen(&self) -> PathBuf {
        self.cache.join("xen")
    }

    /// dom0's Linux.
    pub fn linux(&self) -> PathBuf {
        self.cache.join("vmlinuz")
    }

    /// The private key for dom0's ssh server.
    pub fn client_key(&self) -> PathBuf {
        self.cache.join("client-key")
    }

    /// The public key of dom0's ssh server.
    pub fn host_key(&self) -> Result<String> {
        Ok(fs::read_to_string(self.cache.join("host-key.pub"))?)
    }

    /// The packages that it is built from.
    pub fn packages(&self) -> &Packages {
        &self.packages
    }

    /// Begins an initramfs: the base, and what the caller adds.
    pub fn begin(&self, path: &Path) -> Result<Archive<BufWriter<File>>> {
        fs::copy(self.cache.join("base.cpio"), path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let file = File::options().append(true).open(path)?;
        Ok(Archive::new(BufWriter::new(file)))
    }

    /// Writes dom0's whole initramfs to `path`: the base, then the files of `options`.
    pub fn write_initramfs(&self, path: &Path, options: &Options) -> Result<()> {
        let mut archive = self.begin(path)?;
        if let Some(kernel) = &options.kernel {
            archive.copy(kernel, GUEST_KERNEL, READABLE)?;
        }
        if let Some(package) = &options.package {
            self.install(package, &mut archive)?;
        }
        for (from, to) in &options.files {
            let executable = fs::metadata(from).is_ok_and(|file| file.mode() & 0o111 != 0);
            archive.copy(from, to, if executable { EXECUTABLE } else { READABLE })?;
        }
        archive.finish()?.flush()?;
        Ok(())
    }

    /// Adds the files of the daemon's package, as they are, and the libraries that it depends on.
    pub fn install<W: Write>(&self, package: &Path, archive: &mut Archive<W>) -> Result<()> {
        let there = fs::read_to_string(self.cache.join("base.libraries"))?;
        let root = tempfile::tempdir()?;
        process::output(Command::new("dpkg").arg("-x").arg(package).arg(root.path()))?;
        for file in WalkDir::new(root.path()).sort_by_file_name() {
            let file = file?;
            let path = Path::new("/").join(file.path().strip_prefix(root.path())?);
            let path = path.to_str().context("a file's name is not in UTF-8")?;
            // The lab is the operator, who has written this file.
            if !file.file_type().is_file() || path == RULES {
                continue;
            }
            archive.copy(file.path(), path, file.metadata()?.mode() & 0o777)?;
            if !path.starts_with("/usr/sbin/xensock") {
                continue;
            }
            for (name, from) in self.packages.libraries(file.path())? {
                if !there.lines().any(|line| line == name) {
                    archive.copy(&from, &library_path(&name), EXECUTABLE)?;
                }
            }
        }
        Ok(())
    }

    fn build(&self, tree: &Tree) -> Result<()> {
        let packages = &self.packages;
        let xen = packages.find("/boot", "xen-4.17-amd64", ".gz")?;
        fs::write(self.xen(), process::output(Command::new("gzip").arg("-dc").arg(xen))?.stdout)?;
        fs::copy(packages.find("/boot", "vmlinuz-", "")?, self.linux())?;
        self.make_keys()?;

        let file = File::create(self.cache.join("base.cpio"))?;
        let mut archive = Archive::new(BufWriter::new(file));
        for folder in FOLDERS.split_whitespace() {
            archive.folder(folder)?;
        }
        archive.link("/var/run", "/run")?;
        archive.link("/var/lock", "/run/lock")?;
        let applets = process::output(Command::new(BUSYBOX).arg("--list"))?.stdout;
        let applets = String::from_utf8_lossy(&applets);
        add_busybox(&mut archive, applets.lines().filter(|applet| *applet != "busybox"))?;
        self.add_programs(&mut archive)?;
        modules::add(&mut archive, "/lib/modules", packages, MODULES.split_whitespace())?;
        self.add_configuration(&mut archive, tree)?;
        archive.finish()?.flush()?;
        Ok(())
    }

    /// Creates ssh keys, which are valid only for the dom0s of this checkout.
    fn make_keys(&self) -> Result<()> {
        let client = self.client_key();
        let host = self.cache.join("host-key");
        for old in [&client, &client.with_extension("pub"), &host] {
            let _ = fs::remove_file(old);
        }
        let mut command = Command::new("ssh-keygen");
        process::output(
            command.args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"]).arg(&client),
        )?;
        let libraries = self.packages.path("/usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(self.packages.path("/usr/bin/dropbearkey"));
        command.env("LD_LIBRARY_PATH", libraries).args(["-t", "ed25519", "-f"]).arg(&host);
        let output = process::output(&mut command)?.stdout;
        let output = String::from_utf8_lossy(&output);
        let public = output
            .lines()
            .find(|line| line.starts_with("ssh-ed25519 "))
            .context("dropbearkey printed no public key")?;
        fs::write(self.cache.join("host-key.pub"), public)?;
        Ok(())
    }

    fn add_programs<W: Write>(&self, archive: &mut Archive<W>) -> Result<()> {
        let mut programs = Vec::new();
        for tool in XEN_TOOLS.split_whitespace() {
            programs.push(format!("{XEN_BIN}/{tool}"));
            archive.link(&format!("/usr/sbin/{tool}"), &format!("{XEN_BIN}/{tool}"))?;
        }
        programs.extend(["/usr/bin/xenstore".into(), "/usr/sbin/gdbsx".into()]);
        // dom0's shell prefers busybox's smaller tc, so call this one by its path.
        let others = ["/usr/sbin/dropbear", "/usr/sbin/dnsmasq", "/sbin/tc", "/usr/bin/strace"];
        programs.extend(others.map(String::from));
        for tool in XENSTORE_TOOLS.split_whitespace() {
            archive.link(&format!("/usr/bin/xenstore-{tool}"), "xenstore")?;
        }

        let mut libraries = std::collections::BTreeMap::new();
        for program in &programs {
            let from = self.packages.path(program);
            archive.copy(&from, program, EXECUTABLE)?;
            libraries.extend(self.packages.libraries(&from)?);
        }
        // The C library loads it when a thread is cancelled, so `ldd` does not list it; xl aborts
        // without it.
        let gcc = "libgcc_s.so.1";
        libraries.insert(gcc.into(), self.packages.path(&format!("/lib/x86_64-linux-gnu/{gcc}")));
        for (name, from) in &libraries {
            archive.copy(from, &library_path(name), EXECUTABLE)?;
        }
        let names: Vec<_> = libraries.into_keys().collect();
        fs::write(self.cache.join("base.libraries"), names.join("\n"))?;
        Ok(())
    }

    fn add_configuration<W: Write>(&self, archive: &mut Archive<W>, tree: &Tree) -> Result<()> {
        for (from, to, permissions) in OUR_FILES {
            archive.copy(&tree.root().join(from), to, *permissions)?;
        }
        archive.file("/etc/xen/xl.conf", READABLE, b"")?;
        let users = b"root:x:0:0:root:/root:/bin/sh\nxensockd:x:100:100::/:/usr/sbin/nologin\n";
        archive.file("/etc/passwd", READABLE, users)?;
        archive.file("/etc/group", READABLE, b"root:x:0:\nxensockd:x:100:\n")?;
        archive.file("/etc/shadow", PRIVATE, b"root:*:1:0:99999:7:::\n")?;
        archive.file("/etc/hosts", READABLE, b"127.0.0.1 localhost dom0\n::1 localhost\n")?;
        archive.copy(&self.cache.join("host-key"), "/etc/dropbear/host-key", PRIVATE)?;
        let public = self.client_key().with_extension("pub");
        archive.copy(&public, "/root/.ssh/authorized_keys", PRIVATE)
    }
}

/// The place of a library, by its name.
pub fn library_path(name: &str) -> String {
    // The name of the dynamic loader is a path.
    if name.starts_with('/') { name.into() } else { format!("/lib/x86_64-linux-gnu/{name}") }
}

/// The host's busybox, which is statically linked.
const BUSYBOX: &str = "/usr/bin/busybox";

/// Adds busybox with these commands.
fn add_busybox<'a, W: Write>(
    archive: &mut Archive<W>,
    applets: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    archive.copy(Path::new(BUSYBOX), "/bin/busybox", EXECUTABLE)?;
    for applet in applets {
        archive.link(&format!("/bin/{applet}"), "busybox")?;
    }
    Ok(())
}

/// Begins the initramfs of a Linux guest that has only these commands of busybox.
pub fn small_guest(to: &Path, applets: &[&str]) -> Result<Archive<BufWriter<File>>> {
    let mut archive = Archive::new(BufWriter::new(File::create(to)?));
    for folder in ["/dev", "/proc", "/sys"] {
        archive.folder(folder)?;
    }
    add_busybox(&mut archive, applets.iter().copied())?;
    Ok(archive)
}

/// The inputs of the base.
fn key(tree: &Tree) -> Result<String> {
    let mut key = format!("format {FORMAT}\n");
    key += &fs::read_to_string(tree.cache().join("root.packages")).unwrap_or_default();
    for path in [BUSYBOX, "/lib/x86_64-linux-gnu/libc.so.6"] {
        let file = fs::metadata(path).with_context(|| format!("{path} is missing"))?;
        key += &format!("{path} {} {}\n", file.len(), file.mtime());
    }
    key += &cache::contents(tree.root(), OUR_FILES.iter().map(|(name, ..)| *name))?;
    Ok(key)
}
