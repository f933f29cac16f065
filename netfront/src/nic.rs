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

/// A handle to an Ethernet interface: what the stack needs beside smoltcp's
/// [`Device`](smoltcp::phy::Device), which receives and transmits.
///
/// The two are apart because wrappers of a device, such as smoltcp's `Tracer`, `PcapWriter` and
/// `FaultInjector`, pass on nothing else. The device's capabilities (MTU, checksums) may change
/// when the link comes up again. [`stack`](crate::stack) has an example.
pub trait Nic {
    /// The interface's own address. It may change when the link comes up again.
    fn hardware_address(&self) -> EthernetAddress;

    /// The state of the link.
    fn link(&self) -> Link;

    /// Wakes `waker`, once, as soon as there is a frame to receive, room to transmit where there
    /// was none, or another state of the link. Events that were not handled before the call count,
    /// too.
    fn register(&self, waker: &Waker);

    /// Notifies the backend of the frames that were queued since the last call. Must be called
    /// after every batch; costs at most one notification.
    fn flush(&self);
}
