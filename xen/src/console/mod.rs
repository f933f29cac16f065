//! The domain's console: a page with a ring of output and a ring of input.
//!
//! Output never blocks the guest: what finds no room is dropped and counted, and the loss is noted
//! in the output once there is room again.

use crate::abi::console::{XENCONS_IN_SIZE, XENCONS_OUT_SIZE, XenconsInterface};
use crate::byte_ring::{Consumer, Layout, Producer};
use crate::event::PairWaker;
use crate::{Errno, Shared};
use alloc::sync::Arc;
use core::cell::Cell;
use core::fmt::{self, Write};
use core::future::poll_fn;
use core::mem::offset_of;
use core::task::Poll;

const OUTPUT: Layout = Layout {
    data: offset_of!(XenconsInterface, output),
    size: XENCONS_OUT_SIZE as u32,
    cons: offset_of!(XenconsInterface, out_cons),
    prod: offset_of!(XenconsInterface, out_prod),
};

const INPUT: Layout = Layout {
    data: offset_of!(XenconsInterface, input),
    size: XENCONS_IN_SIZE as u32,
    cons: offset_of!(XenconsInterface, in_cons),
    prod: offset_of!(XenconsInterface, in_prod),
};

/// Room that is needed for the note of a loss.
const NOTE_ROOM: usize = 64;

/// A console.
pub struct Console<N> {
    output: Producer,
    input: Consumer,
    notify: N,
    events: Arc<PairWaker>,
    dropped: Cell<u64>,
    /// How many of the dropped bytes the reader was not yet told of.
    unnoted: Cell<u64>,
}

impl<N: Fn()> Console<N> {
    /// Opens the console.
    ///
    /// `page` is the one that `HVM_PARAM_CONSOLE_PFN` names; `notify` sends an event over the port
    /// of `HVM_PARAM_CONSOLE_EVTCHN`, and `events` hears of those that come back.
    pub fn new(page: Shared<'static>, notify: N, events: Arc<PairWaker>) -> Self {
        Console {
            output: Producer::new(page, OUTPUT),
            input: Consumer::new(page, INPUT),
            notify,
            events,
            dropped: Cell::new(0),
            unnoted: Cell::new(0),
        }
    }

    /// Writes what finds room, drops the rest, and returns at once.
    pub fn write(&self, bytes: &[u8]) {
        self.note_loss();
        let lost = if self.unnoted.get() > 0 {
            // The note comes first, or the loss would seem to be elsewhere.
            bytes.len()
        } else {
            let written = self.output.write(bytes).unwrap_or(0);
            if written > 0 {
                (self.notify)();
            }
            bytes.len() - written
        };
        self.dropped.set(self.dropped.get() + lost as u64);
        self.unnoted.set(self.unnoted.get() + lost as u64);
    }

    /// Writes everything, waiting for room. [`Errno::EPROTO`] when the peer broke the ring.
    pub async fn write_all(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let written = poll_fn(|cx| {
                self.events.tx.register(cx.waker());
                self.note_loss();
                match self.output.write(bytes) {
                    Ok(0) => Poll::Pending,
                    result => Poll::Ready(result),
                }
            })
            .await?;
            (self.notify)();
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Waits until the peer has taken all output.
    pub async fn flush(&self) -> Result<(), Errno> {
        poll_fn(|cx| {
            self.events.tx.register(cx.waker());
            match self.output.is_drained() {
                Ok(false) => Poll::Pending,
                result => Poll::Ready(result.map(drop)),
            }
        })
        .await
    }

    /// Waits for input and reads what fits. [`Errno::EPROTO`] when the peer broke the ring.
    pub async fn read(&self, to: &mut [u8]) -> Result<usize, Errno> {
        if to.is_empty() {
            return Ok(0);
        }
        let count = poll_fn(|cx| {
            self.events.rx.register(cx.waker());
            match self.input.read(to) {
                Ok(0) => Poll::Pending,
                result => Poll::Ready(result),
            }
        })
        .await?;
        (self.notify)();
        Ok(count)
    }

    /// Bytes of output that found no room so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    fn note_loss(&self) {
        let lost = self.unnoted.get();
        if lost == 0 || !self.output.room().is_ok_and(|room| room >= NOTE_ROOM) {
            return;
        }
        struct Output<'a>(&'a Producer);
        impl Write for Output<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.write(text.as_bytes()).map(drop).map_err(|_| fmt::Error)
            }
        }
        if write!(Output(&self.output), "\r\n[{lost} bytes of output lost]\r\n").is_ok() {
            self.unnoted.set(0);
            (self.notify)();
        }
    }
}

impl<N: Fn()> Write for &Console<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
