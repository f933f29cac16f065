//! A machine's folder: which process keeps the machine, and whether it is up.
//!
//! The keeper and QEMU hold a lock on a file in the folder for as long as they live. So a machine
//! is up exactly while the file is locked, no matter how its keeper ended, and a reused process id
//! cannot be mistaken for a keeper.

use anyhow::{Context, Result, bail};
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

const LOCK: &str = "lock";
/// Contains the id of QEMU's process while the machine is up.
const QEMU: &str = "qemu.pid";

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
        let _ = fs::remove_file(folder.join(QEMU));
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

/// Publishes that the machine is up, with the id of QEMU's process.
pub fn publish(folder: &Path, qemu: u32) -> Result<()> {
    let new = folder.join("qemu.pid.new");
    fs::write(&new, qemu.to_string())?;
    Ok(fs::rename(new, folder.join(QEMU))?)
}

/// The id of QEMU's process. Fails unless the machine is up.
pub fn qemu_id(folder: &Path) -> Result<u32> {
    if keeper(folder)?.is_none() {
        bail!("no lab is up ({}); `lab up` boots one", folder.display());
    }
    let id = fs::read_to_string(folder.join(QEMU)).with_context(|| {
        format!("the lab is still booting ({}); try again soon", folder.display())
    })?;
    Ok(id.parse()?)
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
        let error = qemu_id(folder.path()).unwrap_err();
        assert!(error.to_string().contains("still booting"), "{error}");
        publish(folder.path(), 2).unwrap();
        assert_eq!(qemu_id(folder.path()).unwrap(), 2);
        drop(lock);
        let error = qemu_id(folder.path()).unwrap_err();
        assert!(error.to_string().contains("no lab is up"), "{error}");
    }
}
