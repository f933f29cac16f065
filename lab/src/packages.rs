//! Debian packages for dom0: downloaded and unpacked, never installed.

use crate::cache;
use crate::process;
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// dom0's packages besides the kernel. The C library and busybox are the host's own.
const PACKAGES: &str = "\
    xen-hypervisor-4.17-amd64 xen-utils-4.17 xen-utils-common xenstore-utils libxencall1 \
    libxendevicemodel1 libxenevtchn1 libxenforeignmemory1 libxengnttab1 libxenhypfs1 \
    libxenmisc4.17 libxenstore4 libxentoolcore1 libxentoollog1 libyajl2 libuuid1 libzstd1 \
    liblzma5 libbz2-1.0 libncurses6 libtinfo6 libgcc-s1 dropbear-bin libcrypt1 libtomcrypt1 \
    libtommath1 libgmp10 zlib1g";
/// dnsmasq and its libraries.
const DNSMASQ: &str = "\
    dnsmasq-base libcap2 libdbus-1-3 libgcrypt20 libgpg-error0 libhogweed6 libidn2-0 \
    libjansson4 liblz4-1 libmnl0 libnetfilter-conntrack3 libnettle8 libnfnetlink0 libnftables1 \
    libnftnl11 libsystemd0 libunistring2 libxtables12";
/// tc and its libraries.
const TC: &str = "iproute2 libbpf1 libbsd0 libdb5.3 libelf1 libmd0";
/// strace and its libraries.
const STRACE: &str = "strace libunwind8";

/// The package that depends on the current kernel of the series. Linux 6.12 rather than Debian 12's
/// own 6.1, because its backend drivers are a better reference.
const KERNEL: &str = "linux-image-6.12-amd64";

/// Discards the packages, so the next lab downloads them again.
pub fn forget(tree: &Tree) -> Result<()> {
    // dom0's image is built from them.
    cache::remove_if_present(&tree.cache().join("root.packages"))?;
    cache::remove_if_present(&tree.cache().join("base.key"))
}

/// The unpacked packages, as one file tree.
pub struct Packages {
    root: PathBuf,
}

impl Packages {
    /// Downloads and unpacks the packages unless they are up to date.
    pub fn get(tree: &Tree, say: &dyn Fn(&str)) -> Result<Self> {
        let root = tree.cache().join("root");
        let lists = [PACKAGES, DNSMASQ, TC, STRACE];
        let names: Vec<_> = lists.into_iter().flat_map(str::split_whitespace).collect();
        let wanted = format!("{KERNEL}\n{}\n", names.join("\n"));
        cache::up_to_date(&tree.cache().join("root.packages"), &wanted, || {
            Self::unpack(tree, &root, names, say)
        })?;
        Ok(Self { root })
    }

    fn unpack(tree: &Tree, root: &Path, names: Vec<&str>, say: &dyn Fn(&str)) -> Result<()> {
        let debs = tree.cache().join("debs");
        cache::empty_folder(root)?;
        cache::empty_folder(&debs)?;
        say("downloading dom0's packages from Debian (about 120 MB)");
        with_update(tree, say, || {
            let kernel = depends(KERNEL)?;
            let mut names = names.clone();
            names.extend(kernel.first().map(|name| &**name));
            download(&debs, &names).context("cannot download dom0's packages")
        })?;
        say("unpacking dom0's packages");
        for deb in fs::read_dir(&debs)? {
            process::output(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(root))?;
        }
        Ok(fs::remove_dir_all(&debs)?)
    }

    /// The path of a packaged file on the host.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The file in `folder` whose name has this start and this end.
    pub fn find(&self, folder: &str, start: &str, end: &str) -> Result<PathBuf> {
        let folder = self.path(folder);
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(start) && name.ends_with(end) {
                return Ok(entry.path());
            }
        }
        bail!("the packages hold no {start}*{end} in {}", folder.display())
    }

    /// The shared libraries that `program` needs: their names, and their paths on the host. The
    /// packages take precedence over the host.
    pub fn libraries(&self, program: &Path) -> Result<Vec<(String, PathBuf)>> {
        let search = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .map(|folder| self.root.join(folder).display().to_string())
            .join(":");
        let output =
            process::output(Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", search))?;
        parse_ldd(&String::from_utf8_lossy(&output.stdout))
            .with_context(|| format!("libraries of {}", program.display()))
    }
}

/// Runs `attempt`. If it fails, updates apt's package list, which may be older than the servers'
/// packages, and runs it again.
pub fn with_update<T>(
    tree: &Tree,
    say: &dyn Fn(&str),
    attempt: impl Fn() -> Result<T>,
) -> Result<T> {
    attempt().or_else(|first| {
        say("the download failed; updating the list of packages and trying again");
        let updated = Command::new(tree.setup()).arg("update").stdin(Stdio::null()).status()?;
        if updated.success() { attempt() } else { Err(first) }
    })
}

/// The dependencies of a package.
pub fn depends(package: &str) -> Result<Vec<String>> {
    let depends = process::output(Command::new("apt-cache").args(["depends", package]))
        .with_context(|| {
            format!("no package {package}: is Debian's security repository enabled?")
        })?;
    let depends = String::from_utf8_lossy(&depends.stdout);
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(names.map(str::to_owned).collect())
}

/// Downloads packages into the folder `into`.
pub fn download(into: &Path, packages: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["download", "-q"]).args(packages).current_dir(into);
    process::output(&mut command).map(drop)
}

/// Reads `ldd`'s answer: lines such as `libc.so.6 => /lib/libc.so.6 (0x…)`, and the loader's bare
/// path.
fn parse_ldd(text: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut libraries = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let (name, path) = match line.split_once(" => ") {
            Some((name, rest)) => (name, rest),
            None if line.starts_with('/') => (line, line),
            None => continue,
        };
        if path == "not found" {
            bail!("{name} was not found");
        }
        let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
        let name = name.split(" (").next().unwrap_or(name);
        libraries.push((name.to_owned(), PathBuf::from(path)));
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_keeps_its_path_and_libraries_their_names() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2e)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2f)\n";
        let expected = [
            ("libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"),
            ("/lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
        ];
        let expected = expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(parse_ldd(text).unwrap(), expected);
    }

    #[test]
    fn a_missing_library_is_an_error_that_names_it() {
        let error = parse_ldd("\tlibyajl.so.2 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libyajl.so.2"));
    }
}
