//! The frontend of a virtual network interface (`io/netif.h`).
//!
//! [`NetFront`] is the interface, for one stack: [`smoltcp`]'s `Device`; its [`Handle`] is the [`Nic`]. Its [`Driver`] finds
//! the backend, agrees with it on what both can do, and finds it again when it was away. In between, frames
//! are lost, as on any network.
//!
//! One pair of rings is used: a domain with one vCPU has no use for more. Frames of several parts, checksums
//! and TCP segmentation are left to the other end where it can do them.
//!
//! Multicast control (`request-multicast-control`) is not asked for: smoltcp does not tell a device which groups
//! are joined, and a backend that was asked withholds all others, neighbour discovery among them.
//!
//! The backend is not trusted: what it writes is read once, checked, and copied before anybody looks at
//! it; what is not allowed ends the session, with a message, and nothing else.

mod checksum;
mod counters;
mod device;
mod driver;
#[allow(unsafe_code, reason = "pages are given back to the machine here")]
mod pages;
mod queue;
mod ring;
mod session;

pub use counters::Statistics;
pub use driver::Driver;

use crate::{Link, Nic};
use alloc::rc::Rc;
use core::num::NonZeroUsize;
use core::task::Waker;
use device::{Device, LONGEST};
use embassy_time::Duration;
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;
use xen::xenstore::Store;
use xen::{Errno, Machine, Side};

/// How an interface behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Pages for frames that leave, from 17 on: the longest one takes 16.
    pub transmit_pages: usize,
    /// Pages for frames that come, from 18 on and up to 256.
    pub receive_pages: usize,
    /// Whether TCP segments may be cut by the backend, if it can.
    pub segmentation: bool,
    /// Whether checksums may be completed by the backend, if it can.
    pub checksums: bool,
    /// How long a backend that is to leave may take to let go of what it has mapped, before the interface goes
    /// on without it. What it keeps is kept out of use.
    pub linger: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            transmit_pages: 64,
            receive_pages: 64,
            segmentation: true,
            checksums: true,
            linger: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// The bytes that an interface takes while it is connected.
    pub fn memory(&self) -> usize {
        (2 + self.transmit_pages + self.receive_pages) * xen::PAGE_SIZE + 2 * LONGEST
    }

    fn clamped(self) -> Config {
        Config {
            transmit_pages: self.transmit_pages.clamp(17, 256),
            receive_pages: self.receive_pages.clamp(18, 256),
            ..self
        }
    }
}

/// A network interface.
pub struct NetFront<M: Machine + 'static>(Rc<Device<M>>);

/// A handle to an interface: the stack's [`Nic`], and the life cycle. Clones are handles to the same interface.
pub struct Handle<M: Machine + 'static>(Rc<Device<M>>);

impl<M: Machine> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Handle(self.0.clone())
    }
}

impl<M: Machine> NetFront<M> {
    /// The interface whose folder in xenstore is `path`, such as `device/vif/0`. Nothing happens until its
    /// driver runs. [`Errno::ENOENT`] when there is no such folder, [`Errno::EPROTO`] when it has no address.
    pub async fn new(
        machine: M,
        store: Store,
        path: &str,
        config: Config,
    ) -> Result<(Self, Driver<M>), Errno> {
        let address = session::read_address(&store, path).await?;
        let device = Rc::new(Device::new(machine, path, config.clamped(), address));
        Ok((NetFront(device.clone()), Driver::new(device, store)))
    }

    /// A handle to this interface.
    pub fn handle(&self) -> Handle<M> {
        Handle(self.0.clone())
    }
}

impl<M: Machine> Handle<M> {
    /// Closes the device in an orderly way. The driver's future ends then.
    pub async fn shutdown(&self) {
        self.0.shutdown().await;
    }

    /// To be called in a domain that was restored from a save, where all grants and event channels of
    /// before are lost: the driver connects to the domain's new backend. Xenstore must be
    /// [held](Store::hold) from before the save until this returns.
    pub async fn resume(&self) {
        self.0.resume().await;
    }

    /// What was counted.
    pub fn statistics(&self) -> Statistics {
        self.0.counters.read(self.0.grants.counts())
    }
}

impl<M: Machine + 'static> Nic for Handle<M> {
    fn hardware_address(&self) -> EthernetAddress {
        self.0.address.get()
    }

    fn link(&self) -> Link {
        self.0.link()
    }

    fn register(&self, waker: &Waker) {
        self.0.signal.register(Side::Rx, waker);
        // Whatever comes from here on wakes; what has come already is found now.
        let ready = self.0.with_queue(|state| {
            let Some(queue) = &mut state.queue else { return Ok(false) };
            let room = queue.tx.has_room(&self.0.counters)? || queue.tx.arm(&self.0.counters)?;
            let came = queue.rx.arm()? || state.waiting.is_some();
            // A frame is received together with room for a reply: without room, it has to wait for that.
            Ok(room && (came || core::mem::take(&mut state.starved)))
        });
        if ready == Some(true) {
            waker.wake_by_ref();
        }
    }

    fn flush(&self) {
        let due = self.0.with_queue(|state| {
            Ok(state.queue.as_mut().map(|queue| {
                let (tx, rx) = (queue.tx.push(), queue.rx.push());
                // One event will do where there is one channel.
                let same = queue.tx_port == queue.rx_port;
                let tx = (tx || (same && rx)).then_some(queue.tx_port);
                (tx, (rx && !same).then_some(queue.rx_port))
            }))
        });
        let (tx, rx) = due.flatten().unwrap_or((None, None));
        for port in [tx, rx].into_iter().flatten() {
            self.0.counters.notifications_sent.add(1);
            self.0.grants.machine().notify(port);
        }
    }
}

impl<M: Machine + 'static> phy::Device for NetFront<M> {
    type RxToken<'a> = RxToken<'a, M>;
    type TxToken<'a> = TxToken<'a, M>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_, M>, TxToken<'_, M>)> {
        let device = &*self.0;
        let received = device.with_queue(|state| {
            let Some(queue) = &mut state.queue else { return Ok(false) };
            if state.waiting.is_none() {
                state.waiting = queue.rx.next(&mut state.received, &device.counters)?;
                if let Some(len) = state.waiting {
                    device.counters.received.add(1);
                    device.counters.received_bytes.add(len);
                }
            }
            Ok(state.waiting.is_some() && state.find_room(&device.counters)?)
        });
        (received == Some(true)).then(|| (RxToken(device), TxToken::new(device)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_, M>> {
        let device = &*self.0;
        let room = device.with_queue(|state| state.find_room(&device.counters));
        (room == Some(true)).then(|| TxToken::new(device))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let terms = self.0.terms.get();
        let mut checksum = ChecksumCapabilities::default();
        // Whatever the backend does not do of these, the interface does.
        (checksum.tcp, checksum.udp) = (Checksum::None, Checksum::None);
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = terms.frame();
        capabilities.checksum = checksum;
        // Not over IPv6: smoltcp 0.14 makes such frames there as well, and then drops them as too long.
        capabilities.segmentation.tcpv4 = NonZeroUsize::new(LONGEST).filter(|_| terms.segments_v4);
        capabilities
    }
}

/// A frame that has come.
pub struct RxToken<'a, M: Machine>(&'a Device<M>);

impl<M: Machine> phy::RxToken for RxToken<'_, M> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        // The buffer is out of its place meanwhile: a reply is made while the frame is looked at.
        let (buffer, len) = self.0.with_state(|state| {
            (core::mem::take(&mut state.received), state.waiting.take().unwrap_or(0))
        });
        let result = f(&buffer[..len]);
        self.0.with_state(|state| state.received = buffer);
        result
    }
}

/// Room for a frame.
pub struct TxToken<'a, M: Machine> {
    device: &'a Device<M>,
    segment: Option<u16>,
}

impl<'a, M: Machine> TxToken<'a, M> {
    fn new(device: &'a Device<M>) -> Self {
        TxToken { device, segment: None }
    }
}

impl<M: Machine> phy::TxToken for TxToken<'_, M> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let TxToken { device, segment } = self;
        let mut buffer = device.with_state(|state| core::mem::take(&mut state.making));
        if buffer.len() < len {
            // No stack does that; it goes nowhere.
            buffer.resize(len, 0);
        }
        let frame = &mut buffer[..len];
        let result = f(frame);
        let carried = device.terms.get().carry(frame, segment);
        let sent = device.with_queue(|state| {
            let Some(queue) = state.queue.as_mut().filter(|_| carried) else { return Ok(false) };
            let room = queue.tx.has_room(&device.counters)?;
            if room {
                queue.tx.send(frame, segment);
            }
            Ok(room)
        });
        if sent == Some(true) {
            device.counters.transmitted.add(1);
            device.counters.transmitted_bytes.add(len);
        } else {
            device.counters.transmit_dropped.add(1);
        }
        device.with_state(|state| state.making = buffer);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(u16::from);
    }
}
