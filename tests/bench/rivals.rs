//! The rivals: how the servers of each are started, measured and ended.

use crate::{Figures, wait_until};
use anyhow::{Context, Result, bail};
use lab::{Dom0, Domain, DriverDomain, INIT_RUNS, Interface, LinuxEnds, LinuxServer, Needs, Tree};
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tls::testing::{Authority, Key, VALID};

/// The time limit of the client, and of waiting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1200);
/// The time limit of what comes before and after a measurement.
pub(crate) const READY: Duration = Duration::from_secs(120);

/// The first port of servers in guests, and of those in dom0.
const PORT: u16 = 9001;
const LOOPBACK_PORT: u16 = 9101;
/// The first port of the first guest whose sockets are in dom0.
const DOM0_PORT: u16 = 10_001;

/// The client, in dom0 and in the driver domain.
const CLIENT: &str = "/root/client";
/// The certificate and key of the servers: beside a kernel, or in Linux's initramfs.
const IDENTITY: &str = "/root/bench.pem";
/// The root that the client trusts.
const ROOTS: &str = "/root/roots.pem";
/// What the servers' certificate is for, whatever their address is.
const NAME: &str = "server.example";
/// The rules of the driver domain.
const OPEN: &str = "[defaults]\nlisten = [\"1-65535\"]\nconnect = [\"any\"]\n";

/// The settings that the same guest has over each stack. The limits are for ten thousand
/// connections.
const GUEST: &str = "type = \"pvh\"\nmemory = 256\nvcpus = 1\ntsc_mode = \"native\"\n\
                     max_grant_frames = 128\nmax_event_channels = 30000\n";

/// A way to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// This project's guest over xensockd.
    XenSock,
    /// The same with xensockd and the client in a driver domain.
    DriverDomain,
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
    pub const ALL: [Rival; 6] = [
        Rival::XenSock,
        Rival::DriverDomain,
        Rival::Netfront,
        Rival::Linux,
        Rival::Loopback,
        Rival::PvcallsBack,
    ];

    /// Its name in the results.
    pub fn name(self) -> &'static str {
        match self {
            Rival::XenSock => "xensock",
            Rival::DriverDomain => "driver-domain",
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
            Rival::DriverDomain => "the same with xensockd and the client in a driver domain",
            Rival::Netfront => "the guest with its own stack over netfront",
            Rival::Linux => "a Linux guest over netfront, with the same apps",
            Rival::Loopback => "the same apps in dom0, over its loopback",
            Rival::PvcallsBack => "the guest over Linux's pvcalls-back",
        }
    }
}

/// What is measured of a rival, in a domain of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The sockets, with `app=bench`.
    Sockets,
    /// Handshakes and a transfer over TLS, with `app=http` in the image that has TLS.
    Tls,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 2] = [Part::Sockets, Part::Tls];

    /// What selects it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Sockets => "sockets",
            Part::Tls => "tls",
        }
    }

    /// The image of this project's guest.
    fn image(self) -> &'static str {
        match self {
            Part::Sockets => "xensock-kernel",
            Part::Tls => "xensock-kernel-tls",
        }
    }

    /// The client's phases, in this order: a guest is booted first, and what leaves most behind in
    /// its memory is last.
    fn phases(self) -> &'static [&'static str] {
        match self {
            Part::Sockets => &[
                "boot",
                "out",
                "in",
                "both",
                "round-trip",
                "datagrams",
                "requests",
                "requests-64",
                "connections",
                "idle",
            ],
            Part::Tls => &["tls-connections", "tls-out"],
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
    /// The client's program.
    client: PathBuf,
    /// The file of [`ROOTS`].
    roots: PathBuf,
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
        let folder = tree.target().join("bench");
        fs::create_dir_all(&folder)?;
        let (roots, identity) = (folder.join("roots.pem"), folder.join("identity.pem"));
        let authority = Authority::new("the benchmark's authority", Key::P256);
        fs::write(&roots, authority.root())?;
        let issued = authority.issue(&format!("DNS:{NAME}"), Key::P256, VALID);
        fs::write(&identity, issued.file())?;
        let files = [(&*identity, IDENTITY)];
        let linux = LinuxServer::build(&tree, Needs::Network, &program, &files, say)?;
        dom0.push(&identity, IDENTITY)?;
        dom0.push(&roots, ROOTS)?;
        dom0.push(&client, CLIENT)?;
        dom0.push(&program, "/root/linux")?;
        dom0.push(&linux.kernel, "/root/vmlinuz")?;
        dom0.push(&linux.initramfs, "/root/linux.cpio")?;
        Ok(Self { dom0, tree, client, roots, linux, in_dom0: Cell::new(0) })
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
                let with_tls = self.tree.target().join(Part::Tls.image());
                figures.insert("tls_image_kib".into(), size(&with_tls)?);
            }
            Rival::DriverDomain | Rival::Netfront | Rival::PvcallsBack => {
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

    /// Starts the servers of a rival, measures a part of what they do, and ends them.
    pub fn measure(&self, rival: Rival, part: Part, plan: Plan) -> Result<Turn> {
        let _over_linux = match rival {
            Rival::PvcallsBack => Some(OverLinux::load(self)?),
            _ => None,
        };
        let (mut phases, mut failures) = (part.phases().to_vec(), Vec::new());
        if rival == Rival::DriverDomain {
            // They need xl, or ten thousand connections in little memory.
            phases.retain(|phase| !["boot", "idle"].contains(phase));
        }
        if rival == Rival::PvcallsBack && part == Part::Sockets {
            phases.retain(|phase| !["datagrams", "idle"].contains(phase));
            failures.push("datagrams: that backend has none".to_owned());
            failures.push("idle: that backend leaks a workqueue per connection".to_owned());
        }
        let servers = self.start(rival, part, plan)?;
        if servers.domain.is_none() {
            phases.retain(|phase| *phase != "boot");
        }
        let words = match part {
            Part::Sockets => servers.client(plan),
            // The arithmetic is much slower than the sockets.
            Part::Tls => {
                let plan = Plan { mb: (plan.mb / 8).max(1), count: plan.count / 2, ..plan };
                format!("{} roots={ROOTS} name={NAME}", servers.client(plan))
            }
        };
        let phases = phases.join(" ");
        let line = format!("ulimit -n 200000; {words} {phases}");
        let output = match &servers.driver {
            Some(driver) => driver.run_within(&line, PATIENCE)?,
            None => self.dom0.run_within(&line, PATIENCE)?,
        };
        let mut turn = Turn { failures, ..Turn::default() };
        turn.read(&output)?;
        if let Some(domain) = &servers.domain
            && phases.contains("boot")
            && !turn.figures.contains_key("boot_ms")
        {
            let console = domain.console().unwrap_or_default();
            turn.failures.push(format!("boot; its console:\n{console}"));
        }
        Ok(turn)
    }

    /// Starts the servers of a rival. A guest that the client's first phase starts is paused.
    fn start(&self, rival: Rival, part: Part, plan: Plan) -> Result<Servers<'a>> {
        let dom0 = self.dom0;
        let app = match part {
            Part::Sockets => format!("bench mb={}", plan.mb),
            Part::Tls => "http tls=on".to_owned(),
        };
        let words = |port| format!("app={app} port={port} idle-timeout=0 max-connections=30000");
        let ours = |device: &str, words: &str| {
            let image = part.image();
            let mut config =
                format!("{GUEST}kernel = \"/root/{image}\"\n{device}\ncmdline = \"{words}\"\n");
            if part == Part::Tls {
                dom0.push(&self.tree.target().join(image), &format!("/root/{image}"))?;
                config += &format!("ramdisk = \"{IDENTITY}\"\n");
            }
            Domain::create_paused(dom0, rival.name(), &config)
        };
        let interface = Interface::FIRST;
        let guest = |domain, at: String| Servers { at, domain: Some(domain), ..Servers::default() };
        let (vif, own) = (format!("vif = [\"{}\"]", interface.vif()), interface.address());
        let here = "127.0.0.1".to_owned();
        let servers = match rival {
            Rival::XenSock | Rival::PvcallsBack => {
                let port = self.port_in_dom0();
                let domain = ours("pvcalls = [\"backend=0\"]", &words(port))?;
                guest(domain, format!("{here}:{port}"))
            }
            Rival::DriverDomain => {
                let files = [(&*self.client, CLIENT), (&*self.roots, ROOTS)];
                let tree = &self.tree;
                let driver = DriverDomain::start(dom0, tree, interface, "", &files, &|_| ())?;
                driver.serve(OPEN)?;
                let device = format!("pvcalls = [\"backend={}\"]", driver.domain().name());
                let domain = ours(&device, &words(PORT))?;
                Servers { driver: Some(driver), ..guest(domain, format!("{here}:{PORT}")) }
            }
            Rival::Netfront => {
                let words = format!("{} stack=netfront ip={own}/25", words(PORT));
                guest(ours(&vif, &words)?, format!("{own}:{PORT}"))
            }
            Rival::Linux => {
                let cmdline = self.linux.command_line(Some(&format!("{own}/25")), &words(PORT));
                // The program's environment has what Linux does not know.
                let config = format!(
                    "{GUEST}kernel = \"/root/vmlinuz\"\nramdisk = \"/root/linux.cpio\"\n{vif}\n\
                     cmdline = \"{cmdline} RAMDISK={IDENTITY}\"\n"
                );
                let domain = Domain::create_paused(dom0, rival.name(), &config)?;
                Servers { started: Some(INIT_RUNS), ..guest(domain, format!("{own}:{PORT}")) }
            }
            Rival::Loopback => Servers {
                at: format!("{here}:{LOOPBACK_PORT}"),
                program: Some(Program::start(dom0, &words(LOOPBACK_PORT))?),
                ..Servers::default()
            },
        };
        if let Some(domain) = &servers.domain
            && (part == Part::Tls || servers.driver.is_some())
        {
            domain.unpause()?;
            let serves = if rival == Rival::Linux { "listening" } else { "serving on port" };
            domain.wait_for(serves, PATIENCE)?;
        }
        Ok(servers)
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
        let at = format!("127.0.0.1:{port}");
        Ok(Servers { at, domain: Some(domain), ..Servers::default() })
    }
}

/// The servers of a rival. They end on drop.
#[derive(Default)]
pub(crate) struct Servers<'a> {
    /// The address of the first port.
    pub at: String,
    // Before its driver domain.
    domain: Option<Domain>,
    driver: Option<DriverDomain>,
    started: Option<&'static str>,
    #[expect(dead_code, reason = "it ends on drop")]
    program: Option<Program<'a>>,
}

impl Servers<'_> {
    /// The client's command line, without its phases.
    fn client(&self, plan: Plan) -> String {
        let Plan { mb, count, idle } = plan;
        let mut words = format!("{CLIENT} {} mb={mb} count={count} idle={idle}", self.at);
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
             RAMDISK={IDENTITY} /root/linux {words} >/tmp/linux.log 2>&1 & echo $!"
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
         while kill -0 $pid 2>/dev/null; do sleep 0.1; done; \
         grep -q '^pvcalls_back ' /proc/modules || insmod /root/pvcalls-back.ko",
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
