//! The ends of a connection: guests that run `kernel/examples/idc.rs`, and processes of dom0 that
//! run `linux/examples/idc.rs`.

use crate::fixture::{Fixture, program, wait_until};
use crate::images::image;
use crate::service::PATIENCE;
use anyhow::{Context, Result, bail};
use lab::{Dom0, Domain};
use std::sync::atomic::{AtomicU32, Ordering};

/// A guest with these words. It has sockets in dom0 only if it listens.
pub fn guest(fixture: &Fixture, words: &str) -> Result<Domain> {
    // With less memory, Xen 4.17 does not restore a guest.
    guest_with(fixture, words, 48)
}

/// A guest with this much memory, in MiB.
pub fn guest_with(fixture: &Fixture, words: &str, memory: u32) -> Result<Domain> {
    let sockets = if words.contains("listen=") { "[\"backend=0\"]" } else { "[]" };
    // By default, Xen has too little memory for a guest's page tables to migrate it while it maps
    // another one's pages.
    let settings = format!("memory = {memory}\nshadow_memory = 8\npvcalls = {sockets}\n");
    Domain::create(fixture.lab()?, "idc", &(image(fixture, "idc", words)? + &settings))
}

/// Waits until a client in a guest has been busy in so many connections.
pub fn is_busy(client: &Domain, connections: usize) -> Result<()> {
    has_said(client, "is busy", connections)
}

/// Waits until so many connections of a client in a guest are over.
pub fn is_over(client: &Domain, connections: usize) -> Result<()> {
    has_said(client, "is over", connections)
}

fn has_said(client: &Domain, text: &str, times: usize) -> Result<()> {
    let says = || Ok(lines(&client.console()?, text).len() >= times);
    wait_until(&format!("the client says {text:?}"), PATIENCE, says)
        .with_context(|| client.console().unwrap_or_default())
}

/// The lines of a guest's console, or of a process's log, that contain a text.
pub fn lines<'l>(log: &'l str, text: &str) -> Vec<&'l str> {
    log.lines().filter(|line| line.contains(text)).collect()
}

/// A guest's number.
pub fn id(guest: &Domain) -> Result<u32> {
    guest.id()?.with_context(|| format!("{} has ended", guest.name()))
}

/// A process of dom0, which is killed on drop.
pub struct Process {
    dom0: Dom0,
    id: String,
    log: String,
}

impl Process {
    /// A process with these words.
    pub fn start(fixture: &Fixture, words: &str) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        const PROGRAM: &str = "/root/idc-process";
        let dom0: &Dom0 = fixture.lab()?;
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        fixture.copy(&program("idc")?, PROGRAM)?;
        let log = format!("/var/log/xen/idc-process-{number}.log");
        let id = dom0.run(&format!("{PROGRAM} {words} >{log} 2>&1 </dev/null & echo $!"))?;
        Ok(Process { dom0: dom0.clone(), id, log })
    }

    /// All that it has said.
    pub fn log(&self) -> Result<String> {
        self.dom0.run(&format!("cat {}", self.log))
    }

    /// Waits until it says `text`.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let says = || {
            // First, because its last words may come now.
            let runs = self.dom0.exec(&format!("kill -0 {}", self.id))?.status == 0;
            let log = self.log()?;
            match log.contains(text) {
                false if !runs => bail!("the process ended without saying {text:?}:\n{log}"),
                says => Ok(says),
            }
        };
        wait_until(&format!("the process says {text:?}"), PATIENCE, says)
            .with_context(|| self.log().unwrap_or_default())
    }

    /// The KiB of its memory.
    pub fn memory(&self) -> Result<u64> {
        let line = self.dom0.run(&format!("grep VmRSS /proc/{}/status", self.id))?;
        let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok());
        kib.with_context(|| format!("{line:?} has no memory"))
    }

    /// Waits until it has mapped no page and bound no port.
    pub fn holds_nothing(&self) -> Result<()> {
        let holds_nothing = || {
            let log = self.log()?;
            let last = lines(&log, "in use: ").last().copied().unwrap_or_default();
            Ok(last.ends_with("mappings=0 ports=0"))
        };
        wait_until("the process holds nothing", PATIENCE, holds_nothing)
    }

    /// Kills it with a signal that it cannot catch.
    pub fn kill(self) {}
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.dom0.exec(&format!("kill -9 {}", self.id));
    }
}
