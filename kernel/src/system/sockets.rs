//! Sockets in dom0: the frontends of XenSock and PV Calls.

use super::{Device, SOCKET_HEAP, System};
use crate::machine::Domain;
use crate::metrics::Snapshot;
use crate::stages::{self, Stage};
use alloc::boxed::Box;
use alloc::rc::Rc;
use futures_util::future::LocalBoxFuture;
use xen::{Errno, PAGE_SIZE};
use xensock::front::{Config, Frontend};
use xensock::wire::Dialect;

struct Sockets {
    frontend: Frontend<Domain>,
    /// What one more connection takes for its ring, in bytes.
    ring: usize,
}

impl System {
    /// The sockets in dom0: the frontend of the first device with a known protocol, which
    /// replaces the protocol in `config`. Waits until the toolstack has given the domain such a
    /// device.
    pub async fn sockets(&self, config: Config) -> Result<Frontend<Domain>, Errno> {
        let hint = "no device for sockets, waiting for one: set pvcalls=[\"backend=0\"] in the \
                    domain's configuration, or run attach-sockets in dom0";
        let (dialect, path) = self
            .wait_for(hint, async |store| {
                for dialect in Dialect::ALL {
                    if let Some(path) = Self::first_device(store, dialect.device()).await? {
                        return Ok(Some((dialect, path)));
                    }
                }
                Ok(None)
            })
            .await?;
        let config = Config { dialect, ..config };
        let machine = Domain::new(self.0.guest);
        let (frontend, driver) = Frontend::new(machine, self.0.store.clone(), &path, config);
        let ring = config.ring_pages() * PAGE_SIZE;
        self.0.devices.borrow_mut().push(Rc::new(Sockets { frontend: frontend.clone(), ring }));
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
        let counted = self.frontend.statistics();
        snapshot.socket_bytes += SOCKET_HEAP + self.ring as u64;
        snapshot.sockets_open += counted.streams_open;
        snapshot.sockets_total += counted.streams_opened;
        snapshot.socket_received_bytes_total += counted.bytes_in;
        snapshot.socket_sent_bytes_total += counted.bytes_out;
        snapshot.quarantined_pages += counted.quarantined_pages;
        snapshot.parked_rings += counted.parked_rings;
    }

    fn trim(&self) {
        self.frontend.trim();
    }

    fn resume(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.frontend.resume())
    }

    fn is_drained(&self) -> bool {
        let counted = self.frontend.statistics();
        counted.streams_open + counted.listeners_open == 0
    }

    fn shutdown(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.frontend.shutdown())
    }
}
