//! A machine that this process keeps: boots, watches and ends it.

use crate::cache;
use crate::dom0::{Dom0, check_port, whole_lines};
use crate::image::Base;
use crate::process::Kept;
use crate::qemu::{self, Options};
use crate::state::{self, Lock};
use crate::tree::Tree;
use crate::{qmp, ssh};
use anyhow::{Context, Result, anyhow, bail};
use std::fs::{self, File};
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// The time limit from power-on to a working `xl`; ten seconds are usual.
const BOOT_TIME: Duration = Duration::from_secs(300);
/// The time limit of ssh's first connection after that.
const CONNECT_TIME: Duration = Duration::from_secs(60);
/// The time limit for dom0's answer to a command that does nothing.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// The time limit for QEMU to open its control socket.
const QMP_TIME: Duration = Duration::from_secs(30);
/// The interval between two checks while waiting.
const POLL: Duration = Duration::from_millis(50);
/// The number of lines of the serial log that an error quotes.
const TAIL_LINES: usize = 30;

/// A machine that runs Xen. It ends when this value is dropped or the process ends, even by a
/// signal. Dereferences to its [`Dom0`].
#[derive(Debug)]
pub struct Lab {
    dom0: Dom0,
    // Dropped in this order.
    _master: Kept,
    qemu: Kept,
    _lock: Lock,
}

impl Deref for Lab {
    type Target = Dom0;

    fn deref(&self) -> &Dom0 {
        &self.dom0
    }
}

impl Lab {
    /// Boots a machine and waits until `xl` works in its dom0. Reports each step to `say`.
    pub fn boot(tree: &Tree, options: &Options, say: &dyn Fn(&str)) -> Result<Self> {
        Booting::start(tree, options, say)?.wait(say)
    }

    /// Whether the machine still runs.
    pub fn is_running(&self) -> bool {
        self.qemu.ended().is_none()
    }

    /// Fails if the machine has ended or if dom0 does not answer in a minute. The error quotes the
    /// end of Xen's console.
    pub fn check(&self) -> Result<()> {
        let answer = match self.qemu.ended() {
            Some(status) => Err(anyhow!("QEMU has ended ({status}): {}", qemu_log(self.folder()))),
            None => self.run_within("true", ANSWER_TIME).map(drop),
        };
        answer.map_err(|error| with_serial_tail(error, self))
    }
}

/// A machine that is booting.
#[derive(Debug)]
pub struct Booting {
    dom0: Dom0,
    qemu: Kept,
    lock: Lock,
    since: Instant,
}

impl Booting {
    /// Builds the images as needed and starts the machine.
    pub fn start(tree: &Tree, options: &Options, say: &dyn Fn(&str)) -> Result<Self> {
        for port in options.forwards.iter().map(|(host, _)| *host).chain(options.gdb) {
            check_port(port)?;
        }
        let lock = Lock::take(&options.folder)?;
        let folder = fs::canonicalize(&options.folder)?;
        let options = &Options { folder: folder.clone(), ..options.clone() };
        let mut command = qemu::command(options)?;
        let base = Base::get(tree, say)?;
        clear(&folder)?;
        symlink(base.xen(), folder.join("xen"))?;
        symlink(base.linux(), folder.join("vmlinuz"))?;
        base.write_initramfs(&folder.join("dom0.cpio"), options)?;

        say(&format!("in {}:", folder.display()));
        say(&qemu::printable(&command));
        let log = File::create(folder.join("qemu.log"))?;
        // QEMU does not read it. Its open file keeps the folder locked.
        command.stdin(lock.share()?).stdout(log.try_clone()?).stderr(log);
        // A Ctrl-C at the terminal must not reach QEMU: the owner decides when the machine ends.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let since = Instant::now();
        let qemu = Kept::spawn(command)?;
        ssh::configure(&folder, &base, find_ssh_port(&folder, &qemu)?)?;
        Ok(Self { dom0: Dom0::new(folder), qemu, lock, since })
    }

    /// QEMU's process.
    pub fn qemu_id(&self) -> u32 {
        self.qemu.id()
    }

    /// Waits until `xl` works.
    pub fn wait(self, say: &dyn Fn(&str)) -> Result<Lab> {
        let folder = self.dom0.folder();
        self.wait_for_init().map_err(|error| with_serial_tail(error, &self.dom0))?;
        let master = ssh::master(folder)?;
        let deadline = Instant::now() + CONNECT_TIME;
        while !ssh::is_open(folder) {
            if master.ended().is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(folder.join("ssh.log")).unwrap_or_default();
                let error = anyhow!("cannot connect to dom0: {}", log.trim());
                return Err(with_serial_tail(error, &self.dom0));
            }
            thread::sleep(POLL);
        }
        state::publish(folder, self.qemu.id())?;
        say(&format!("Xen is up after {:.1} s", self.since.elapsed().as_secs_f32()));
        Ok(Lab { dom0: self.dom0, _master: master, qemu: self.qemu, _lock: self.lock })
    }

    fn wait_for_init(&self) -> Result<()> {
        let deadline = self.since + BOOT_TIME;
        loop {
            // QEMU may not have created the log yet.
            if is_ready(&self.dom0.serial_log().unwrap_or_default())? {
                return Ok(());
            }
            if let Some(status) = self.qemu.ended() {
                bail!("QEMU ended while Xen booted ({status}): {}", qemu_log(self.dom0.folder()));
            }
            if Instant::now() > deadline {
                bail!("Xen did not boot in {} s", BOOT_TIME.as_secs());
            }
            thread::sleep(POLL);
        }
    }
}

/// Whether a serial log reports that dom0 is ready. Fails if it reports a failure.
fn is_ready(log: &str) -> Result<bool> {
    for line in whole_lines(log).lines() {
        match line.split_once("lab: ") {
            Some((_, text)) if text.starts_with("ready") => return Ok(true),
            Some((_, text)) if text.starts_with("failed: ") => bail!("dom0: {text}"),
            _ => {}
        }
        if line.contains("Kernel panic - not syncing") {
            bail!("dom0's kernel panicked");
        }
    }
    Ok(false)
}

/// Removes the files of an earlier machine from the folder, except the lock.
fn clear(folder: &Path) -> Result<()> {
    const OURS: &str = "\
        xen vmlinuz dom0.cpio serial.log qemu.log qmp.sock ssh.sock ssh.log ssh_config known_hosts";
    for name in OURS.split_whitespace() {
        cache::remove_if_present(&folder.join(name))?;
    }
    let logs = folder.join("dom0-logs");
    if logs.exists() {
        fs::remove_dir_all(logs)?;
    }
    Ok(())
}

/// Asks QEMU for the port that the system chose for ssh.
fn find_ssh_port(folder: &Path, qemu: &Kept) -> Result<u16> {
    let deadline = Instant::now() + QMP_TIME;
    loop {
        let error = match qmp::monitor(folder, "info usernet") {
            Ok(table) => {
                return parse_usernet(&table)
                    .with_context(|| format!("QEMU forwards no port to ssh: {table}"));
            }
            Err(error) => error,
        };
        if let Some(status) = qemu.ended() {
            bail!("QEMU did not start ({status}): {}", qemu_log(folder));
        }
        if Instant::now() > deadline {
            return Err(error);
        }
        thread::sleep(POLL);
    }
}

/// Finds the forward to port 22 in lines such as
/// `TCP[HOST_FORWARD]  13       127.0.0.1 38465       10.0.2.15    22     0     0`.
fn parse_usernet(table: &str) -> Option<u16> {
    table.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["TCP[HOST_FORWARD]", _, _, port, _, "22", ..] => port.parse().ok(),
            _ => None,
        }
    })
}

fn qemu_log(folder: &Path) -> String {
    let log = fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
    log.trim().to_owned()
}

fn with_serial_tail(error: anyhow::Error, dom0: &Dom0) -> anyhow::Error {
    let log = dom0.serial_log().unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    anyhow!(
        "{error:#}\nthe end of Xen's serial console:\n{tail}\nall logs are in {}",
        dom0.folder().display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_line_is_read_once_it_is_complete() {
        assert!(!is_ready("").unwrap());
        assert!(!is_ready("Linux version\r\nlab: ready").unwrap());
        assert!(is_ready("Linux version\r\nlab: ready\r\n").unwrap());
        assert!(!is_ready("lab: failed: load").unwrap());
        let error = is_ready("lab: failed: loading xenfs\r\n").unwrap_err();
        assert_eq!(error.to_string(), "dom0: failed: loading xenfs");
    }
}
