//! The boundary between a driver and the stack.

use core::task::Waker;
use smoltcp::phy::{Device, DeviceCapabilities};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

/// Whether frames get anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// No backend, or one without carrier: frames are lost.
    Down,
    /// The interface works. The number is another one each time that it begins to: addresses may have
    /// changed, and neighbours are to be asked for anew.
    Up(u32),
}

/// An Ethernet interface that says when it has something to do.
///
/// Receive and transmit are [`Device`]'s. Its capabilities (MTU, checksums) may be others after the link has
/// come up again.
pub trait Nic: Device {
    /// The interface's own address. It may be another one after the link has come up again.
    fn hardware_address(&self) -> EthernetAddress;

    /// The link, now.
    fn link(&self) -> Link;

    /// Has `waker` woken, once, as soon as there is a frame to receive, room to transmit where there was none,
    /// or another link. What came before the call and was not looked at yet counts, too.
    fn register(&mut self, waker: &Waker);

    /// Tells the backend of the frames that were queued since the last call. To be called after every batch;
    /// it costs at most one notification.
    fn flush(&mut self);
}

/// What of a [`Nic`] is not [`Device`]'s, on its own: a handle that stays when the device is inside
/// something else.
pub trait Control {
    /// As [`Nic::hardware_address`].
    fn hardware_address(&self) -> EthernetAddress;

    /// As [`Nic::link`].
    fn link(&self) -> Link;

    /// As [`Nic::register`].
    fn register(&self, waker: &Waker);

    /// As [`Nic::flush`].
    fn flush(&self);
}

/// An interface within wrappers of [`smoltcp::phy`], such as its `Tracer`, `PcapWriter` and `FaultInjector`,
/// which know of [`Device`] alone.
///
/// What is seen of a frame that leaves is what the stack has made: checksums are filled in behind that, and
/// one that is to be segmented is whole. A `FaultInjector` holds frames of up to 1536 bytes: segmentation has to
/// be off in the interface's configuration.
#[derive(Debug)]
pub struct Wrapped<D, C> {
    device: D,
    control: C,
}

impl<D: Device, C: Control> Wrapped<D, C> {
    /// The wrapped `device`, and its interface's `control`.
    pub fn new(device: D, control: C) -> Self {
        Wrapped { device, control }
    }

    /// The wrapper.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }
}

impl<D: Device, C: Control> Device for Wrapped<D, C> {
    type RxToken<'a>
        = D::RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = D::TxToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(D::RxToken<'_>, D::TxToken<'_>)> {
        self.device.receive(now)
    }

    fn transmit(&mut self, now: Instant) -> Option<D::TxToken<'_>> {
        self.device.transmit(now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

impl<D: Device, C: Control> Nic for Wrapped<D, C> {
    fn hardware_address(&self) -> EthernetAddress {
        self.control.hardware_address()
    }

    fn link(&self) -> Link {
        self.control.link()
    }

    fn register(&mut self, waker: &Waker) {
        self.control.register(waker);
    }

    fn flush(&mut self) {
        self.control.flush();
    }
}
