//! The future that keeps a frontend going.

use super::device::Device;
use alloc::rc::Rc;
use alloc::string::String;
use core::convert::Infallible;
use core::pin::pin;
use embassy_time::{Duration, Timer};
use futures_util::future::{Either, join, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use xen::Errno;
use xen::Machine;
use xen::frontend;
use xen::xenstore::Store;

/// How often the quarantine is looked through: first, and at the longest.
const RETRY: Duration = Duration::from_millis(10);
const RETRY_AT_MOST: Duration = Duration::from_secs(1);

/// The engine of a [`Frontend`](super::Frontend); see [`run`](Driver::run).
///
/// What is dropped with an unfinished driver (jobs, and the rings that they hold) is lost to the
/// machine, though never shared with anybody else. Shut the frontend down first.
pub struct Driver<M: Machine + 'static> {
    device: Rc<Device<M>>,
    store: Store,
    path: String,
}

impl<M: Machine + 'static> Driver<M> {
    pub(super) fn new(device: Rc<Device<M>>, store: Store, path: String) -> Self {
        Driver { device, store, path }
    }

    /// Connects to the backend, serves the sockets, connects again when the backend comes back.
    ///
    /// Ends with [`Errno::ENODEV`] after [`Frontend::shutdown`](super::Frontend::shutdown) or when the
    /// toolstack removes the device, or with what xenstore failed with; all pages are back at the
    /// machine then.
    pub async fn run(self) -> Errno {
        let Driver { device, store, path } = &self;
        let sessions = async {
            let error = frontend::serve(&**device, store, path).await;
            device.go_down(error);
            error
        };
        let sockets = pin!(join(sessions, jobs(device)));
        let error = match select(sockets, pin!(quarantine(device))).await {
            Either::Left(((error, ()), _)) => error,
            Either::Right((never, _)) => match never {},
        };
        while !device.memory.quarantine_is_empty() {
            Timer::after(RETRY_AT_MOST).await;
            device.memory.retry_quarantine();
        }
        device.memory.drain_pool();
        error
    }
}

/// Carries out jobs, until the link is down and there is none left.
async fn jobs<M: Machine>(device: &Device<M>) {
    let mut running = FuturesUnordered::new();
    loop {
        for job in device.take_jobs() {
            running.push(job);
        }
        if running.is_empty() {
            if device.is_down() {
                return;
            }
            device.something_to_do(true).await;
        } else {
            select(pin!(device.something_to_do(false)), running.next()).await;
        }
    }
}

/// Gives pages back that a backend was slow to let go of.
async fn quarantine<M: Machine>(device: &Device<M>) -> Infallible {
    loop {
        let some = || (!device.memory.quarantine_is_empty()).then_some(());
        device.memory.quarantined.until(some).await;
        let mut pause = RETRY;
        while !device.memory.quarantine_is_empty() {
            Timer::after(pause).await;
            device.memory.retry_quarantine();
            pause = (pause * 2).min(RETRY_AT_MOST);
        }
    }
}

impl<M: Machine + 'static> Drop for Driver<M> {
    fn drop(&mut self) {
        if !self.device.is_down() {
            self.device.go_down(Errno::ENODEV);
        }
        // Their waiters learn that nobody will ever do the work.
        drop(self.device.take_jobs());
    }
}
