//! The future that keeps an interface going.

use super::device::Device;
use alloc::rc::Rc;
use core::convert::Infallible;
use core::pin::pin;
use embassy_time::{Duration, Timer};
use futures_util::future::{Either, select};
use xen::frontend;
use xen::xenstore::Store;
use xen::{Errno, Machine};

/// How often the quarantine is looked through: first, and at the longest.
const RETRY: Duration = Duration::from_millis(10);
const RETRY_AT_MOST: Duration = Duration::from_secs(1);

/// The engine of a [`NetFront`](super::NetFront); see [`run`](Driver::run).
pub struct Driver<M: Machine + 'static> {
    device: Rc<Device<M>>,
    store: Store,
}

impl<M: Machine> Driver<M> {
    pub(super) fn new(device: Rc<Device<M>>, store: Store) -> Self {
        Driver { device, store }
    }

    /// Connects to the backend, and connects again when it comes back.
    ///
    /// Ends with [`Errno::ENODEV`] after [`Handle::shutdown`](super::Handle::shutdown), or with what xenstore
    /// failed with; all pages are back at the machine then.
    pub async fn run(self) -> Errno {
        let device = &*self.device;
        let sessions = async {
            let error = frontend::serve(device, &self.store, &device.path).await;
            device.end(error);
            error
        };
        let error = match select(pin!(sessions), pin!(quarantine(device))).await {
            Either::Left((error, _)) => error,
            Either::Right((never, _)) => match never {},
        };
        while !device.grants.retry_quarantine() {
            Timer::after(RETRY_AT_MOST).await;
        }
        error
    }
}

/// Gives pages back that a backend was slow to let go of.
async fn quarantine<M: Machine>(device: &Device<M>) -> Infallible {
    loop {
        let some = || (!device.grants.quarantine_is_empty()).then_some(());
        device.grants.quarantined.until(some).await;
        let mut pause = RETRY;
        while !device.grants.quarantine_is_empty() {
            Timer::after(pause).await;
            device.grants.retry_quarantine();
            pause = (pause * 2).min(RETRY_AT_MOST);
        }
    }
}

impl<M: Machine> Drop for Driver<M> {
    fn drop(&mut self) {
        if self.device.ended().is_none() {
            self.device.end(Errno::ENODEV);
        }
    }
}
