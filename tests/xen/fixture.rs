//! What the cases share: the machine, booted once, and the words to write them in.

use anyhow::{Result, anyhow};
use lab::{Lab, Options, Tree, dom0_port};
use std::net::{SocketAddrV4, TcpListener};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// One case: it fails by an error or by a panic.
pub type Case = fn(&Fixture) -> Result<()>;

/// Names each case by its module and its function, as Rust's own tests are.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        /// The cases of this file.
        pub const CASES: &[(&str, $crate::fixture::Case)] =
            &[$((concat!(module_path!(), "::", stringify!($case)), $case)),*];
    };
}
pub(crate) use cases;

/// The machine that the cases share.
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

    /// A port of dom0 that no other case uses, and the host's port that leads to it.
    pub fn port(&self) -> Result<Ports> {
        self.port_at(dom0_port)
    }

    /// A port that no other case uses, somewhere in dom0's network, and the host's port that leads
    /// there.
    pub fn port_at(&self, place: impl Fn(u16) -> SocketAddrV4) -> Result<Ports> {
        let mut next = self.next_port.lock().map_err(|_| anyhow!("another case panicked here"))?;
        *next += 1;
        let inner = FIRST_PORT + *next;
        let host = free_port()?;
        self.lab()?.forward(host, place(inner))?;
        Ok(Ports { host, inner })
    }

    /// After a failure: everything that may explain it, in one folder.
    pub fn keep_logs(&self) {
        let Some(Ok(lab)) = self.lab.get() else {
            println!("logs are in {}", folder().display());
            return;
        };
        if let Err(error) = lab.pull_logs() {
            println!("dom0's own logs could not be had: {error:#}");
        }
        println!("logs are in {}", lab.folder().display());
    }
}

/// A port in dom0's network, reachable from here.
pub struct Ports {
    /// On this machine's loopback.
    pub host: u16,
    /// The one that it leads to.
    pub inner: u16,
}

const FIRST_PORT: u16 = 20_000;

/// The machine's memory, in MiB, where this one has enough for a guest of 4 GiB.
const LARGE_MACHINE: u32 = 6144;

/// Whether there is memory for a guest of 4 GiB, and some to spare.
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

/// Where the machine's logs are.
pub fn folder() -> PathBuf {
    Tree::here().target().join("test-logs/lab")
}

/// A port of this machine that is free, and another one each time. It is none of those that the
/// system gives to whoever names none: the host's own tests run meanwhile, and open thousands of
/// those.
pub fn free_port() -> Result<u16> {
    // Below Linux's ephemeral ports (ip_local_port_range).
    static PORTS: Mutex<Range<u16>> = Mutex::new(21_000..32_768);
    let mut ports = PORTS.lock().map_err(|_| anyhow!("another case panicked here"))?;
    let free = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.ok_or_else(|| anyhow!("no port of this machine is free"))
}

/// Waits until something holds; `what` it is goes into the error.
pub fn wait_until(what: &str, at_most: Duration, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + at_most;
    while !holds()? {
        if Instant::now() > deadline {
            return Err(anyhow!("waited {at_most:?} in vain: {what}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
