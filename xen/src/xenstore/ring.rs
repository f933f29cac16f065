//! A domain's connection to xenstored: two byte rings in a shared page.

use crate::abi::xs_wire::{XENSTORE_RING_SIZE, XenstoreDomainInterface};
use crate::byte_ring::{Consumer, Producer, layout};
use crate::frontend::Direction;
use crate::{Errno, Shared, Side, Signal};
use alloc::sync::Arc;
use core::mem::offset_of;
use embedded_io_async::{ErrorType, Read, Write};

const REQUESTS: Direction = layout(
    offset_of!(XenstoreDomainInterface, req),
    XENSTORE_RING_SIZE,
    offset_of!(XenstoreDomainInterface, req_cons),
    offset_of!(XenstoreDomainInterface, req_prod),
);

const REPLIES: Direction = layout(
    offset_of!(XenstoreDomainInterface, rsp),
    XENSTORE_RING_SIZE,
    offset_of!(XenstoreDomainInterface, rsp_cons),
    offset_of!(XenstoreDomainInterface, rsp_prod),
);

/// Opens the ring for [`connect`](super::connect).
///
/// `page` is the one that `HVM_PARAM_STORE_PFN` names. `notify` sends an event over the port of
/// `HVM_PARAM_STORE_EVTCHN`, and the owner of that port raises `events`.
pub fn open<N: Fn() + Clone>(
    page: Shared<'static>,
    notify: N,
    events: Arc<Signal>,
) -> (RingReader<N>, RingWriter<N>) {
    let ring = Consumer::new(page, REPLIES);
    let reader = RingReader { ring, notify: notify.clone(), events: events.clone() };
    (reader, RingWriter { ring: Producer::new(page, REQUESTS), notify, events })
}

/// Replies and watch events from xenstored.
pub struct RingReader<N> {
    ring: Consumer,
    notify: N,
    events: Arc<Signal>,
}

impl<N> ErrorType for RingReader<N> {
    type Error = Errno;
}

impl<N: Fn()> Read for RingReader<N> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Errno> {
        if to.is_empty() {
            return Ok(0);
        }
        let moved = || Some(self.ring.read(to)).filter(|moved| *moved != Ok(0));
        let result = self.events.until(Side::Rx, moved).await;
        result
            .inspect(|_| (self.notify)())
            .inspect_err(|_| log::error!("xenstored's index of the replies is out of range"))
    }
}

/// Requests to xenstored.
pub struct RingWriter<N> {
    ring: Producer,
    notify: N,
    events: Arc<Signal>,
}

impl<N> ErrorType for RingWriter<N> {
    type Error = Errno;
}

impl<N: Fn()> Write for RingWriter<N> {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        if from.is_empty() {
            return Ok(0);
        }
        let moved = || Some(self.ring.write(from)).filter(|moved| *moved != Ok(0));
        let result = self.events.until(Side::Tx, moved).await;
        result
            .inspect(|_| (self.notify)())
            .inspect_err(|_| log::error!("xenstored's index of the requests is out of range"))
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
