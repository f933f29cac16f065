//! The rings that the toolstack sets up: those of console and xenstore.

use crate::hypercall::Xen;
use crate::memory::pages::EventPages;
use crate::memory::paging;
use crate::memory::ram::{Kind, Region};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use xen::event::{EventChannels, Priority};
use xen::hypercall::Operations;
use xen::{Errno, Gfn, PAGE_SIZE, Port, Shared, Signal};

/// Notifies the backend of a ring.
pub type Notify = &'static (dyn Fn() + Send + Sync);

/// A ring's page and event channel, which parameters of the domain name (`HVM_PARAM_*`).
pub struct ToolstackRing {
    xen: Xen,
    /// The ring's page.
    pub page: Shared<'static>,
    gfn: Gfn,
    pfn_parameter: u32,
    port_parameter: u32,
    port: &'static AtomicU32,
    /// Notifies the ring's backend over the current event channel.
    pub notify: Notify,
    /// The signal of the ring's events.
    pub signal: Arc<Signal>,
}

impl ToolstackRing {
    /// Opens the ring that these two parameters name. [`Errno::ENODEV`] if the toolstack made
    /// none.
    pub fn open(
        xen: Xen,
        events: &EventChannels<Xen, EventPages>,
        pfn_parameter: u32,
        port_parameter: u32,
    ) -> Result<ToolstackRing, Errno> {
        let (gfn, port) = parameters(xen, pfn_parameter, port_parameter)?;
        let address = gfn.0.checked_mul(PAGE_SIZE as u64).ok_or(Errno::EINVAL)?;
        let page = Region::new(address, PAGE_SIZE as u64, Kind::Reserved);
        // SAFETY: the toolstack's special pages are not RAM in the memory map.
        unsafe { paging::map_special(page) };
        let start = core::ptr::with_exposed_provenance_mut(page.start as usize);
        // SAFETY: the page was mapped above, stays mapped, and no reference into it exists.
        let page = unsafe { Shared::new(start, PAGE_SIZE) };
        let signal = Arc::new(Signal::default());
        // There are two such rings, and both are used until the end.
        let port: &AtomicU32 = Box::leak(Box::new(AtomicU32::new(port.0)));
        let notify = Box::leak(Box::new(move || notify(xen, Port(port.load(Ordering::Relaxed)))));
        let ring =
            ToolstackRing { xen, page, gfn, pfn_parameter, port_parameter, port, notify, signal };
        ring.listen(events)?;
        Ok(ring)
    }

    /// Continues in a restored domain, where the toolstack has made another event channel.
    pub fn resume(&self, events: &EventChannels<Xen, EventPages>) -> Result<(), Errno> {
        let (gfn, port) = parameters(self.xen, self.pfn_parameter, self.port_parameter)?;
        if gfn != self.gfn {
            log::error!("a ring of the toolstack has moved to page {:#x}", gfn.0);
            return Err(Errno::EINVAL);
        }
        self.port.store(port.0, Ordering::Relaxed);
        self.listen(events)
    }

    fn listen(&self, events: &EventChannels<Xen, EventPages>) -> Result<(), Errno> {
        let port = Port(self.port.load(Ordering::Relaxed));
        events.register(port, self.signal.clone())?;
        events.set_priority(port, Priority::HIGH)
    }
}

fn parameters(xen: Xen, pfn: u32, port: u32) -> Result<(Gfn, Port), Errno> {
    let (pfn, port) = (xen.hvm_param(pfn)?, xen.hvm_param(port)?);
    let port = u32::try_from(port).map_err(|_| Errno::EINVAL)?;
    if pfn == 0 || port == 0 { Err(Errno::ENODEV) } else { Ok((Gfn(pfn), Port(port))) }
}

static NOTIFICATIONS: AtomicU64 = AtomicU64::new(0);

/// The number of notifications sent.
pub fn notifications_sent() -> u64 {
    NOTIFICATIONS.load(Ordering::Relaxed)
}

/// Sends an event, and counts it.
pub fn notify(xen: Xen, port: Port) {
    NOTIFICATIONS.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = xen.send(port) {
        log::debug!("cannot notify port {}: {error}", port.0);
    }
}
