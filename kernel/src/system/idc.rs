//! Communication with the other domains of the host.

use super::{Device, System};
use crate::machine::Domain;
use crate::metrics::Snapshot;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::future::ready;
use futures_util::future::LocalBoxFuture;
use idc::xen::XenTransport;
use xen::xenbus::read_number;
use xen::{DomId, Errno};

struct Idc(XenTransport<Domain, Domain>);

impl System {
    /// The transport of IDC between the domains of this host. The rings of its links have 2 to the
    /// power of `order` pages.
    pub async fn idc(&self, order: u32) -> Result<XenTransport<Domain, Domain>, Errno> {
        let (store, domain) = (self.0.store.clone(), self.domain());
        let own = DomId(read_number(&store, "domid").await?);
        let (transport, run) = XenTransport::new(own, store, Some(domain), Some(domain), order);
        self.0.devices.borrow_mut().push(Rc::new(Idc(transport.clone())));
        self.0.background.spawn(async move { match run.await {} });
        Ok(transport)
    }
}

impl Device for Idc {
    fn count(&self, snapshot: &mut Snapshot) {
        snapshot.quarantined_pages += self.0.pages().quarantined_pages;
    }

    fn suspend(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.0.suspend())
    }

    fn resume(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(ready(()))
    }

    fn go_on(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.0.resume())
    }

    fn is_drained(&self) -> bool {
        true
    }

    fn shutdown(&self) -> LocalBoxFuture<'_, ()> {
        // The tasks have ended, and their links with them.
        Box::pin(ready(()))
    }
}
