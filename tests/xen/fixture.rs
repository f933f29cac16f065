//! What the tests share: the machine, which is booted once, and helpers.

use anyhow::{Context, Result, anyhow};
use lab::{Lab, Options, Tree, dom0_port};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

pub use bench::wait_until;

/// A test, which fails by an error or by a panic.
pub type Case = fn(&Fixture) -> Result<()>;

/// Lists a file's tests, with their module and function as the name, like Rust's own tests.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        /// The tests of this file.
        pub const CASES: &[(&str, $crate::fixture::Case)] =
            &[$((concat!(module_path!(), "::", stringify!($case)), $case)),*];
    };
}
pub(crate) use cases;

/// The machine that the tests share.
#[derive(Default)]
pub struct Fixture {
    lab: OnceLock<Result<Lab, String>>,
    next_port: Mutex<u16>,
    /// The files that dom0 has.
    copied: Mutex<BTreeSet<String>>,
}

impl Fixture {
    /// The shared machine; the first call boots it.
    pub fn lab(&self) -> Result<&Lab> {
        let lab = self.lab.get_or_init(|| boot().map_err(|error| format!("{error:#}")));
        lab.as_ref().map_err(|error| anyhow!("the lab did not boot: {error}"))
    }

    /// Copies a file into dom0, unless an earlier test has.
    pub fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let mut copied = self.copied.lock().map_err(|_| anyhow!("another test panicked here"))?;
        if !copied.contains(to) {
            self.lab()?.push(from, to)?;
            copied.insert(to.to_owned());
        }
        Ok(())
    }

    /// The processor time that QEMU has used, or none while there is no machine.
    pub fn processor_time(&self) -> Duration {
        let ticks = || {
            let lab = self.lab.get()?.as_ref().ok()?;
            let id = lab::qemu_id(lab.folder()).ok()?;
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            // The program's name may contain spaces. utime and stime follow it (proc(5)).
            let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
            Some(fields.filter_map(|field| field.parse::<u64>().ok()).sum())
        };
        let per_second = rustix::param::clock_ticks_per_second();
        Duration::from_millis(ticks().unwrap_or(0) * 1000 / per_second)
    }

    /// How many guests have ended in a triple fault, if Xen runs.
    ///
    /// This is a fault of QEMU's processor, which was frequent before the lab kept dom0 on one
    /// processor: Xen's dump of the guest then has Xen's own code segment and instruction pointer,
    /// which no guest can have, or the instruction after `hlt`. A guest's own faults end in a
    /// report, those in its handlers too (`faults.rs`).
    fn triple_faults(&self) -> usize {
        let log = self.lab.get().and_then(|lab| lab.as_ref().ok()?.serial_log().ok());
        log.map_or(0, |log| log.matches("Triple fault").count())
    }

    /// A port of dom0 that no other test uses, and a port of the host that is forwarded to it.
    pub fn port(&self) -> Result<Ports> {
        self.port_at(dom0_port)
    }

    /// A port that no other test uses, at an address in dom0's network, and a port of the host that
    /// is forwarded to it.
    pub fn port_at(&self, place: impl Fn(u16) -> SocketAddrV4) -> Result<Ports> {
        let mut next = self.next_port.lock().map_err(|_| anyhow!("another test panicked here"))?;
        *next += 1;
        let inner = FIRST_PORT + *next;
        let host = free_port()?;
        self.lab()?.forward(host, place(inner))?;
        Ok(Ports { host, inner })
    }

    /// Fails if the machine did not boot or has died.
    fn check(&self) -> Result<()> {
        match self.lab.get() {
            None => Ok(()),
            Some(Ok(lab)) => lab.check(),
            Some(Err(error)) => Err(anyhow!("{error}")),
        }
    }

    /// Collects all logs in one folder after a failure.
    fn keep_logs(&self) {
        let Some(Ok(lab)) = self.lab.get() else {
            println!("logs are in {}", folder().display());
            return;
        };
        if let Err(error) = lab.pull_logs() {
            println!("cannot copy dom0's logs: {error:#}");
        }
        println!("logs are in {}", lab.folder().display());
    }
}

/// How often a machine that died is replaced.
const SPARE_MACHINES: usize = 3;

/// The machine that the tests share. A new one takes its place if Xen or dom0's kernel dies, so
/// that the tests that follow still tell something.
#[derive(Default)]
pub struct Machines {
    current: Mutex<Arc<Fixture>>,
    replaced: AtomicUsize,
}

impl Machines {
    /// The machine of the next test.
    pub fn current(&self) -> Arc<Fixture> {
        Arc::clone(&self.current.lock().expect("nobody panics with this lock"))
    }

    /// Runs a test. It runs once more if QEMU's processor meanwhile ended a guest
    /// ([`Fixture::triple_faults`]) or the whole machine: neither a guest nor a process of dom0 can
    /// do that to a processor that works. The log then says so.
    pub fn run(&self, case: Case) -> Result<()> {
        let fixture = self.current();
        let faults = fixture.triple_faults();
        let result = case(&fixture);
        let Err(error) = &result else { return Ok(()) };
        if let Err(death) = fixture.check()
            && self.replaced.load(Ordering::Relaxed) < SPARE_MACHINES
        {
            println!("runs again in a new machine: {error:#}\n{death:#}");
            self.replace(fixture)?;
            return case(&self.current());
        }
        if fixture.triple_faults() > faults {
            println!("runs again, as QEMU's processor has ended a guest: {error:#}");
            return case(&fixture);
        }
        result
    }

    /// Keeps the logs of a machine that died, and lets the next test boot a new one.
    fn replace(&self, dead: Arc<Fixture>) -> Result<()> {
        dead.keep_logs();
        *self.current.lock().expect("nobody panics with this lock") = Arc::default();
        // The last reference: this ends QEMU if it still runs.
        drop(dead);
        let number = self.replaced.fetch_add(1, Ordering::Relaxed) + 1;
        let kept = folder().with_file_name(format!("lab-that-died-{number}"));
        fs::rename(folder(), &kept).context("cannot keep the logs")?;
        println!("its logs are now in {}", kept.display());
        Ok(())
    }

    /// Collects the logs after a failure.
    pub fn keep_logs(&self) {
        self.current().keep_logs();
    }
}

/// A forwarded port.
pub struct Ports {
    /// The port on the host's loopback.
    pub host: u16,
    /// The port in dom0's network.
    pub inner: u16,
}

const FIRST_PORT: u16 = 20_000;

/// The machine's memory, in MiB, if the host has enough for a guest of 4 GiB.
const LARGE_MACHINE: u32 = 6144;

/// Whether the host has enough memory for a guest of 4 GiB.
pub fn has_memory_for_large_guests() -> bool {
    let free = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = free.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.is_some_and(|kib| kib >= 8 << 20)
}

fn boot() -> Result<Lab> {
    let tree = Tree::here();
    let mut options = Options::new(folder());
    if has_memory_for_large_guests() {
        options.memory = LARGE_MACHINE;
    }
    options.add_built(&tree)?;
    Lab::boot(&tree, &options, &|text| println!("lab: {text}"))
}

/// The goals of the Makefile that later tests need, in the order in which they do.
pub const GOALS: [&str; 4] = ["tls", EXAMPLES, "liar", "programs"];
const EXAMPLES: &str = "examples";

/// Builds a goal of the Makefile, once. It takes the time that the tests in Xen leave.
pub fn build(goal: &str) -> Result<()> {
    type Built = Arc<OnceLock<Result<(), String>>>;
    static BUILT: Mutex<BTreeMap<String, Built>> = Mutex::new(BTreeMap::new());
    let run = || {
        let mut make = Command::new("nice");
        make.args(["-n", "5", "make", "-s"]).args(goal.split(' '));
        make.current_dir(Tree::here().root());
        let output = make.output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(())
    };
    let mut built = BUILT.lock().map_err(|_| anyhow!("another test panicked here"))?;
    // All examples have each of them.
    let all = built.get(EXAMPLES).filter(|_| goal.starts_with(EXAMPLES)).cloned();
    let done = all.unwrap_or_else(|| built.entry(goal.to_owned()).or_default().clone());
    // Who wants another goal does not wait for this one.
    drop(built);
    done.get_or_init(run).clone().map_err(|error| anyhow!("cannot build {goal}: {error}"))
}

/// The path of an image of kernel/examples.
pub fn example(name: &str) -> Result<PathBuf> {
    build(&format!("{EXAMPLES} EXAMPLE={name}"))?;
    Ok(Tree::here().target().join("x86_64-xen-pvh/release/examples").join(name))
}

/// The path of a program of the benchmarks, or of a process that a test starts in dom0.
pub fn program(name: &str) -> Result<PathBuf> {
    build("programs")?;
    Ok(Tree::here().target().join("host/examples").join(name))
}

/// The folder of the machine's logs.
pub fn folder() -> PathBuf {
    Tree::here().target().join("test-logs/lab")
}

/// A free port of this machine, a different one each time. It is below Linux's ephemeral ports
/// (ip_local_port_range), because the host's tests, which run meanwhile, open thousands of those.
pub fn free_port() -> Result<u16> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Tests of other checkouts may also run, so each process starts at another port.
    let first = std::process::id().wrapping_mul(509);
    let port = |taken: u32| 21_000 + (first.wrapping_add(taken) % 11_000) as u16;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = (0..11_000).map(|_| port(TAKEN.fetch_add(1, Ordering::Relaxed)));
    ports.find(free).context("no port of this machine is free")
}
