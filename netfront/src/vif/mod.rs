//! The frontend of a virtual network interface (`io/netif.h`).
//!
//! [`NetFront`] is the interface, for one stack: smoltcp's `Device`. Its [`Handle`] is the stack's
//! [`Nic`]. Its [`Driver`] finds the backend, negotiates features with it, and finds it again when
//! it returns. Frames in between are lost, as on any network.
//!
//! One pair of rings is used: a domain with one vCPU needs no more. Frames of several parts,
//! checksums and TCP segmentation are left to the backend if it supports them.
//!
//! Multicast control (`request-multicast-control`) is not requested: smoltcp does not report the
//! joined groups to a device, and a backend with multicast control drops frames of all other
//! groups, including neighbour discovery.
//!
//! The backend is not trusted: what it writes is read once and checked, and frames are copied
//! before the stack reads them. A violation of the protocol ends the session with a message, and
//! has no other effect.

mod checksum;
mod config;
mod features;
mod interface;
mod queue;
mod session;

pub use config::{Config, Statistics};

use crate::{Link, Nic};
use alloc::rc::Rc;
use config::LONGEST;
use core::num::NonZeroUsize;
use core::task::Waker;
use interface::Interface;
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;
use xen::frontend;
use xen::xenstore::Store;
use xen::{Errno, Machine, Side};

/// A network interface: smoltcp's device.
///
/// # Example
/// ```
/// # use futures_executor::LocalPool;
/// # use futures_util::task::LocalSpawnExt;
/// use netfront::vif::{Config, NetFront};
/// use netfront::{Link, Nic};
/// use xen::testing::{FakeStore, World};
/// # use xen::{DomId, xenstore};
///
/// let (front, back) = ("/local/domain/7/device/vif/0", "/local/domain/0/backend/vif/7/0");
/// let (world, fake, mut pool) = (World::new(), FakeStore::new(), LocalPool::new());
/// # fake.add_domain(DomId(0));
/// # fake.add_domain(DomId(7));
/// # let (reader, writer) = fake.connect(DomId(7));
/// # let (store, driver) = xenstore::connect(reader, writer);
/// # pool.spawner().spawn_local(async move { drop(driver.run().await) }).unwrap();
/// fake.add_device((front, DomId(7)), (back, DomId(0)));
/// fake.write(&format!("{front}/mac"), "00:16:3e:00:00:07");
/// let machine = world.machine(DomId(7));
/// let made = pool.run_until(NetFront::new(machine, store, front, Config::default()));
/// let (interface, driver) = made?;
/// let handle = interface.handle();
/// assert_eq!(handle.hardware_address().to_string(), "00-16-3e-00-00-07");
/// assert_eq!(handle.link(), Link::Down, "no backend yet");
/// # pool.run_until(futures_util::future::join(driver.run(), handle.shutdown()));
/// # world.assert_clean();
/// # Ok::<(), xen::Errno>(())
/// ```
pub struct NetFront<M: Machine + 'static>(Rc<Interface<M>>);

/// A handle to an interface: the stack's [`Nic`], shutdown and resume. Clones are handles to the
/// same interface.
pub struct Handle<M: Machine + 'static>(Rc<Interface<M>>);

impl<M: Machine> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Handle(self.0.clone())
    }
}

impl<M: Machine> NetFront<M> {
    /// The interface whose folder in xenstore is `path`, such as `device/vif/0`. Nothing happens
    /// until its driver runs. [`Errno::ENOENT`] if there is no such folder, [`Errno::EPROTO`] if it
    /// has no valid address.
    pub async fn new(
        machine: M,
        store: Store,
        path: &str,
        config: Config,
    ) -> Result<(Self, Driver<M>), Errno> {
        let address = features::read_address(&store, path).await?;
        let interface = Rc::new(Interface::new(machine, path, config.clamped(), address));
        let driver = Driver(frontend::Driver::new(interface.clone(), store, path));
        Ok((NetFront(interface), driver))
    }

    /// A handle to this interface.
    pub fn handle(&self) -> Handle<M> {
        Handle(self.0.clone())
    }
}

impl<M: Machine> Handle<M> {
    /// Closes the device in an orderly way. The driver's future ends then.
    pub async fn shutdown(&self) {
        frontend::shutdown(&*self.0).await;
    }

    /// Must be called in a domain that was restored from a save, which has lost its grants and
    /// event channels. The driver then connects to the domain's new backend. Xenstore must be
    /// [quiesced](Store::quiesce) from before the save until this returns.
    pub async fn resume(&self) {
        frontend::resume(&*self.0).await;
    }

    /// What was counted so far.
    pub fn statistics(&self) -> Statistics {
        let usage = self.0.pages.usage();
        Statistics {
            pages: usage.pages,
            quarantined_pages: usage.quarantined_pages,
            ..self.0.with_frames(|frames| frames.statistics)
        }
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
        // Later events wake the waker. Earlier ones are found now.
        let ready = self.0.with_queue(|queue, frames| {
            let statistics = &mut frames.statistics;
            let room = queue.tx.has_room(statistics)? || queue.tx.arm(statistics)?;
            let came = queue.rx.arm() || frames.waiting.is_some();
            // smoltcp receives a frame together with room for a reply, so a frame waits until there
            // is room.
            Ok(room && (came || core::mem::take(&mut frames.starved)))
        });
        if ready == Some(true) {
            waker.wake_by_ref();
        }
    }

    fn flush(&self) {
        let due = self.0.with_queue(|queue, frames| {
            let (tx, rx) = (queue.tx.publish().is_due(), queue.rx.publish().is_due());
            // One event is enough if there is one channel.
            let same = queue.tx_port == queue.rx_port;
            let ports = [(tx || (same && rx), queue.tx_port), (rx && !same, queue.rx_port)];
            let due = ports.map(|(due, port)| due.then_some(port));
            frames.statistics.notifications_sent += due.iter().flatten().count() as u64;
            Ok(due)
        });
        for port in due.into_iter().flatten().flatten() {
            self.0.pages.machine().notify(port);
        }
    }
}

impl<M: Machine + 'static> phy::Device for NetFront<M> {
    type RxToken<'a> = RxToken<'a, M>;
    type TxToken<'a> = TxToken<'a, M>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_, M>, TxToken<'_, M>)> {
        let interface = &*self.0;
        let received = interface.with_queue(|queue, frames| {
            if frames.waiting.is_none() {
                frames.waiting = queue.rx.next(&mut frames.received, &mut frames.statistics)?;
                if let Some(len) = frames.waiting {
                    frames.statistics.received += 1;
                    frames.statistics.received_bytes += len as u64;
                }
            }
            Ok(frames.waiting.is_some() && frames.find_room(queue)?)
        });
        (received == Some(true)).then(|| (RxToken(interface), TxToken::new(interface)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_, M>> {
        let interface = &*self.0;
        let room = interface.with_queue(|queue, frames| frames.find_room(queue));
        (room == Some(true)).then(|| TxToken::new(interface))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let features = self.0.features.get();
        let mut checksum = ChecksumCapabilities::default();
        // The interface completes the checksums that the backend does not.
        (checksum.tcp, checksum.udp) = (Checksum::None, Checksum::None);
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = features.frame();
        capabilities.checksum = checksum;
        // Not for IPv6: smoltcp 0.14 builds such frames too, and then drops them because of their
        // length.
        capabilities.segmentation.tcpv4 =
            NonZeroUsize::new(LONGEST).filter(|_| features.segments_v4);
        capabilities
    }
}

/// A received frame.
pub struct RxToken<'a, M: Machine>(&'a Interface<M>);

impl<M: Machine> phy::RxToken for RxToken<'_, M> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        // The buffer is taken out: the stack may build a reply while it reads the
        // frame.
        let (buffer, len) = self.0.with_frames(|frames| {
            (core::mem::take(&mut frames.received), frames.waiting.take().unwrap_or(0))
        });
        let result = f(&buffer[..len]);
        self.0.with_frames(|frames| frames.received = buffer);
        result
    }
}

/// Room for a frame.
pub struct TxToken<'a, M: Machine> {
    interface: &'a Interface<M>,
    segment: Option<u16>,
}

impl<'a, M: Machine> TxToken<'a, M> {
    fn new(interface: &'a Interface<M>) -> Self {
        TxToken { interface, segment: None }
    }
}

impl<M: Machine> phy::TxToken for TxToken<'_, M> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let TxToken { interface, segment } = self;
        let mut buffer = interface.with_frames(|frames| core::mem::take(&mut frames.building));
        if buffer.len() < len {
            // A well-behaved stack does not do that; the frame is dropped below.
            buffer.resize(len, 0);
        }
        let frame = &mut buffer[..len];
        let result = f(frame);
        let accepted = interface.features.get().accept(frame, segment);
        let sent = interface.with_queue(|queue, frames| {
            let fits = accepted && queue.tx.has_room(&mut frames.statistics)?;
            if fits {
                queue.tx.send(frame, segment);
            }
            Ok(fits)
        });
        interface.with_frames(|frames| {
            if sent == Some(true) {
                frames.statistics.transmitted += 1;
                frames.statistics.transmitted_bytes += len as u64;
            } else {
                frames.statistics.transmit_dropped += 1;
            }
            frames.building = buffer;
        });
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(u16::from);
    }
}

/// Drives a [`NetFront`]; see [`run`](Driver::run).
pub struct Driver<M: Machine + 'static>(frontend::Driver<Interface<M>>);

impl<M: Machine> Driver<M> {
    /// Connects to the backend, and connects again when it returns.
    ///
    /// Returns [`Errno::ENODEV`] after [`Handle::shutdown`], or the error that made the device
    /// unusable. Then all pages were returned to the machine.
    pub async fn run(self) -> Errno {
        self.0.run().await
    }
}
