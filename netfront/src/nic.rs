//! The boundary between a driver and the stack.

use core::task::Waker;
use smoltcp::wire::EthernetAddress;

/// Whether frames reach the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// No backend, or a backend without carrier: frames are lost.
    Down,
    /// The interface works. The number changes each time the link comes up: addresses may have
    /// changed, and neighbours have to be resolved again.
    Up(u32),
}

/// A handle to an Ethernet interface: what the stack needs besides smoltcp's
/// [`Device`](smoltcp::phy::Device), which receives and transmits.
///
/// It is a trait of its own because wrappers of a device, such as smoltcp's `Tracer`, `PcapWriter`
/// and `FaultInjector`, only pass on `Device`. The device's capabilities (MTU, checksums) may
/// change when the link comes up again. [`stack`](crate::stack) has an example.
pub trait Nic {
    /// The interface's own address. It may change when the link comes up again.
    fn hardware_address(&self) -> EthernetAddress;

    /// The state of the link.
    fn link(&self) -> Link;

    /// Wakes `waker` once: when there is a frame to receive, when there is room to transmit after
    /// there was none, or when the link changes. It is woken at once if that happened before the
    /// call.
    fn register(&self, waker: &Waker);

    /// Notifies the backend of the frames that were queued since the last call. Must be called
    /// after every batch; costs at most one notification.
    fn flush(&self);
}
