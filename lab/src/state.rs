//! A machine's folder: who keeps it, and how to reach it.
//!
//! Keeper and QEMU hold a lock on a file in the folder for as long as they live. So a machine is up
//! exactly when the lock is held, however its keeper ended, and a process id that the system has
//! given away again cannot mislead anyone.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

const LOCK: &str = "lock";
const STATE: &str = "state.json";

/// What other processes need to know about a machine that is up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The process that keeps the machine: its end is the machine's end.
    pub keeper: u32,
    /// QEMU's process.
    pub qemu: u32,
    /// The loopback port of dom0's ssh server.
    pub ssh_port: u16,
}

/// The duty to keep the machine of a folder.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the folder, which it creates when needed. Fails when a machine is kept there.
    pub fn take(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        let mut file =
            File::options().create(true).truncate(false).write(true).open(folder.join(LOCK))?;
        let mut tries = 20;
        let outcome = loop {
            match file.try_lock() {
                // Someone may just be looking whether the lock is held, which takes a moment.
                Err(TryLockError::WouldBlock) if tries > 0 => tries -= 1,
                outcome => break outcome,
            }
            thread::sleep(Duration::from_millis(10));
        };
        match outcome {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "a lab is up already ({}); `lab down` ends it, --state FOLDER boots another",
                    folder.display()
                )
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let _ = fs::remove_file(folder.join(STATE));
        file.set_len(0)?;
        write!(file, "{}", std::process::id())?;
        Ok(Self { file })
    }

    /// The lock for a child to share: it is held until the last of the processes that have it ends.
    pub fn share(&self) -> Result<Stdio> {
        Ok(self.file.try_clone()?.into())
    }
}

/// The process that keeps the folder's machine, booted or booting; none when nobody does.
pub fn keeper(folder: &Path) -> Result<Option<u32>> {
    let file = match File::open(folder.join(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let text = fs::read_to_string(folder.join(LOCK))?;
            let keeper = text.parse().with_context(|| {
                format!("{} names no process; is a lab just starting?", folder.join(LOCK).display())
            })?;
            Ok(Some(keeper))
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

impl State {
    /// Tells other processes that the machine is up.
    pub fn publish(&self, folder: &Path) -> Result<()> {
        let new = folder.join("state.json.new");
        fs::write(&new, serde_json::to_string_pretty(self)?)?;
        fs::rename(new, folder.join(STATE))?;
        Ok(())
    }

    /// Reads what the keeper of the folder's machine published.
    pub fn read(folder: &Path) -> Result<Self> {
        if keeper(folder)?.is_none() {
            bail!("no lab is up ({}); `lab up` boots one", folder.display());
        }
        let text = fs::read_to_string(folder.join(STATE)).with_context(|| {
            format!("the lab is still booting ({}); try again soon", folder.display())
        })?;
        Ok(serde_json::from_str(&text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_kept_exactly_as_long_as_its_lock() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(keeper(folder.path()).unwrap(), None);
        let lock = Lock::take(folder.path()).unwrap();
        assert_eq!(keeper(folder.path()).unwrap(), Some(std::process::id()));
        let error = Lock::take(folder.path()).unwrap_err();
        assert!(error.to_string().contains("up already"), "{error}");
        drop(lock);
        assert_eq!(keeper(folder.path()).unwrap(), None);
    }

    #[test]
    fn what_a_dead_keeper_published_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).unwrap();
        let state = State { keeper: 1, qemu: 2, ssh_port: 3 };
        state.publish(folder.path()).unwrap();
        assert_eq!(State::read(folder.path()).unwrap().ssh_port, 3);
        drop(lock);
        let error = State::read(folder.path()).unwrap_err();
        assert!(error.to_string().contains("no lab is up"), "{error}");
    }
}
