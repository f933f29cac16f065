//! What the tests share: the machine, which is booted once, and helpers.

use anyhow::{Context, Result, anyhow};
use lab::{Lab, Options, Tree, dom0_port};
use std::net::{SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

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
}

impl Fixture {
    /// The shared machine; the first call boots it.
    pub fn lab(&self) -> Result<&Lab> {
        let lab = self.lab.get_or_init(|| boot().map_err(|error| format!("{error:#}")));
        lab.as_ref().map_err(|error| anyhow!("the lab did not boot: {error}"))
    }

    /// How many guests have ended in a triple fault, if Xen runs.
    ///
    /// This is a fault of QEMU 7.2's processor, about once in half an hour of guests that often
    /// wake from `hlt`: Xen's dump of the guest then has Xen's own code segment and instruction
    /// pointer, which no guest can have, or the instruction after `hlt`. A guest's own faults end
    /// in a report, those in its handlers too (`faults.rs`).
    pub fn triple_faults(&self) -> usize {
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

    /// Collects all logs in one folder after a failure.
    pub fn keep_logs(&self) {
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

/// Builds the images of kernel/examples, the backend that lies and the benchmark's programs: the
/// first call does, others wait. It takes the time that the tests in Xen leave.
pub fn build_examples() -> Result<()> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let build = || {
        let mut make = Command::new("nice");
        make.args(["-n", "5", "make", "-s", "examples", "liar", "programs"]);
        make.current_dir(Tree::here().root());
        let output = make.output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(())
    };
    BUILT.get_or_init(build).clone().map_err(|error| anyhow!("cannot build the examples: {error}"))
}

/// The path of an image of kernel/examples.
pub fn example(name: &str) -> Result<PathBuf> {
    build_examples()?;
    Ok(Tree::here().target().join("x86_64-xen-pvh/release/examples").join(name))
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
