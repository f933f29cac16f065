//! IDC beside what else carries bytes between two domains of a host.

use crate::rivals::{PATIENCE, READY};
use crate::{Figures, Plan};
use anyhow::{Context, Result, bail};
use lab::{Dom0, Domain, LinuxServer, Needs, Tree, build_xen_program};
use std::collections::BTreeMap;

/// The settings of the guests.
const GUEST: &str = "type = \"pvh\"\nmemory = 256\nvcpus = 1\ntsc_mode = \"native\"\n";

const PAGE: usize = 4096;

/// The addresses of the two ends over TCP, which both listen.
const TCP: [&str; 2] = ["127.0.0.1:9201", "127.0.0.1:9202"];

/// Two programs, of which one measures the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// A program in dom0 and a guest, over IDC's links.
    Dom0,
    /// Two guests, over IDC's links.
    Guests,
    /// A program in dom0 and a guest whose sockets are in dom0, over IDC's TCP.
    Tcp,
    /// A program in dom0 and one in a Linux guest, over libxenvchan.
    Vchan,
}

impl Pair {
    /// All of them.
    pub const ALL: [Pair; 4] = [Pair::Dom0, Pair::Guests, Pair::Tcp, Pair::Vchan];

    /// What it is.
    pub fn meaning(self) -> &'static str {
        match self {
            Pair::Dom0 => "IDC between dom0 and a guest",
            Pair::Guests => "IDC between two guests",
            Pair::Tcp => "IDC over TCP",
            Pair::Vchan => "libxenvchan between dom0 and a Linux guest",
        }
    }

    /// The names of its results: of IDC, and of the links alone.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Pair::Dom0 => ("idc", "ring"),
            Pair::Guests => ("idc-guests", "ring-guests"),
            Pair::Tcp => ("idc-tcp", "tcp"),
            Pair::Vchan => ("vchan", "vchan"),
        }
    }
}

/// The names of all results, in the table's order.
pub const COLUMNS: [&str; 7] =
    ["ring", "idc", "vchan", "ring-guests", "idc-guests", "tcp", "idc-tcp"];

/// dom0 with the programs of all ends.
pub struct Idc<'a> {
    dom0: &'a Dom0,
    linux: LinuxServer,
    order: u32,
}

impl<'a> Idc<'a> {
    /// Brings the programs into dom0. The rings have 2 to the power of `order` pages, half of them
    /// for each direction.
    pub fn prepare(dom0: &'a Dom0, order: u32, say: &dyn Fn(&str)) -> Result<Self> {
        let tree = Tree::here();
        let folder = tree.target().join("bench");
        std::fs::create_dir_all(&folder)?;
        let vchan = folder.join("vchan");
        build_xen_program(&tree, &tree.root().join("tests/bench/vchan.c"), &vchan, say)?;
        let linux = LinuxServer::build(&tree, Needs::Neighbours, &vchan, &[], say)?;
        dom0.push(&vchan, "/root/vchan")?;
        dom0.push(&linux.kernel, "/root/vmlinuz")?;
        dom0.push(&linux.initramfs, "/root/vchan.cpio")?;
        let guest = tree.target().join("x86_64-xen-pvh/release/examples/idc");
        dom0.push(&guest, "/root/idc-guest")?;
        dom0.push(&tree.target().join("host/examples/idc"), "/root/idc")?;
        Ok(Idc { dom0, linux, order })
    }

    /// Starts both ends of a pair, lets one measure the other, and ends them. Returns the figures
    /// by the names of the results.
    pub fn measure(&self, pair: Pair, plan: Plan) -> Result<BTreeMap<&'static str, Figures>> {
        let Plan { mb, count, .. } = plan;
        let measure = |place: &str| format!("measure={place}/bench mib={mb} count={count}");
        let client =
            |words: &str| self.run(&format!("CLOCK='/root/vchan time 0' /root/idc {words} 2>&1"));
        let output = match pair {
            Pair::Dom0 => {
                let (_server, id) = self.guest("", "bench=any/bench")?;
                figures(&client(&measure(&format!("xen:{id}")))?)
            }
            Pair::Tcp => {
                let [server, visitor] = TCP;
                let device = "pvcalls = [\"backend=0\"]";
                let words = format!("bench=any/bench listen={server}");
                let (_server, _) = self.guest(device, &words)?;
                let words = measure(&format!("tcp:{server}"));
                figures(&client(&format!("{words} listen={visitor}"))?)
            }
            Pair::Guests => {
                let (_server, id) = self.guest("", "bench=any/bench")?;
                let visitor = self.start("", &measure(&format!("xen:{id}")))?;
                visitor.wait_for_end(PATIENCE)?;
                figures(&visitor.console()?)
            }
            Pair::Vchan => {
                let cmdline =
                    self.linux.command_line(None, &format!("serve 0 {}", PAGE << (self.order - 1)));
                let config = format!(
                    "{GUEST}kernel = \"/root/vmlinuz\"\nramdisk = \"/root/vchan.cpio\"\n\
                     cmdline = \"{cmdline}\"\n"
                );
                let server = Domain::create(self.dom0, "vchan", &config)?;
                server.wait_for("vchan serves", READY)?;
                let id = server.id()?.context("the guest has ended")?;
                self.run(&format!("/root/vchan visit {id} {mb} {count}"))?
            }
        };
        let (idc, ring) = pair.names();
        let mut results: BTreeMap<_, Figures> = BTreeMap::new();
        for line in output.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let (column, name, value) = match words[..] {
                ["idc", name, value] | [name, value] => (idc, name, value),
                ["ring", name, value] => (ring, name, value),
                _ => bail!("the client prints {line:?}"),
            };
            let value = value.parse().with_context(|| line.to_owned())?;
            results.entry(column).or_default().insert(name.to_owned(), value);
        }
        Ok(results)
    }

    fn run(&self, client: &str) -> Result<String> {
        self.dom0.run_within(client, PATIENCE)
    }

    /// Starts a guest that serves, and returns its number.
    fn guest(&self, device: &str, words: &str) -> Result<(Domain, u32)> {
        let server = self.start(device, words)?;
        server.wait_for("serving", READY)?;
        let id = server.id()?.context("the guest has ended")?;
        Ok((server, id))
    }

    fn start(&self, device: &str, words: &str) -> Result<Domain> {
        let config = format!(
            "{GUEST}kernel = \"/root/idc-guest\"\n{device}\ncmdline = \"{words} order={}\"\n",
            self.order
        );
        Domain::create(self.dom0, "idc", &config)
    }
}

/// The figures in the log of an end.
fn figures(log: &str) -> String {
    let figures = log.lines().filter_map(|line| line.split_once("figure: "));
    figures.map(|(_, figure)| format!("{figure}\n")).collect()
}
