//! A guest of the lab: created from a configuration, destroyed on drop.

use crate::dom0::{Dom0, Output, console_log};
use anyhow::{Result, bail};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Waits in dom0 for a line of a console, and prints it. A command line of its own for each look
/// would take more of dom0's processor time than what is waited for. Ends with [`GONE`] if the
/// domain ends before, and with [`LATE`] at the deadline.
///
/// At the end of the log, `read` fails with the start of a line that is not complete yet.
const WAIT_FOR_LINE: &str = r#"
now() { read -r now rest </proc/uptime; now=${now%.*}; }
look() {
	while IFS= read -r next <&3; do
		line=$part$next part=
		case $line in *"$text"*) printf '%s\n' "$line"; exit 0 ;; esac
	done
	part=$part$next
}
part=
now
deadline=$((now + seconds)) check=$((now + 2))
until [ -e "$log" ]; do
	now
	[ "$now" -lt "$deadline" ] || exit 4
	xl domid "$name" >/dev/null 2>&1 || exit 3
	sleep 0.1
done
exec 3<"$log"
while :; do
	look
	now
	[ "$now" -le "$deadline" ] || exit 4
	if [ "$now" -ge "$check" ]; then
		if ! xl domid "$name" >/dev/null 2>&1; then
			look
			case $part in *"$text"*) printf '%s\n' "$part"; exit 0 ;; esac
			exit 3
		fi
		now
		check=$((now + 2))
	fi
	sleep 0.1
done
"#;

/// Waits in dom0 for a domain's end. Ends with [`LATE`] at the deadline. Xen's watch fires when a
/// domain shuts down and when it is gone; it may do so between two commands here.
const WAIT_FOR_END: &str = r#"
now() { read -r now rest </proc/uptime; now=${now%.*}; }
now
deadline=$((now + seconds))
while xl domid "$name" >/dev/null 2>&1; do
	now
	[ "$now" -le "$deadline" ] || exit 4
	timeout 2 xenstore-watch -n 2 @releaseDomain >/dev/null 2>&1
done
exit 0
"#;

/// The exit status of a wait for a line if the domain has ended.
const GONE: i32 = 3;
/// The exit status of a wait at its deadline.
const LATE: i32 = 4;

static CREATED: AtomicU32 = AtomicU32::new(0);
/// The domains that have not been dropped.
static LIVE: AtomicU32 = AtomicU32::new(0);

/// A domain that is destroyed on drop. The log of its console stays in dom0.
#[derive(Debug)]
pub struct Domain {
    dom0: Dom0,
    name: String,
    /// It has ended by itself.
    has_ended: AtomicBool,
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
        // A domain stays on one processor (the reason is in `qemu.rs`): the first one on the one
        // beside dom0's, the second on dom0's, and so on.
        let processor = (LIVE.fetch_add(1, Ordering::Relaxed) + 1) % 2;
        // Later settings replace earlier ones. A reboot or crash ends the domain, unless the
        // configuration has its own setting.
        let config = format!(
            "cpus = \"{processor}\"\non_reboot = \"destroy\"\non_crash = \"destroy\"\n{config}\n\
             name = \"{name}\"\n"
        );
        // Dropped if `xl create` fails: it may have left a domain.
        let domain = Self { dom0: dom0.clone(), name, has_ended: AtomicBool::new(false) };
        dom0.write_and(&file, &config, &format!("xl create -q {option} {file}"))?;
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
        let log = console_log(&self.name)?;
        let variables = format!("log={log}; text={}", shlex::try_quote(text)?);
        let output = self.wait(&variables, at_most, WAIT_FOR_LINE)?;
        match output.status {
            0 => Ok(output.text()),
            GONE => {
                let console = self.console().unwrap_or_default();
                let xen = self.dom0.run("xl dmesg | tail -n 4").unwrap_or_default();
                bail!(
                    "{} ended without printing {text:?}; its console:\n{console}\n\
                     Xen's last messages:\n{xen}",
                    self.name
                )
            }
            LATE => {
                let console = self.console().unwrap_or_default();
                bail!(
                    "{} did not print {text:?} in {at_most:?}; its console:\n{console}",
                    self.name
                )
            }
            status => bail!("waiting for {text:?} in {log}: status {status}: {output:?}"),
        }
    }

    /// Waits until it ends by itself.
    pub fn wait_for_end(&self, at_most: Duration) -> Result<()> {
        match self.wait("", at_most, WAIT_FOR_END)?.status {
            0 => self.has_ended.store(true, Ordering::Relaxed),
            LATE => bail!("{} still runs after {at_most:?}", self.name),
            status => bail!("waiting for the end of {}: status {status}", self.name),
        }
        Ok(())
    }

    /// Runs one of the scripts above in dom0, with its variables.
    fn wait(&self, variables: &str, at_most: Duration, script: &str) -> Result<Output> {
        let (name, seconds) = (&self.name, at_most.as_secs());
        self.dom0.exec(&format!("name={name}; seconds={seconds}; {variables}\n{script}"))
    }

    /// Destroys the domain.
    pub fn destroy(self) {}
}

impl Drop for Domain {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
        if self.has_ended.load(Ordering::Relaxed) {
            return;
        }
        // Fails if the domain or the machine has ended already.
        let _ = self.dom0.exec(&format!("xl destroy {}", self.name));
    }
}
