//! The domain's console: a page with a ring of output and a ring of input.
//!
//! Output never blocks the guest. Bytes that do not fit into the ring wait in a backlog, which is
//! sent as the reader makes room. Bytes that do not fit there are dropped and counted, and a note
//! in the output marks the loss.

use crate::abi::console::{XENCONS_IN_SIZE, XENCONS_OUT_SIZE, XenconsInterface};
use crate::byte_ring::{Consumer, Producer, layout};
use crate::frontend::Direction;
use crate::{Errno, Shared, Side, Signal};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::convert::Infallible;
use core::fmt::{self, Write};
use core::future::poll_fn;
use core::mem::{offset_of, take};
use core::task::{Poll, Waker};

const OUTPUT: Direction = layout(
    offset_of!(XenconsInterface, output),
    XENCONS_OUT_SIZE,
    offset_of!(XenconsInterface, out_cons),
    offset_of!(XenconsInterface, out_prod),
);

const INPUT: Direction = layout(
    offset_of!(XenconsInterface, input),
    XENCONS_IN_SIZE,
    offset_of!(XenconsInterface, in_cons),
    offset_of!(XenconsInterface, in_prod),
);

/// The size of the backlog, in bytes.
pub const BACKLOG: usize = 64 * 1024;

/// Room for the note of a loss, in bytes.
const NOTE_ROOM: usize = 64;

/// A console.
///
/// Output is sent when something is written, and while [`run`](Console::run) is polled.
///
/// ```
/// # use std::sync::Arc;
/// use core::fmt::Write;
/// use xen::{Signal, console::Console};
///
/// // The page of HVM_PARAM_CONSOLE_PFN, and a notification over HVM_PARAM_CONSOLE_EVTCHN:
/// let (page, notify) = (xen::testing::page(), || ());
/// let console = Console::new(page, notify, Arc::new(Signal::new()));
/// writeln!(&console, "hello").unwrap();
/// let mut output = [0; 6];
/// page.read(1024, &mut output);
/// assert_eq!(&output, b"hello\n");
/// ```
pub struct Console<N> {
    output: Producer,
    input: Consumer,
    notify: N,
    events: Arc<Signal>,
    backlog: RefCell<VecDeque<u8>>,
    /// Tasks that wait for room.
    writers: RefCell<Vec<Waker>>,
    dropped: Cell<u64>,
    /// Dropped bytes that no note in the output accounts for yet.
    unnoted: Cell<u64>,
}

impl<N: Fn()> Console<N> {
    /// Opens the console.
    ///
    /// `page` is the one that `HVM_PARAM_CONSOLE_PFN` names; `notify` sends an event over the port
    /// of `HVM_PARAM_CONSOLE_EVTCHN`, and the owner of that port raises `events`.
    pub fn new(page: Shared<'static>, notify: N, events: Arc<Signal>) -> Self {
        Console {
            output: Producer::new(page, OUTPUT),
            input: Consumer::new(page, INPUT),
            notify,
            events,
            backlog: RefCell::new(VecDeque::with_capacity(BACKLOG)),
            writers: RefCell::default(),
            dropped: Cell::new(0),
            unnoted: Cell::new(0),
        }
    }

    /// Reloads the rings' indexes in a restored domain. The backlog is kept.
    pub fn resume(&self) {
        self.output.reopen();
        self.input.reopen();
        self.events.raise();
        self.send();
    }

    /// Writes what fits, drops the rest, and returns at once.
    pub fn write(&self, bytes: &[u8]) {
        self.send();
        self.note_loss();
        // The note goes first, to mark the place of the loss.
        let kept = if self.unnoted.get() > 0 { 0 } else { self.put(bytes) };
        let lost = (bytes.len() - kept) as u64;
        self.dropped.set(self.dropped.get() + lost);
        self.unnoted.set(self.unnoted.get() + lost);
    }

    /// Writes everything, waiting for room. [`Errno::EPROTO`] if the peer broke the ring.
    pub async fn write_all(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let written = self.when_moved(|| {
                self.note_loss();
                let kept = if self.unnoted.get() > 0 { 0 } else { self.put(bytes) };
                if kept == 0 { self.output.room().map(|_| None) } else { Ok(Some(kept)) }
            });
            bytes = &bytes[written.await?..];
        }
        Ok(())
    }

    /// Waits until the peer has taken all output. [`Errno::EPROTO`] if it broke the ring.
    pub async fn flush(&self) -> Result<(), Errno> {
        let drained = || {
            let drained = self.output.is_drained()? && self.backlog.borrow().is_empty();
            Ok(drained.then_some(()))
        };
        self.when_moved(drained).await
    }

    /// Sends the backlog when the peer makes room, for ever. One such future must be polled to send
    /// output without further writes.
    pub async fn run(&self) -> Infallible {
        poll_fn(|cx| {
            self.events.register(Side::Tx, cx.waker());
            self.send();
            self.note_loss();
            take(&mut *self.writers.borrow_mut()).into_iter().for_each(Waker::wake);
            Poll::Pending
        })
        .await
    }

    /// Writes what fits into the ring itself, after the backlog, and returns the number of bytes.
    /// For a crashed guest, which polls for room.
    pub fn write_some(&self, bytes: &[u8]) -> usize {
        // The crash may have interrupted a change of the backlog, which is skipped then.
        if let Ok(mut backlog) = self.backlog.try_borrow_mut() {
            self.send_from(&mut backlog);
            if !backlog.is_empty() {
                return 0;
            }
        }
        let written = self.output.write(bytes).unwrap_or(0);
        (self.notify)();
        written
    }

    /// Whether the peer has taken all output. For a crashed guest. [`Errno::EPROTO`] if it broke
    /// the ring.
    pub fn is_drained(&self) -> Result<bool, Errno> {
        let waiting = self.backlog.try_borrow().is_ok_and(|backlog| !backlog.is_empty());
        Ok(!waiting && self.output.is_drained()?)
    }

    /// Waits for input and reads what fits. [`Errno::EPROTO`] if the peer broke the ring.
    pub async fn read(&self, to: &mut [u8]) -> Result<usize, Errno> {
        if to.is_empty() {
            return Ok(0);
        }
        let read = || Some(self.input.read(to)).filter(|read| *read != Ok(0));
        let count = self.events.until(Side::Rx, read).await?;
        (self.notify)();
        Ok(count)
    }

    /// Bytes of output that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Bytes of output that wait for room in the ring.
    pub fn waiting(&self) -> usize {
        self.backlog.borrow().len()
    }

    /// Retries `attempt` after each send of output, until it gives a value.
    async fn when_moved<T>(
        &self,
        mut attempt: impl FnMut() -> Result<Option<T>, Errno>,
    ) -> Result<T, Errno> {
        poll_fn(|cx| {
            self.send();
            let result = attempt().transpose();
            if result.is_none() {
                self.writers.borrow_mut().push(cx.waker().clone());
            }
            result.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Writes what fits into the ring or, after other waiting bytes, into the backlog.
    fn put(&self, bytes: &[u8]) -> usize {
        let mut backlog = self.backlog.borrow_mut();
        let mut kept = 0;
        if backlog.is_empty() {
            kept = self.output.write(bytes).unwrap_or(0);
            if kept > 0 {
                (self.notify)();
            }
        }
        let room = BACKLOG - backlog.len();
        let rest = &bytes[kept..bytes.len().min(kept + room)];
        backlog.extend(rest);
        kept + rest.len()
    }

    /// Sends as much of the backlog as the ring has room for.
    fn send(&self) {
        self.send_from(&mut self.backlog.borrow_mut());
    }

    fn send_from(&self, backlog: &mut VecDeque<u8>) {
        let mut sent = 0;
        while !backlog.is_empty() {
            let written = self.output.write(backlog.as_slices().0).unwrap_or(0);
            if written == 0 {
                break;
            }
            backlog.drain(..written);
            sent += written;
        }
        if sent > 0 {
            (self.notify)();
        }
    }

    fn note_loss(&self) {
        let lost = self.unnoted.get();
        if lost == 0 || BACKLOG - self.backlog.borrow().len() < NOTE_ROOM {
            return;
        }
        struct Backlog<'a>(&'a mut VecDeque<u8>);
        impl Write for Backlog<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.extend(text.as_bytes());
                Ok(())
            }
        }
        let mut backlog = self.backlog.borrow_mut();
        let _ = write!(Backlog(&mut backlog), "\r\n[{lost} bytes of output lost]\r\n");
        self.unnoted.set(0);
        self.send_from(&mut backlog);
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
