//! This domain, as the engine wants to see it: grants, event channels and sockets of Linux.

use crate::counts::Counts;
use crate::evtchn::{self, EventChannels};
use crate::gntdev::{self, GntDev};
use crate::sockets::Sockets;
use std::sync::Arc;
use std::time::Duration;
use xen::Signal;
use xen::{DomId, Errno, GrantRef, Port};
use xensock::back::Host;

/// The domain in which the daemon runs.
pub struct Dom0 {
    grants: GntDev,
    events: EventChannels,
    sockets: Sockets,
}

impl Dom0 {
    /// Opens the device files, inside a tokio runtime. An error is a line for the user.
    pub fn open(counts: &Counts, sockets: Sockets) -> Result<Self, String> {
        let grants = GntDev::open(counts.mappings.clone())
            .map_err(|error| explain(gntdev::DEVICE, "xen-gntdev", &error))?;
        let events = EventChannels::open(counts.ports.clone())
            .map_err(|error| explain(evtchn::DEVICE, "xen-evtchn", &error))?;
        Ok(Dom0 { grants, events, sockets })
    }

    /// The event channels, whose [`run`](EventChannels::run) somebody must poll.
    pub fn events(&self) -> &EventChannels {
        &self.events
    }
}

/// Why a device file of Xen's cannot be opened, and what to do.
pub fn explain(path: &str, module: &str, error: &std::io::Error) -> String {
    let advice = match error.kind() {
        std::io::ErrorKind::PermissionDenied => "run xensockd as root".to_string(),
        std::io::ErrorKind::NotFound => {
            format!("run xensockd in a domain under Xen, and load the kernel module {module}")
        }
        _ => format!("is this a domain under Xen, and the kernel module {module} in order?"),
    };
    format!("cannot open {path}: {error}; {advice}")
}

impl Host for Dom0 {
    type Mapping = gntdev::Pages;
    type Channel = evtchn::Channel;
    type Network = Sockets;

    fn network(&self) -> &Sockets {
        &self.sockets
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn map(&self, guest: DomId, refs: &[GrantRef]) -> Result<gntdev::Pages, Errno> {
        self.grants.map(guest, refs)
    }

    fn bind_port(
        &self,
        guest: DomId,
        port: Port,
        signal: Arc<Signal>,
    ) -> Result<evtchn::Channel, Errno> {
        self.events.bind(guest, port, signal)
    }
}
