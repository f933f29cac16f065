//! Sockets in dom0: the frontends of XenSock and PV Calls.

use super::{Device, SOCKET_HEAP, System};
use crate::machine::Domain;
use crate::memory::pages;
use crate::metrics::Snapshot;
use crate::stages::{self, Stage};
use alloc::boxed::Box;
use alloc::rc::Rc;
use futures_util::future::{LocalBoxFuture, try_join_all};
use xen::{Errno, PAGE_SIZE};
use xensock::front::{Config, Frontend};
use xensock::wire::Dialect;

/// Rings that grow get this part of the free pages and of the grants: the rest is for new
/// connections and for the app.
const GROWTH: usize = 4;

struct Sockets(Frontend<Domain>);

impl System {
    /// The sockets in dom0: the frontend of the first device with a known protocol, which
    /// replaces the protocol in `config`. The memory that is free now replaces the budget of rings.
    /// Waits until the toolstack has given the domain such a device.
    pub async fn sockets(&self, config: Config) -> Result<Frontend<Domain>, Errno> {
        let hint = "no device for sockets, waiting for one: set pvcalls=[\"backend=0\"] in the \
                    domain's configuration, or run attach-sockets in dom0";
        let (dialect, path) = self
            .wait_for(hint, async |store| {
                let find = async |dialect: Dialect| {
                    let path = Self::first_device(store, dialect.device()).await?;
                    Ok(path.map(|path| (dialect, path)))
                };
                Ok(try_join_all(Dialect::ALL.map(find)).await?.into_iter().flatten().next())
            })
            .await?;
        let grants = self.0.guest.grants.usage().capacity as usize;
        let ring_budget = pages::figures().free.min(grants) / GROWTH;
        let config = Config { dialect, ring_budget, ..config };
        let machine = self.domain();
        let (frontend, driver) = Frontend::new(machine, self.0.store.clone(), &path, config);
        self.0.devices.borrow_mut().push(Rc::new(Sockets(frontend.clone())));
        let connecting = frontend.clone();
        self.0.background.spawn(async move {
            if connecting.connected().await.is_ok() {
                stages::mark(Stage::Device);
            }
        });
        self.0.background.spawn(async move {
            let error = driver.run().await;
            log::debug!("{path}: the frontend has ended: {error}");
        });
        Ok(frontend)
    }
}

impl Device for Sockets {
    fn count(&self, snapshot: &mut Snapshot) {
        let counted = self.0.statistics();
        snapshot.socket_bytes += SOCKET_HEAP + (self.0.ring_pages() * PAGE_SIZE) as u64;
        snapshot.sockets_open += counted.streams_open + counted.datagram_sockets_open;
        snapshot.sockets_total += counted.streams_opened;
        snapshot.socket_received_bytes_total += counted.bytes_in;
        snapshot.socket_sent_bytes_total += counted.bytes_out;
        snapshot.quarantined_pages += counted.quarantined_pages;
        snapshot.parked_rings += counted.parked_rings;
        snapshot.ring_pages += counted.ring_pages;
        snapshot.rings_resized_total += counted.rings_resized;
    }

    fn trim(&self) {
        self.0.trim();
    }

    fn resume(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.0.resume())
    }

    fn is_drained(&self) -> bool {
        let counted = self.0.statistics();
        counted.streams_open + counted.listeners_open + counted.datagram_sockets_open == 0
    }

    fn shutdown(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.0.shutdown())
    }
}
