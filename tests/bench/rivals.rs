//! The rivals: how the servers of each are started, measured and ended.

use crate::{Figures, wait_until};
use anyhow::{Context, Result, bail};
use lab::{Dom0, Domain, INIT_RUNS, Interface, LinuxEnds, LinuxServer, Needs, Tree};
use std::cell::Cell;
use std::time::Duration;

/// The time limit of the client, and of waiting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1200);
/// The time limit of what comes before and after a measurement.
pub(crate) const READY: Duration = Duration::from_secs(120);

/// The first port of servers in guests, and of those in dom0.
const PORT: u16 = 9001;
const LOOPBACK_PORT: u16 = 9101;
/// The first port of the first guest whose sockets are in dom0.
const DOM0_PORT: u16 = 10_001;

/// The settings that the same guest has over each stack. The limits are for ten thousand
/// connections.
const GUEST: &str = "type = \"pvh\"\nmemory = 256\nvcpus = 1\ntsc_mode = \"native\"\n\
                     max_grant_frames = 128\nmax_event_channels = 30000\n";

/// A way to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// This project's guest over xensockd.
    XenSock,
    /// The same guest with its own stack over a network interface.
    Netfront,
    /// A Linux guest over a network interface.
    Linux,
    /// A Linux program in dom0.
    Loopback,
    /// This project's guest over Linux's own backend of PV Calls.
    PvcallsBack,
}

impl Rival {
    /// All of them, in the table's order. Linux's backend comes last, because a bug of it may crash
    /// dom0.
    pub const ALL: [Rival; 5] =
        [Rival::XenSock, Rival::Netfront, Rival::Linux, Rival::Loopback, Rival::PvcallsBack];

    /// Its name in the results.
    pub fn name(self) -> &'static str {
        match self {
            Rival::XenSock => "xensock",
            Rival::Netfront => "netfront",
            Rival::Linux => "linux",
            Rival::Loopback => "loopback",
            Rival::PvcallsBack => "pvcalls-back",
        }
    }

    /// What it is.
    pub fn meaning(self) -> &'static str {
        match self {
            Rival::XenSock => "the guest over xensockd",
            Rival::Netfront => "the guest with its own stack over netfront",
            Rival::Linux => "a Linux guest over netfront, with the same apps",
            Rival::Loopback => "the same apps in dom0, over its loopback",
            Rival::PvcallsBack => "the guest over Linux's pvcalls-back",
        }
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// MiB of a bulk transfer.
    pub mb: u32,
    /// Round trips, requests and connections.
    pub count: u32,
    /// Connections that stay open.
    pub idle: u32,
}

/// What one run of a rival gave.
#[derive(Debug, Default)]
pub struct Turn {
    /// The figures.
    pub figures: Figures,
    /// The missing ones, with their reasons.
    pub failures: Vec<String>,
}

impl Turn {
    /// Adds the lines that a client prints: figures, and failures.
    pub(crate) fn read(&mut self, output: &str) -> Result<()> {
        for line in output.lines() {
            match line.split_once(' ') {
                Some(("failed", reason)) => self.failures.push(reason.to_owned()),
                Some((name, value)) => {
                    let value = value.parse().with_context(|| line.to_owned())?;
                    self.figures.insert(name.to_owned(), value);
                }
                None => bail!("the client prints {line:?}"),
            }
        }
        Ok(())
    }
}

/// dom0 with all programs.
pub struct Bench<'a> {
    pub(crate) dom0: &'a Dom0,
    tree: Tree,
    linux: LinuxServer,
    /// The guests so far whose sockets are in dom0. Each has ports of its own: Linux's backend
    /// cannot bind a port on which connections have closed within the last minute.
    in_dom0: Cell<u16>,
}

impl<'a> Bench<'a> {
    /// Brings the programs into dom0.
    pub fn prepare(dom0: &'a Dom0, say: &dyn Fn(&str)) -> Result<Self> {
        let tree = Tree::here();
        let examples = tree.target().join("host/examples");
        let (client, program) = (examples.join("client"), examples.join("linux"));
        let linux = LinuxServer::build(&tree, Needs::Network, &program, say)?;
        dom0.push(&client, "/root/client")?;
        dom0.push(&program, "/root/linux")?;
        dom0.push(&linux.kernel, "/root/vmlinuz")?;
        dom0.push(&linux.initramfs, "/root/linux.cpio")?;
        Ok(Self { dom0, tree, linux, in_dom0: Cell::new(0) })
    }

    /// The first port of a guest whose sockets are in dom0.
    fn port_in_dom0(&self) -> u16 {
        let guests = self.in_dom0.replace(self.in_dom0.get() + 1);
        DOM0_PORT + 10 * guests
    }

    /// Prepares dom0 for ten thousand connections, and for short times.
    pub fn tune(&self) -> Result<()> {
        // dom0 repeats an ARP request each second. A guest that has just booted would be found up
        // to a second late.
        self.dom0.run("echo 20 >/proc/sys/net/ipv4/neigh/xenbr0/retrans_time_ms")?;
        self.start_xensockd()
    }

    fn start_xensockd(&self) -> Result<()> {
        self.dom0.run("ulimit -n 200000; start-xensockd").map(drop)
    }

    /// The bytes of a guest's files: the stripped images of this project, or Linux and its
    /// initramfs.
    pub fn sizes(&self, rival: Rival) -> Result<Figures> {
        let size = |path: &std::path::Path| -> Result<f64> {
            let metadata = path.metadata().with_context(|| path.display().to_string())?;
            Ok(metadata.len() as f64 / 1024.0)
        };
        let mut figures = Figures::new();
        match rival {
            Rival::XenSock => {
                figures.insert("image_kib".into(), size(&self.tree.kernel())?);
                figures.insert("hello_kib".into(), size(&self.tree.target().join("hello"))?);
            }
            Rival::Netfront | Rival::PvcallsBack => {
                figures.insert("image_kib".into(), size(&self.tree.kernel())?);
            }
            Rival::Linux => {
                let whole = size(&self.linux.kernel)? + size(&self.linux.initramfs)?;
                figures.insert("image_kib".into(), whole);
            }
            Rival::Loopback => {}
        }
        Ok(figures)
    }

    /// Starts the servers of a rival, measures them, and ends them.
    pub fn measure(&self, rival: Rival, plan: Plan) -> Result<Turn> {
        let _over_linux = match rival {
            Rival::PvcallsBack => Some(OverLinux::load(self)?),
            _ => None,
        };
        let (mut phases, mut failures) = (PHASES.to_vec(), Vec::new());
        if rival == Rival::PvcallsBack {
            phases.retain(|phase| *phase != "idle");
            failures.push("idle: that backend leaks a workqueue per connection".to_owned());
        }
        let servers = self.start(rival, plan)?;
        if servers.domain.is_none() {
            phases.retain(|phase| *phase != "boot");
        }
        let words = servers.client(plan);
        let phases = phases.join(" ");
        let output =
            self.dom0.run_within(&format!("ulimit -n 200000; {words} {phases}"), PATIENCE)?;
        let mut turn = Turn { failures, ..Turn::default() };
        turn.read(&output)?;
        if let Some(domain) = &servers.domain
            && !turn.figures.contains_key("boot_ms")
        {
            let console = domain.console().unwrap_or_default();
            turn.failures.push(format!("boot; its console:\n{console}"));
        }
        Ok(turn)
    }

    /// Starts the servers of a rival. A guest is paused: the client's first phase starts it.
    fn start(&self, rival: Rival, plan: Plan) -> Result<Servers<'a>> {
        let Plan { mb, .. } = plan;
        let words = format!("app=bench mb={mb} idle-timeout=0 max-connections=30000");
        let dom0 = self.dom0;
        let ours = |device: &str, words: &str| {
            let kernel = "kernel = \"/root/xensock-kernel\"";
            let config = format!("{GUEST}{kernel}\n{device}\ncmdline = \"{words}\"\n");
            Domain::create_paused(dom0, rival.name(), &config)
        };
        let interface = Interface::FIRST;
        let (vif, own) = (format!("vif = [\"{}\"]", interface.vif()), interface.address());
        let guest =
            |domain, at: String| Servers { at, domain: Some(domain), started: None, program: None };
        let here = "127.0.0.1".to_owned();
        Ok(match rival {
            Rival::XenSock | Rival::PvcallsBack => {
                let port = self.port_in_dom0();
                let words = format!("{words} port={port}");
                guest(ours("pvcalls = [\"backend=0\"]", &words)?, format!("{here}:{port}"))
            }
            Rival::Netfront => {
                let words = format!("{words} stack=netfront ip={own}/25");
                guest(ours(&vif, &words)?, format!("{own}:{PORT}"))
            }
            Rival::Linux => {
                let cmdline = self.linux.command_line(Some(&format!("{own}/25")), &words);
                let config = format!(
                    "{GUEST}kernel = \"/root/vmlinuz\"\nramdisk = \"/root/linux.cpio\"\n{vif}\n\
                     cmdline = \"{cmdline}\"\n"
                );
                let domain = Domain::create_paused(dom0, rival.name(), &config)?;
                Servers { started: Some(INIT_RUNS), ..guest(domain, format!("{own}:{PORT}")) }
            }
            Rival::Loopback => Servers {
                at: format!("{here}:{LOOPBACK_PORT}"),
                domain: None,
                started: None,
                program: Some(Program::start(dom0, &words)?),
            },
        })
    }

    /// Starts a guest over xensockd, with more words on its command line. Waits until it serves.
    pub(crate) fn xensock(&self, words: &str) -> Result<Servers<'a>> {
        let port = self.port_in_dom0();
        let words = format!("app=bench port={port} idle-timeout=0 max-connections=30000 {words}");
        let config = format!(
            "{GUEST}kernel = \"/root/xensock-kernel\"\npvcalls = [\"backend=0\"]\n\
             cmdline = \"{words}\"\n"
        );
        let domain = Domain::create(self.dom0, "xensock", &config)?;
        domain.wait_for("serving on ports", PATIENCE)?;
        Ok(Servers {
            at: format!("127.0.0.1:{port}"),
            domain: Some(domain),
            started: None,
            program: None,
        })
    }
}

/// The client's phases, in this order: a guest is booted first, and what leaves most behind in its
/// memory is last.
const PHASES: [&str; 9] =
    ["boot", "out", "in", "both", "round-trip", "requests", "requests-64", "connections", "idle"];

/// The servers of a rival. They end on drop.
pub(crate) struct Servers<'a> {
    /// The address of the first port.
    pub at: String,
    domain: Option<Domain>,
    started: Option<&'static str>,
    #[expect(dead_code, reason = "it ends on drop")]
    program: Option<Program<'a>>,
}

impl Servers<'_> {
    /// The client's command line, without its phases.
    fn client(&self, plan: Plan) -> String {
        let Plan { mb, count, idle } = plan;
        let mut words = format!("/root/client {} mb={mb} count={count} idle={idle}", self.at);
        if let Some(domain) = &self.domain {
            words += &format!(" domain={}", domain.name());
        }
        if let Some(started) = self.started {
            words += &format!(" started='{started}'");
        }
        words
    }
}

/// The servers as a program in dom0.
struct Program<'a> {
    dom0: &'a Dom0,
    id: String,
}

impl<'a> Program<'a> {
    fn start(dom0: &'a Dom0, words: &str) -> Result<Self> {
        let id = dom0.run(&format!(
            "ulimit -n 200000; rm -f /tmp/linux.log; \
             /root/linux {words} port={LOOPBACK_PORT} >/tmp/linux.log 2>&1 & echo $!"
        ))?;
        let program = Program { dom0, id };
        let ready = || Ok(dom0.exec("grep -q listening /tmp/linux.log")?.status == 0);
        wait_until("the program listens", READY, ready)?;
        Ok(program)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // The machine may have ended.
        let _ = self.dom0.exec(&format!("kill {}", self.id));
    }
}

/// Linux's backend in place of xensockd, which starts again on drop. Guests must end before.
struct OverLinux<'b, 'a>(&'b Bench<'a>);

impl<'b, 'a> OverLinux<'b, 'a> {
    fn load(bench: &'b Bench<'a>) -> Result<Self> {
        no_devices_are_left(bench.dom0)?;
        let over_linux = OverLinux(bench);
        load_linux_backend(bench.dom0, &bench.tree)?;
        Ok(over_linux)
    }
}

impl Drop for OverLinux<'_, '_> {
    fn drop(&mut self) {
        let unload = || -> Result<()> {
            no_devices_are_left(self.0.dom0)?;
            self.0.dom0.run("! grep -q pvcalls_back /proc/modules || rmmod pvcalls_back")?;
            self.0.start_xensockd()
        };
        if let Err(error) = unload() {
            println!("xensockd is not back: {error:#}");
        }
    }
}

/// Ends xensockd, and loads Linux's backend instead.
pub fn load_linux_backend(dom0: &Dom0, tree: &Tree) -> Result<()> {
    let ends = LinuxEnds::get(tree, &|text| println!("lab: {text}"))?;
    dom0.push(&ends.backend(), "/root/pvcalls-back.ko")?;
    dom0.run(
        "pid=$(cat /run/xensockd.pid); kill -TERM $pid; \
         while kill -0 $pid 2>/dev/null; do sleep 0.1; done; insmod /root/pvcalls-back.ko",
    )?;
    Ok(())
}

/// Waits until the guests' devices are gone.
fn no_devices_are_left(dom0: &Dom0) -> Result<()> {
    wait_until("the guests' devices are gone", READY, || {
        let list = dom0.exec("xenstore-list /local/domain/0/backend/pvcalls 2>/dev/null")?;
        Ok(list.text().is_empty())
    })
}
