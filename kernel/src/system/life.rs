//! The life-cycle around the main function: start, requests of the toolstack, orderly end.

use super::{Inner, Main, System};
use crate::entropy;
use crate::executor::{self, Tasks};
use crate::machine::{self, Guest, Resumed};
use crate::memory::pages;
use crate::stages::{self, Stage};
use crate::{balloon, crash, logger};
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::Poll;
use embassy_time::{Duration, Timer, with_timeout};
use embedded_io_async::{Read, Write};
use futures_util::future::join_all;
use xen::Errno;
use xen::hypercall::{Operations, ShutdownReason};
use xen::lifecycle::{Request, Requests};
use xen::xenstore::{self, Driver};

/// The time limits of an orderly end: for data on its way, for the backend, and for the console's
/// reader.
const DRAIN: Duration = Duration::from_secs(10);
const CLOSE: Duration = Duration::from_secs(5);
const FLUSH: Duration = Duration::from_secs(5);

/// How long a suspension waits until no other domain's page is mapped.
const LEAVE: Duration = Duration::from_secs(5);

/// How long a suspension waits for xenstore's replies.
const QUIET: Duration = Duration::from_secs(5);

/// The node, in the domain's folder, through which dom0 changes the log level.
const LOG_LEVEL: &str = "control/log-level";

/// The delay before a failed request to xenstore is repeated.
const RETRY_DELAY: Duration = Duration::from_secs(5);

impl System {
    fn end(&self, reason: ShutdownReason) {
        if self.0.end.get().is_none() {
            self.0.end.set(Some(reason));
        }
    }

    async fn ended(&self) -> ShutdownReason {
        // Only tasks set it, and the executor polls this future after them.
        poll_fn(|_| self.0.end.get().map_or(Poll::Pending, Poll::Ready)).await
    }

    async fn watch_requests(self) {
        let supported = [Request::Poweroff, Request::Reboot, Request::Suspend];
        let next = async || {
            let mut requests = Requests::watch(&self.0.store, &supported).await?;
            loop {
                match requests.next().await? {
                    Request::Suspend => {
                        self.suspend().await;
                        requests.announce().await;
                    }
                    Request::Reboot => return Ok(ShutdownReason::Reboot),
                    Request::Poweroff => return Ok(ShutdownReason::Poweroff),
                }
            }
        };
        loop {
            match next().await {
                Ok(reason) => return self.end(reason),
                Err(Errno::ECONNRESET) => continue,
                Err(error) => log::warn!("cannot read the toolstack's requests: {error}; retrying"),
            }
            Timer::after(RETRY_DELAY).await;
        }
    }

    /// Suspends the domain, so that the toolstack can save it. In the restored domain,
    /// connections have ended, listeners listen again, and everything else continues.
    async fn suspend(&self) {
        let Inner { guest, store, .. } = &*self.0;
        log::info!("suspending");
        let devices = self.0.devices.borrow().clone();
        let leave = join_all(devices.iter().map(|device| device.suspend()));
        if with_timeout(LEAVE, leave).await.is_err() {
            log::warn!("some of other domains' pages are still mapped; they are lost");
        }
        if with_timeout(QUIET, store.quiesce()).await.is_err() {
            log::warn!("timed out waiting for xenstore; pending replies are lost");
        }
        if let Some(console) = &guest.console {
            // Output that is still queued is saved with the guest; what is in the ring would be
            // lost.
            let _ = with_timeout(FLUSH, console.flush()).await;
        }
        let result = guest.suspend();
        if result == Ok(Resumed::Restored) {
            // First, because the former driver must not read the new rings.
            let (reader, writer) = machine::xenstore(guest);
            self.0.background.spawn(run_store(store.reconnect(reader, writer)));
            entropy::restored();
            if let Some(seed) = self.0.seed.get() {
                seed(store).await;
            }
            for device in &devices {
                device.resume().await;
            }
        }
        store.release();
        join_all(devices.iter().map(|device| device.go_on())).await;
        match result {
            Ok(Resumed::Restored) => log::info!("restored"),
            Ok(Resumed::Unchanged) => log::info!("resumed: this domain continues"),
            Err(error) => log::error!("Xen does not suspend the domain: {error}"),
        }
    }

    /// Changes the log level when dom0 writes it to the node [`LOG_LEVEL`].
    async fn watch_log_level(self) {
        let store = &self.0.store;
        let mut changes = match store.watch(LOG_LEVEL).await {
            Ok(changes) => changes,
            Err(error) => return log::warn!("cannot watch {LOG_LEVEL}: {error}"),
        };
        stages::mark(Stage::Xenstore);
        loop {
            changes.next().await;
            match store.read(LOG_LEVEL).await {
                Ok(level) => logger::change(&level),
                Err(Errno::ENOENT | Errno::EACCES) => {}
                Err(error) => log::warn!("cannot read {LOG_LEVEL}: {error}"),
            }
        }
    }

    async fn follow_memory_target(self) {
        let trim = || self.0.devices.borrow().iter().for_each(|device| device.trim());
        balloon::follow_target(self.0.store.clone(), self.0.guest.xen, trim).await;
    }

    /// Waits until the data that the app wrote has left, and revokes all that other domains
    /// share.
    async fn close(&self) {
        for device in self.0.devices.take() {
            let drained = async {
                while !device.is_drained() {
                    Timer::after_millis(10).await;
                }
            };
            if with_timeout(DRAIN, drained).await.is_err() {
                log::warn!("some of the data written was not taken by the backend or a peer");
            }
            if with_timeout(CLOSE, device.shutdown()).await.is_err() {
                log::warn!("the backend does not release the device");
            }
        }
        if let Some(console) = &self.0.guest.console {
            let _ = with_timeout(FLUSH, console.flush()).await;
        }
    }
}

/// Transfers xenstore's messages until the domain is saved.
async fn run_store<R: Read, W: Write>(driver: Driver<R, W>) {
    match driver.run().await {
        // The domain was saved; the restored one has a new driver.
        Errno::ECONNRESET => {}
        error => log::error!("the connection to xenstore is broken: {error}"),
    }
}

/// Runs the image's main function, and ends the domain when it returns or the toolstack asks for
/// that.
pub(crate) fn run(guest: &'static Guest, command_line: &'static [u8], main: Main) -> ! {
    logger::configure(command_line);
    logger::flush_early(guest);
    log::debug!("build id {}", crash::build_id());
    let version = guest.xen.version().map_or((0, 0), |version| (version.major, version.minor));
    let pages = pages::figures().all;
    log::info!("xensock-kernel on Xen {}.{}, {} KiB free", version.0, version.1, pages * 4);
    log::debug!("memory, in pages: {:?}", balloon::found());
    log::debug!("command line: {}", command_line.escape_ascii());
    log::debug!("event channels: {} ABI", guest.events.abi());

    let (reader, writer) = machine::xenstore(guest);
    let (store, driver) = xenstore::connect(reader, writer);
    let (mut background, mut tasks) = (Tasks::default(), Tasks::default());
    let system = System(Rc::new(Inner {
        guest,
        store,
        command_line,
        tasks: tasks.spawner(),
        background: background.spawner(),
        devices: RefCell::default(),
        seed: Cell::new(None),
        end: Cell::new(None),
    }));
    if let Some(console) = &guest.console {
        background.spawner().spawn(async { match console.run().await {} });
    }
    background.spawner().spawn(run_store(driver));
    background.spawner().spawn(system.clone().watch_requests());
    background.spawner().spawn(system.clone().watch_log_level());
    background.spawner().spawn(system.clone().follow_memory_target());
    let running = system.clone();
    tasks.spawner().spawn(async move {
        main(running.clone()).await;
        running.end(ShutdownReason::Poweroff);
    });

    let reason = executor::run(&guest, &mut [&mut background, &mut tasks], system.ended());
    log::info!("shutting down: {reason:?}");
    drop(tasks);
    executor::run(&guest, &mut [&mut background], system.close());
    crash::shut_down(reason)
}
