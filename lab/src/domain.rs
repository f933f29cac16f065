//! A guest of the lab: created from a configuration, destroyed on drop.

use crate::dom0::{Dom0, whole_lines};
use anyhow::{Result, bail};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(200);

static CREATED: AtomicU32 = AtomicU32::new(0);

/// A domain that is destroyed on drop. The log of its console stays in dom0.
#[derive(Debug)]
pub struct Domain {
    dom0: Dom0,
    name: String,
}

impl Domain {
    /// Creates a domain from the text of an xl configuration. Its name begins with `name` and is
    /// unique in this process, so its console has a log of its own.
    pub fn create(dom0: &Dom0, name: &str, config: &str) -> Result<Self> {
        Self::make(dom0, name, config, "")
    }

    /// Like [`create`](Domain::create), but the domain waits for [`unpause`](Domain::unpause).
    pub fn create_paused(dom0: &Dom0, name: &str, config: &str) -> Result<Self> {
        Self::make(dom0, name, config, "-p")
    }

    /// Starts a domain that was created paused.
    pub fn unpause(&self) -> Result<()> {
        self.dom0.run(&format!("xl unpause {}", self.name)).map(drop)
    }

    fn make(dom0: &Dom0, name: &str, config: &str, option: &str) -> Result<Self> {
        let name = format!("{name}-{}", CREATED.fetch_add(1, Ordering::Relaxed));
        let file = format!("/root/{name}.cfg");
        // Later settings replace earlier ones. A reboot or crash ends the domain, unless the
        // configuration has its own setting.
        let config = format!(
            "on_reboot = \"destroy\"\non_crash = \"destroy\"\n{config}\nname = \"{name}\"\n"
        );
        dom0.write(&file, &config)?;
        // Dropped if `xl create` fails: it may have left a domain.
        let domain = Self { dom0: dom0.clone(), name };
        dom0.run(&format!("xl create -q {option} {file}"))?;
        Ok(domain)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its domain id, or `None` after its end.
    pub fn id(&self) -> Result<Option<u32>> {
        let output = self.dom0.exec(&format!("xl domid {}", self.name))?;
        Ok(output.text().parse().ok())
    }

    /// All output to its console so far.
    pub fn console(&self) -> Result<String> {
        self.dom0.console(&self.name)
    }

    /// Waits until a complete line of its console contains `text`, and returns that line.
    pub fn wait_for(&self, text: &str, at_most: Duration) -> Result<String> {
        let deadline = Instant::now() + at_most;
        loop {
            let mut console = self.console().unwrap_or_default();
            let mut line = find(whole_lines(&console), text);
            let gone = line.is_none() && self.id()?.is_none();
            if gone {
                // It may have written the text before its end, perhaps without a newline.
                console = self.console().unwrap_or_default();
                line = find(&console, text);
            }
            if let Some(line) = line {
                return Ok(line);
            }
            if gone {
                let xen = self.dom0.run("xl dmesg | tail -n 4").unwrap_or_default();
                bail!(
                    "{} ended without printing {text:?}; its console:\n{console}\n\
                     Xen's last messages:\n{xen}",
                    self.name
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "{} did not print {text:?} in {at_most:?}; its console:\n{console}",
                    self.name
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until it ends by itself.
    pub fn wait_for_end(&self, at_most: Duration) -> Result<()> {
        let deadline = Instant::now() + at_most;
        while self.id()?.is_some() {
            if Instant::now() > deadline {
                bail!("{} still runs after {at_most:?}", self.name);
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Destroys the domain.
    pub fn destroy(self) {}
}

/// The first line that contains `text`.
fn find(console: &str, text: &str) -> Option<String> {
    console.lines().find(|line| line.contains(text)).map(str::to_owned)
}

impl Drop for Domain {
    fn drop(&mut self) {
        // Fails if the domain or the machine has ended already.
        let _ = self.dom0.exec(&format!("xl destroy {}", self.name));
    }
}
