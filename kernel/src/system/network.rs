//! A network interface with a TCP/IP stack in the guest.

use super::{Device, SOCKET_HEAP, System};
use crate::entropy;
use crate::machine::Domain;
use crate::memory::{heap_figures, pages};
use crate::metrics::Snapshot;
use crate::stages::{self, Stage};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use core::time::Duration;
use futures_util::future::LocalBoxFuture;
use netfront::Capture;
use netfront::stack::{self, Stack};
use netfront::vif::{self, NetFront};
use xen::clock::read_tsc;
use xen::{Errno, PAGE_SIZE};

struct Network {
    interface: vif::Handle<Domain>,
    stack: Stack,
    /// What one more connection takes for its buffers, in bytes.
    buffers: usize,
}

impl System {
    /// A TCP/IP stack over the domain's first network interface, for which this may be called
    /// once. Waits until the toolstack has given the domain an interface. The stack's seed is
    /// mixed with the time. `capture` gets a copy of all frames.
    pub async fn network(
        &self,
        interface: vif::Config,
        mut stack: stack::Config,
        capture: Option<Capture>,
    ) -> Result<Stack, Errno> {
        let hint = "no network interface, waiting for one: set vif=[\"\"] in the domain's \
                    configuration, or run xl network-attach in dom0";
        let path = self
            .wait_for(hint, async |store| {
                let path = Self::first_device(store, "vif").await?;
                Ok(match path {
                    Some(path) if store.read(&format!("{path}/mac")).await.is_ok() => Some(path),
                    _ => None,
                })
            })
            .await?;
        let machine = self.domain();
        let (device, driver) =
            NetFront::new(machine, self.0.store.clone(), &path, interface).await?;
        // No other boot of this domain has the same time and TSC, and no other domain the same
        // address.
        let time = self.wall_clock().unwrap_or_default().as_nanos() as u64;
        stack.seed ^= time ^ read_tsc().rotate_left(32);
        if self.random().await.is_ok() {
            stack.seed ^= entropy::number();
            stack.random = Some(entropy::number);
        }
        let buffers = stack.connection_memory();
        // Connections that wait to be accepted may take a quarter of the memory.
        let memory = heap_figures().total + pages::figures().free * PAGE_SIZE;
        stack.backlog = stack.backlog.min(memory / 4 / buffers).max(1);
        let interface = device.handle();
        // Without a capture, one that keeps nothing: a second type of device would double the code
        // of the stack.
        let capture = capture.unwrap_or_else(|| Capture::new(0, Duration::ZERO));
        let (stack, runner) = Stack::new(capture.wrap(device), interface.clone(), stack);
        let network = Network { interface, stack: stack.clone(), buffers };
        self.0.devices.borrow_mut().push(Rc::new(network));
        let configured = stack.clone();
        self.0.background.spawn(async move {
            configured.configured().await;
            stages::mark(Stage::Device);
        });
        self.0.background.spawn(async move { match runner.run().await {} });
        self.0.background.spawn(async move {
            let error = driver.run().await;
            log::debug!("{path}: the interface has ended: {error}");
        });
        Ok(stack)
    }
}

impl Device for Network {
    fn count(&self, snapshot: &mut Snapshot) {
        let (counted, frames) = (self.stack.statistics(), self.interface.statistics());
        snapshot.socket_bytes += SOCKET_HEAP + self.buffers as u64;
        snapshot.sockets_open += counted.streams_open + counted.datagram_sockets_open;
        snapshot.sockets_total += counted.streams_opened;
        snapshot.socket_received_bytes_total += counted.bytes_in;
        snapshot.socket_sent_bytes_total += counted.bytes_out;
        snapshot.quarantined_pages += frames.quarantined_pages;
        snapshot.frames_received_total += frames.received;
        snapshot.frames_sent_total += frames.transmitted;
        snapshot.frames_dropped_total += frames.receive_dropped + frames.transmit_dropped;
    }

    fn resume(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.interface.resume())
    }

    fn is_drained(&self) -> bool {
        self.stack.is_quiet()
    }

    fn shutdown(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.interface.shutdown())
    }
}
