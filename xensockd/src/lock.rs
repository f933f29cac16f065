//! Prevents a second daemon, which would serve the same devices.

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Exists if the kernel's own PV Calls backend is loaded.
const KERNEL_BACKEND: &str = "/sys/bus/xen-backend/drivers/pvcalls";

/// A lock that the kernel releases when the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: OwnedFd,
}

/// How long a daemon that stops may hold the lock.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

impl Lock {
    /// Takes the lock of a daemon that is about to end. An error is a line for the user.
    pub fn wait(path: &Path) -> Result<Lock, String> {
        let start = Instant::now();
        loop {
            match Lock::take(path) {
                Err(_) if start.elapsed() < STOP_PATIENCE => sleep(Duration::from_millis(20)),
                result => return result,
            }
        }
    }

    /// Takes the lock. An error is a line for the user.
    pub fn take(path: &Path) -> Result<Lock, String> {
        let name = path.display();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| {
            let user = crate::user::current();
            format!("cannot open {name}: {error}; xensockd runs as the user {user}")
        })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = [0; 16];
                let len = rustix::io::read(&file, &mut pid).unwrap_or(0);
                let pid = String::from_utf8_lossy(&pid[..len]);
                return Err(format!(
                    "already running as process {}, which holds {name}; stop it first, or \
                     start with --replace",
                    pid.trim()
                ));
            }
            Err(error) => return Err(format!("cannot lock {name}: {error}")),
        }
        let pid = format!("{}\n", std::process::id());
        rustix::fs::ftruncate(&file, 0)
            .and_then(|()| rustix::io::write(&file, pid.as_bytes()))
            .map_err(|error| format!("cannot write {name}: {error}"))?;
        Ok(Lock { _file: file })
    }
}

/// Fails if the kernel's own backend is loaded, which would serve the same devices.
pub fn check_kernel_backend() -> Result<(), String> {
    if !Path::new(KERNEL_BACKEND).exists() {
        return Ok(());
    }
    Err("the kernel's own backend is loaded and serves the same devices; unload it first: rmmod \
         pvcalls-back"
        .to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_with_the_process_of_the_first() {
        let path = std::env::temp_dir().join(format!("xensockd-lock-{}", std::process::id()));
        let first = Lock::take(&path).unwrap();
        let refusal = Lock::take(&path).unwrap_err();
        assert!(refusal.contains(&format!("process {},", std::process::id())), "{refusal}");
        let second = std::thread::spawn({
            let path = path.clone();
            move || Lock::wait(&path).unwrap()
        });
        drop(first);
        drop(second.join().unwrap());
        Lock::take(&path).unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
