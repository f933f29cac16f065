//! A machine's folder: which process keeps the machine, and how to reach it.
//!
//! The keeper and QEMU hold a lock on a file in the folder for as long as they live. So a machine
//! is up exactly while the file is locked, no matter how its keeper ended, and a reused process id
//! cannot be mistaken for a keeper.

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

/// How other processes reach a machine that is up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The process that keeps the machine; the machine ends with it.
    pub keeper: u32,
    /// QEMU's process.
    pub qemu: u32,
    /// The loopback port of dom0's ssh server.
    pub ssh_port: u16,
}

/// The lock on a machine's folder.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Locks the folder, which it creates if needed. Fails if a machine uses it.
    pub fn take(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        let mut file =
            File::options().create(true).truncate(false).write(true).open(folder.join(LOCK))?;
        let mut tries = 20;
        let outcome = loop {
            match file.try_lock() {
                // Another process may hold the lock for a moment, to test it.
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

    /// The lock for a child process: it is held until the last process that has it ends.
    pub fn share(&self) -> Result<Stdio> {
        Ok(self.file.try_clone()?.into())
    }
}

/// The process that keeps the folder's machine, which may still be booting.
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
                format!(
                    "{} contains no process id; is a lab just starting?",
                    folder.join(LOCK).display()
                )
            })?;
            Ok(Some(keeper))
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

impl State {
    /// Publishes that the machine is up.
    pub fn publish(&self, folder: &Path) -> Result<()> {
        let new = folder.join("state.json.new");
        fs::write(&new, serde_json::to_string_pretty(self)?)?;
        fs::rename(new, folder.join(STATE))?;
        Ok(())
    }

    /// Reads the state that the folder's keeper published.
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
    fn a_folder_has_a_keeper_exactly_while_it_is_locked() {
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
    fn the_state_of_a_dead_keeper_is_ignored() {
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
