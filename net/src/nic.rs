//! The boundary between a driver and the stack.

use core::task::Waker;
use smoltcp::phy::Device;
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
