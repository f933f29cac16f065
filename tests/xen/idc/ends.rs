//! The ends of a connection: guests that run `kernel/examples/idc.rs`, and processes of dom0 that
//! run `linux/examples/idc.rs`.

use crate::fixture::{Fixture, build_examples, wait_until};
use crate::images::image;
use crate::service::PATIENCE;
use anyhow::{Context, Result, bail};
use lab::{Dom0, Domain, Tree};
use std::sync::atomic::{AtomicU32, Ordering};

/// A guest with these words. It has sockets in dom0 only if it listens.
pub fn guest(fixture: &Fixture, words: &str) -> Result<Domain> {
    let sockets = if words.contains("listen=") { "[\"backend=0\"]" } else { "[]" };
    // With less memory, Xen 4.17 does not restore a guest.
    let config = image(fixture, "idc", words)? + &format!("memory = 48\npvcalls = {sockets}\n");
    Domain::create(fixture.lab()?, "idc", &config)
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
        build_examples()?;
        let dom0: &Dom0 = fixture.lab()?;
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            dom0.push(&Tree::here().target().join("host/examples/idc"), PROGRAM)?;
        }
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

    /// Kills it, as nothing else does.
    pub fn kill(self) {}
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.dom0.exec(&format!("kill -9 {}", self.id));
    }
}
