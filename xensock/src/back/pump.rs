//! Moves bytes between a socket and its data ring, both ways.
//!
//! Each direction goes on without the other: a remote end that has sent everything can still be
//! written to. An error word is set after the last byte that came before the error.

use super::data_ring::DataRing;
use super::guest::Guest;
use super::{Host, Stream};
use crate::Side;
use crate::ring::{Consumer, Notify, Producer, len};
use core::sync::atomic::{Ordering, fence};
use core::task::{Context, Poll, ready};
use xen::Errno;

/// The two pumps of one connection.
pub(super) struct Pumps<'r, H: Host> {
    ring: &'r DataRing<H>,
    input: Producer,
    output: Consumer,
    /// The socket, until neither direction needs it any more.
    stream: Option<H::Stream>,
    receiving: bool,
    sending: bool,
    /// Why sending ended, unless the remote end just took no more: then what the socket reports to
    /// the receiving side as a proper end is none.
    broken: Option<Errno>,
    /// How many bytes were sent.
    sent: u64,
}

impl<'r, H: Host> Pumps<'r, H> {
    /// Pumps between a socket and a ring that nobody has used yet.
    pub(super) fn new(ring: &'r DataRing<H>, stream: H::Stream) -> Self {
        Pumps {
            ring,
            input: Producer::new(ring.layout.input),
            output: Consumer::new(ring.layout.output),
            stream: Some(stream),
            receiving: true,
            sending: true,
            broken: None,
            sent: 0,
        }
    }

    /// Moves what can be moved, a bounded amount, and arranges to be woken when there is more.
    pub(super) fn poll(&mut self, guest: &Guest<'_, H>, cx: &mut Context<'_>) {
        self.ring.signal.register(Side::Rx, cx.waker());
        let _ = self.poll_send(guest, cx);
        let _ = self.poll_receive(guest, cx);
    }

    /// How many bytes the guest has left to be sent.
    pub(super) fn unsent(&mut self) -> u64 {
        match self.output.data(self.ring.region()) {
            Ok(data) if self.sending => len(&data) as u64,
            _ => 0,
        }
    }

    /// How many bytes were sent, in all.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends what is in the ring until the total of [`sent`](Pumps::sent) has come to `total`, or sending
    /// fails; receives nothing.
    pub(super) fn poll_drain(
        &mut self,
        guest: &Guest<'_, H>,
        cx: &mut Context<'_>,
        total: u64,
    ) -> Poll<()> {
        while self.sending && self.sent < total {
            ready!(self.poll_send_once(guest, cx));
        }
        Poll::Ready(())
    }

    fn poll_receive(&mut self, guest: &Guest<'_, H>, cx: &mut Context<'_>) -> Poll<()> {
        let region = self.ring.region();
        while self.receiving {
            let Some(stream) = &self.stream else { break };
            let room = match self.input.room(region) {
                Ok(room) if len(&room) == 0 => return Poll::Pending,
                Ok(room) => room,
                Err(error) => {
                    self.fail(guest, error);
                    break;
                }
            };
            ready!(guest.poll_operation(cx));
            match ready!(stream.poll_recv(cx, room)) {
                Ok(0) => self.end_receiving(self.broken.unwrap_or(Errno::ENOTCONN)),
                Ok(count) => self.ring.notify(self.input.advance(region, count)),
                Err(error) => {
                    self.end_sending(error);
                    self.end_receiving(error);
                }
            }
        }
        Poll::Ready(())
    }

    fn poll_send(&mut self, guest: &Guest<'_, H>, cx: &mut Context<'_>) -> Poll<()> {
        while self.sending {
            ready!(self.poll_send_once(guest, cx));
        }
        Poll::Ready(())
    }

    fn poll_send_once(&mut self, guest: &Guest<'_, H>, cx: &mut Context<'_>) -> Poll<()> {
        let region = self.ring.region();
        let Some(stream) = &self.stream else { return Poll::Ready(()) };
        let data = match self.output.data(region) {
            Ok(data) if len(&data) == 0 => return Poll::Pending,
            Ok(data) => data,
            Err(error) => {
                self.fail(guest, error);
                return Poll::Ready(());
            }
        };
        ready!(guest.poll_operation(cx));
        match ready!(stream.poll_send(cx, data)) {
            Ok(count) => {
                self.sent += count as u64;
                let notify = self.output.advance(region, count);
                if notify.is_due() && self.may_wait(count) {
                    self.ring.notify(notify);
                }
            }
            Err(error) => {
                if error != Errno::EPIPE {
                    self.broken = Some(error);
                }
                self.end_sending(error);
            }
        }
        Poll::Ready(())
    }

    /// Whether the guest, when it last looked, may have found no room, or may be waiting for the ring to
    /// become empty. `count` bytes were taken since then.
    fn may_wait(&mut self, count: usize) -> bool {
        // The guest sees the new `out_cons`, or this sees all that the guest wrote before it looked.
        fence(Ordering::SeqCst);
        match self.output.data(self.ring.region()) {
            Ok(data) => {
                let left = len(&data);
                left == 0 || left + count >= self.ring.layout.output.size as usize
            }
            // The next look will find the same, and end the connection.
            Err(_) => false,
        }
    }

    fn end_receiving(&mut self, error: Errno) {
        self.receiving = false;
        self.input.set_error(self.ring.region(), error);
        self.after_end();
    }

    fn end_sending(&mut self, error: Errno) {
        if self.sending {
            self.sending = false;
            self.output.set_error(self.ring.region(), error);
            self.after_end();
        }
    }

    fn after_end(&mut self) {
        self.ring.notify(Notify::Due);
        if !self.receiving && !self.sending {
            self.stream = None;
        }
    }

    /// The guest broke the protocol on this ring.
    fn fail(&mut self, guest: &Guest<'_, H>, error: Errno) {
        log::debug!("domain {}: impossible indexes on a data ring, which is closed", guest.id);
        self.end_sending(error);
        self.end_receiving(error);
    }
}
