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
/// Clients and servers of other projects for tests, and the libraries that dom0 does not have for
/// others: those of chrony, of avahi, of dig and nc, and of iperf3.
const PEERS: &str = "\
    chrony libbsd0 libedit2 libffi8 libgnutls30 libmd0 libp11-kit0 libseccomp2 libtasn1-6 \
    avahi-daemon avahi-utils libavahi-client3 libavahi-common3 libavahi-core7 libdaemon0 \
    libexpat1 libgdbm6 dbus-daemon libapparmor1 libaudit1 libcap-ng0 libpcre2-8-0 libselinux1 \
    bind9-dnsutils bind9-libs libcom-err2 libfstrm0 libgssapi-krb5-2 libicu72 libjemalloc2 \
    libjson-c5 libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 liblmdb0 libmaxminddb0 \
    libnghttp2-14 libprotobuf-c1 libssl3 libstdc++6 libuv1 libxml2 netcat-openbsd \
    iperf3 libiperf0 libsctp1";

/// The package that depends on the current kernel of the series. Linux 6.12 rather than Debian 12's
/// own 6.1, because its backend drivers are a better reference.
const KERNEL: &str = "linux-image-6.12-amd64";

/// Discards the packages, so the next lab downloads them again.
pub fn forget(tree: &Tree) -> Result<()> {
    for key in ["root.packages", "peers.packages"] {
        cache::remove_if_present(&tree.cache().join(key))?;
    }
    // dom0's image is built from them.
    cache::remove_if_present(&tree.cache().join("base.key"))
}

/// The unpacked packages, as file trees. Programs are in the first one.
pub struct Packages {
    roots: Vec<PathBuf>,
}

impl Packages {
    /// Downloads and unpacks dom0's packages unless they are up to date.
    pub fn get(tree: &Tree, say: &dyn Fn(&str)) -> Result<Self> {
        let lists = [PACKAGES, DNSMASQ, TC, STRACE].join(" ");
        Self::unpacked(tree, "root", &lists, Some(KERNEL), "dom0's packages (about 120 MB)", say)
    }

    /// The same for the peers, which tests copy into dom0.
    pub fn peers(tree: &Tree, say: &dyn Fn(&str)) -> Result<Self> {
        let mut peers = Self::unpacked(tree, "peers", PEERS, None, "peers (19 MB)", say)?;
        peers.roots.extend(Self::get(tree, say)?.roots);
        Ok(peers)
    }

    /// The packages of a list, and the kernel that the package `kernel` depends on.
    fn unpacked(
        tree: &Tree,
        folder: &str,
        list: &str,
        kernel: Option<&str>,
        what: &str,
        say: &dyn Fn(&str),
    ) -> Result<Self> {
        let root = tree.cache().join(folder);
        let names: Vec<_> = list.split_whitespace().collect();
        let wanted: String = kernel.iter().chain(&names).map(|name| format!("{name}\n")).collect();
        let stamp = tree.cache().join(format!("{folder}.packages"));
        cache::up_to_date(&stamp, &wanted, || {
            say(&format!("downloading {what} from Debian"));
            Self::unpack(tree, &root, &names, kernel, say)
        })?;
        Ok(Self { roots: vec![root] })
    }

    fn unpack(
        tree: &Tree,
        root: &Path,
        names: &[&str],
        kernel: Option<&str>,
        say: &dyn Fn(&str),
    ) -> Result<()> {
        let debs = tree.cache().join("debs");
        cache::empty_folder(root)?;
        cache::empty_folder(&debs)?;
        with_update(tree, say, || {
            let kernel = kernel.map(depends).transpose()?.unwrap_or_default();
            let mut names = names.to_vec();
            names.extend(kernel.first().map(|name| &**name));
            download(&debs, &names).context("cannot download dom0's packages")
        })?;
        say("unpacking the packages");
        for deb in fs::read_dir(&debs)? {
            process::output(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(root))?;
        }
        Ok(fs::remove_dir_all(&debs)?)
    }

    /// The path of a packaged file on the host.
    pub fn path(&self, path: &str) -> PathBuf {
        self.roots[0].join(path.trim_start_matches('/'))
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
        let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let paths = self.roots.iter().flat_map(|root| folders.map(|folder| root.join(folder)));
        let search = paths.map(|path| path.display().to_string()).collect::<Vec<_>>().join(":");
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
