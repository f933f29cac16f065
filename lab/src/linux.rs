//! Linux's own ends of PV Calls, for tests of this project's ends: `pvcalls-back` as a module for
//! dom0, and a guest's initramfs with `pvcalls-front` and a program that tests it (`lab/linux`).
//!
//! Debian's kernels have neither module, but Debian's source package has both. They are built
//! against the headers of dom0's kernel. Nothing is installed: three files of the source package
//! are kept, and the headers are unpacked into a temporary folder for each build.

use crate::archive::EXECUTABLE;
use crate::cache;
use crate::image::small_guest;
use crate::packages::{self, Packages};
use crate::process;
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The source package of the kernel's series.
const SOURCE: &str = "linux-source-6.12";
/// The folder and the names of the files that are needed.
const SOURCE_FOLDER: &str = "drivers/xen";
const SOURCE_FILES: &[&str] = &["pvcalls-back.c", "pvcalls-front.c", "pvcalls-front.h"];

/// This project's files: parts of the modules, and the guest's init.
const OUR_FILES: &[&str] = &["Kbuild", "pvcalls-front.c", "pvcalls-test.c", "init"];

/// The guest's commands.
const APPLETS: &[&str] =
    &["dd", "echo", "insmod", "mount", "od", "poweroff", "printf", "rmmod", "sh"];

/// Linux's ends of PV Calls, built.
pub struct LinuxEnds {
    folder: PathBuf,
}

impl LinuxEnds {
    /// Downloads and builds what is missing or out of date. Reports slow steps to `say`.
    pub fn get(tree: &Tree, say: &dyn Fn(&str)) -> Result<Self> {
        let _lock = cache::lock(&tree.cache())?;
        let root = Packages::get(tree, say)?;
        let kernel = release(&root.find("/boot", "vmlinuz-", "")?)?;
        let folder = tree.cache().join("linux");
        let parts = Parts { headers: folder.join("headers"), source: folder.join("source") };
        let built = folder.join("built.key");
        cache::up_to_date(&folder.join("parts.kernel"), &kernel, || {
            cache::remove_if_present(&built)?;
            parts.get(tree, &kernel, say)
        })?;
        let ends = Self { folder };
        let sources = cache::contents(&tree.linux(), OUR_FILES.iter().copied())?;
        cache::up_to_date(&built, &format!("{kernel}\n{sources}"), || {
            say("building Linux's own ends of PV Calls");
            ends.build(tree, &kernel, &parts)
        })?;
        Ok(ends)
    }

    /// The backend: a module for dom0.
    pub fn backend(&self) -> PathBuf {
        self.folder.join("pvcalls-back.ko")
    }

    /// The initramfs of a guest that runs `lab/linux/init`.
    pub fn guest(&self) -> PathBuf {
        self.folder.join("guest.cpio")
    }

    fn build(&self, tree: &Tree, kernel: &str, parts: &Parts) -> Result<()> {
        // Linux's makefiles do not support spaces in paths, which the checkout may have.
        let temporary = tempfile::tempdir()?;
        let (root, modules) = (temporary.path().join("root"), temporary.path().join("modules"));
        fs::create_dir_all(modules.join("linux"))?;
        for deb in fs::read_dir(&parts.headers)? {
            process::output(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(&root))?;
        }
        let sources = root.join("usr/src");
        let headers = sources.join(format!("linux-headers-{kernel}"));
        // This makefile includes another one by an absolute path.
        let makefile = fs::read_to_string(headers.join("Makefile"))?;
        let here = format!("{}/", sources.display());
        fs::write(headers.join("Makefile"), makefile.replace("/usr/src/", &here))?;
        for name in SOURCE_FILES {
            fs::copy(parts.source.join(name), modules.join("linux").join(name))?;
        }
        for name in OUR_FILES {
            fs::copy(tree.linux().join(name), modules.join(name))?;
        }
        let mut make = Command::new("make");
        make.arg("-C").arg(&headers).arg(format!("M={}", modules.display()));
        // No debug information: BTF would need another program.
        make.args(["CONFIG_DEBUG_INFO=", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
        // Variables of an outer make would change this build.
        for name in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARCH", "CROSS_COMPILE"] {
            make.env_remove(name);
        }
        process::output(&mut make).context("cannot build Linux's modules")?;
        fs::copy(modules.join("linux/pvcalls-back.ko"), self.backend())?;
        self.write_guest(&modules)
    }

    fn write_guest(&self, modules: &Path) -> Result<()> {
        let mut archive = small_guest(&self.guest(), APPLETS)?;
        archive.copy(&modules.join("init"), "/init", EXECUTABLE)?;
        for module in ["pvcalls-front.ko", "pvcalls-test.ko"] {
            archive.copy(&modules.join(module), &format!("/{module}"), EXECUTABLE)?;
        }
        archive.finish()?.flush()?;
        Ok(())
    }
}

/// The parts of Debian's packages that are kept.
struct Parts {
    /// The packages with the headers and the module build tools.
    headers: PathBuf,
    /// Three files of Linux.
    source: PathBuf,
}

impl Parts {
    fn get(&self, tree: &Tree, kernel: &str, say: &dyn Fn(&str)) -> Result<()> {
        cache::empty_folder(&self.headers)?;
        cache::empty_folder(&self.source)?;
        say("downloading Linux's headers and source from Debian (about 170 MB)");
        let headers = format!("linux-headers-{kernel}");
        let downloaded = packages::with_update(tree, say, || {
            let names = packages::depends(&headers)?;
            let wanted = |name: &&String| {
                name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-")
            };
            let mut names: Vec<_> = names.iter().filter(wanted).map(|name| &**name).collect();
            names.push(&headers);
            packages::download(&self.headers, &names)
        });
        if let Err(error) = downloaded {
            // If apt lists the headers, only this download failed.
            if packages::depends(&headers).is_ok() {
                return Err(error.context("cannot download Linux's headers"));
            }
            packages::forget(tree)?;
            return Err(error.context(format!(
                "Debian no longer offers the headers of dom0's kernel {kernel}; run this again to \
                 download dom0's packages anew"
            )));
        }
        let temporary = tempfile::tempdir_in(tree.cache())?;
        packages::with_update(tree, say, || packages::download(temporary.path(), &[SOURCE]))
            .with_context(|| format!("cannot download {SOURCE}"))?;
        say("unpacking three files of Linux");
        let deb =
            fs::read_dir(temporary.path())?.next().context("apt downloaded no package")??.path();
        // Stops reading after the last of the files.
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!(
            "dpkg-deb --fsys-tarfile \"$0\" 2>/dev/null | \
             tar -xO --occurrence=1 ./usr/src/{SOURCE}.tar.xz 2>/dev/null | \
             xz -dc -T0 2>/dev/null | \
             tar -x --occurrence=1 --strip-components=3 -C \"$1\" \"$2\" \"$3\" \"$4\""
        ));
        shell.arg(&deb).arg(&self.source);
        shell.args(SOURCE_FILES.iter().map(|name| format!("{SOURCE}/{SOURCE_FOLDER}/{name}")));
        process::output(&mut shell).with_context(|| format!("cannot unpack {SOURCE}"))?;
        Ok(())
    }
}

/// The kernel's release, from the name of its image.
fn release(image: &Path) -> Result<String> {
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let release = name.strip_prefix("vmlinuz-");
    release.map(str::to_owned).with_context(|| format!("{name} has no kernel release in its name"))
}
