//! Finds the guests' devices of one type, whose nodes the toolstack creates and removes in
//! xenstore.

use crate::device::{Backend, Device};
use crate::threads::Lease;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use xen::{DomId, Errno};
use xen_linux::runtime::{Spawner, Task};
use xensock::back::Host;
use xensock::wire::Dialect;

/// How long a device is closed after a panic.
const PANIC_BACKOFF: Duration = Duration::from_secs(1);

/// Runs a task for each device of a type. Dropping it stops them.
pub struct Finder<H> {
    backend: Rc<Backend<H>>,
    spawner: Spawner,
    dialect: Dialect,
    /// The folder of the devices, relative to this domain's home.
    root: String,
    /// By path.
    devices: HashMap<String, Running>,
}

/// The task of a device.
struct Running(Task);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<H: Host + 'static> Finder<H> {
    /// A finder for the devices of a dialect.
    pub fn new(backend: Rc<Backend<H>>, spawner: &Spawner, dialect: Dialect) -> Self {
        let root = format!("backend/{}", dialect.device());
        Finder { backend, spawner: spawner.clone(), dialect, root, devices: HashMap::new() }
    }

    /// Finds devices until the connection to xenstored fails, and returns that error.
    pub async fn run(&mut self) -> Errno {
        match self.find().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Waits until every device is closed, after [`Backend::stop`] became true.
    pub async fn stopped(&mut self) {
        for (_, device) in self.devices.drain() {
            device.0.finished().await;
        }
    }

    async fn find(&mut self) -> Result<std::convert::Infallible, Errno> {
        let backend = self.backend.clone();
        let mut nodes = backend.store.watch(&self.root).await?;
        let mut domains = backend.store.watch("@releaseDomain").await?;
        loop {
            let path = match select(pin!(nodes.next()), pin!(domains.next())).await {
                Either::Left((path, _)) => Some(path),
                Either::Right(_) => None,
            };
            // The task of a known device watches changes inside it.
            if path.is_none_or(|path| !self.is_inside_known(&path)) {
                self.scan().await?;
            }
        }
    }

    fn is_inside_known(&self, path: &str) -> bool {
        path.rsplit_once('/')
            .is_some_and(|(device, _)| self.devices.get(device).is_some_and(|d| !d.0.is_finished()))
    }

    /// Starts tasks for new devices, and stops those of removed ones.
    async fn scan(&mut self) -> Result<(), Errno> {
        let mut present = HashSet::new();
        for domain in self.directory(&self.root).await? {
            let Ok(guest) = domain.parse().map(DomId) else { continue };
            let folder = format!("{}/{domain}", self.root);
            if !self.exists(&format!("/local/domain/{guest}")).await? {
                self.backend.seat.forget(guest);
                // The toolstack removes only devices that it created itself.
                match self.backend.store.rm(&folder).await {
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(error) => {
                        log::warn!("cannot remove {folder} of a destroyed guest: {error}");
                    }
                }
                continue;
            }
            for device in self.directory(&folder).await? {
                let path = format!("{folder}/{device}");
                // The toolstack may still be creating its nodes.
                if self.exists(&format!("{path}/frontend")).await? {
                    if self.devices.get(&path).is_none_or(|device| device.0.is_finished())
                        && let Some(lease) = self.backend.seat.claim(guest)
                    {
                        self.start(guest, path.clone(), lease);
                    }
                    present.insert(path);
                }
            }
        }
        self.devices.retain(|path, _| {
            let stays = present.contains(path);
            if !stays {
                log::info!("{path}: the device was removed");
            }
            stays
        });
        Ok(())
    }

    fn start(&mut self, guest: DomId, path: String, lease: Lease) {
        let thread = self.backend.seat.thread();
        log::info!(
            DOMID = guest.0;
            "{path}: found a device of domain {guest}, which thread {thread} serves"
        );
        let (backend, dialect) = (self.backend.clone(), self.dialect);
        let device = Device { backend, dialect, guest, path: path.clone() };
        let turn = self.backend.guests.turn(guest);
        let task = self.spawner.spawn_for(turn, async move {
            let _lease = lease;
            // Whatever the panic interrupted belonged to the device, and was dropped.
            while AssertUnwindSafe(device.run()).catch_unwind().await.is_err() {
                let path = &device.path;
                log::error!("{path}: closed by a bug of the daemon, described above; reopening");
                device.backend.host.sleep(PANIC_BACKOFF).await;
            }
        });
        self.devices.insert(path, Running(task));
    }

    async fn directory(&self, path: &str) -> Result<Vec<String>, Errno> {
        match self.backend.store.directory(path).await {
            Err(Errno::ENOENT) => Ok(Vec::new()),
            result => result,
        }
    }

    async fn exists(&self, path: &str) -> Result<bool, Errno> {
        match self.backend.store.read(path).await {
            // Only the toolstack's domain may know whether another domain exists. The toolstack
            // tells the others by their devices' nodes.
            Ok(_) | Err(Errno::EACCES) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
