//! C programs that use Xen's own libraries, for comparisons.
//!
//! The libraries come from Debian, which has them as archives. They are unpacked, not installed.

use crate::cache;
use crate::packages;
use crate::process;
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The package with the headers and the archives.
const PACKAGE: &str = "libxen-dev";

/// The archives, each before those that it needs.
const LIBRARIES: &[&str] = &[
    "xenvchan",
    "xenctrl",
    "xenstore",
    "xengnttab",
    "xenevtchn",
    "xenforeignmemory",
    "xendevicemodel",
    "xencall",
    "xentoollog",
    "xentoolcore",
];

/// Compiles the C file `source` to the program `to`, which needs no shared library. Downloads the
/// libraries if that was not done before. Reports slow steps to `say`.
pub fn build(tree: &Tree, source: &Path, to: &Path, say: &dyn Fn(&str)) -> Result<()> {
    let _lock = cache::lock(&tree.cache())?;
    let root = tree.cache().join("libxen");
    cache::up_to_date(&tree.cache().join("libxen.package"), PACKAGE, || {
        say("downloading Xen's libraries from Debian (1 MB)");
        let debs = tempfile::tempdir_in(tree.cache())?;
        packages::with_update(tree, say, || packages::download(debs.path(), &[PACKAGE]))
            .with_context(|| format!("cannot download {PACKAGE}"))?;
        cache::empty_folder(&root)?;
        for deb in fs::read_dir(debs.path())? {
            process::output(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(&root))?;
        }
        Ok(())
    })?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-Wextra", "-static-pie", "-I"]).arg(root.join("usr/include"));
    gcc.arg("-o").arg(to).arg(source);
    gcc.arg("-L").arg(root.join("usr/lib/x86_64-linux-gnu"));
    gcc.args(LIBRARIES.iter().map(|name| format!("-l{name}")));
    process::output(&mut gcc).with_context(|| format!("cannot build {}", source.display()))?;
    Ok(())
}
