//! Moves bytes between a socket and its data ring, both ways.
//!
//! Each direction goes on without the other: a remote end that has sent everything can still be
//! written to. An error word is set after the last byte that came before the error.

use super::data_ring::{DataRing, Line, RingMemory};
use super::guest::Guest;
use super::{Host, Socket, Stream};
use crate::ring::{Consumer, Guess, Notify, Producer, len};
use crate::wire::{Call, Request, RingGrants, Shutdown, SocketOption};
use core::net::SocketAddr;
use core::task::{Context, Poll, ready};
use xen::Errno;
use xen::Side;

/// The two pumps of one connection.
pub(super) struct Pumps<H: Host> {
    line: Line<H>,
    memory: RingMemory<H>,
    /// After a RESIZE: the former ring, until what the guest has written there is sent.
    former: Option<(RingMemory<H>, Consumer)>,
    input: Producer,
    output: Consumer,
    /// The socket, until neither direction needs it any more.
    stream: Option<H::Stream>,
    receiving: bool,
    sending: bool,
    /// Whether sending ends when the ring is empty.
    finishing: bool,
    /// Why sending ended, unless the remote end just took no more: then what the socket reports to
    /// the receiving side as a proper end is none.
    broken: Option<Errno>,
    /// The errors that were set, of `in` and of `out`.
    errors: [Option<Errno>; 2],
    /// Whether the guest has another ring than it had first.
    resized: bool,
    /// How many bytes were sent.
    sent: u64,
    /// The guest's wish, in seconds.
    linger: Option<u32>,
}

fn output<H: Host>(memory: &RingMemory<H>) -> Consumer {
    Consumer::new(memory.layout.output, Guess::FullOrEmpty)
}

impl<H: Host> Pumps<H> {
    /// Pumps between a socket and a ring that nobody has used yet.
    pub(super) fn new(ring: DataRing<H>, stream: H::Stream, linger: Option<u32>) -> Self {
        let DataRing { memory, line } = ring;
        Pumps {
            line,
            input: Producer::new(memory.layout.input),
            output: output(&memory),
            memory,
            former: None,
            stream: Some(stream),
            receiving: true,
            sending: true,
            finishing: false,
            broken: None,
            errors: [None; 2],
            resized: false,
            sent: 0,
            linger,
        }
    }

    /// The ring, whose socket is closed; none when the guest has another by now than it had first.
    pub(super) fn into_ring(self) -> Option<DataRing<H>> {
        let Pumps { line, memory, stream, resized, .. } = self;
        drop(stream);
        (!resized).then_some(DataRing { memory, line })
    }

    /// The guest's wish of how long a RELEASE may take, in seconds.
    pub(super) fn linger(&self) -> Option<u32> {
        self.linger
    }

    /// Carries out a request about the open connection, and answers it.
    pub(super) fn carry_out(&mut self, guest: &Guest<'_, H>, request: &Request) {
        let mut name = None;
        let result = match &request.call {
            Call::SetOption { option, value } => self.set_option(*option, *value),
            Call::GetOption { option } => self.option(guest, *option),
            Call::LocalAddr => self.named(&mut name, Socket::local_addr),
            Call::PeerAddr => self.named(&mut name, Stream::peer_addr),
            Call::Shutdown { how } => self.shutdown(*how),
            Call::Resize { grants } => self.resize(guest, grants),
            _ => Err(Errno::EISCONN),
        };
        guest.answer_with(request.answer(result), name);
    }

    fn stream(&self) -> Result<&H::Stream, Errno> {
        self.stream.as_ref().ok_or(Errno::ENOTCONN)
    }

    fn named(
        &self,
        name: &mut Option<SocketAddr>,
        ask: impl Fn(&H::Stream) -> Result<SocketAddr, Errno>,
    ) -> Result<u32, Errno> {
        *name = Some(ask(self.stream()?)?);
        Ok(0)
    }

    fn set_option(&mut self, option: SocketOption, value: u32) -> Result<u32, Errno> {
        self.stream()?.set_option(option, value)?;
        if option == SocketOption::Linger {
            self.linger = Some(value);
        }
        Ok(0)
    }

    fn option(&self, guest: &Guest<'_, H>, option: SocketOption) -> Result<u32, Errno> {
        if option == SocketOption::Linger {
            let longest = guest.limits.linger.as_secs() as u32;
            return Ok(self.linger.map_or(longest, |seconds| seconds.min(longest)));
        }
        self.stream()?.option(option)
    }

    fn shutdown(&mut self, how: Shutdown) -> Result<u32, Errno> {
        let stream = self.stream()?;
        if how.reads() && self.receiving {
            stream.shutdown(Shutdown::Read)?;
            self.end_receiving(Errno::ENOTCONN);
        }
        // What is in the ring goes out first.
        self.finishing |= how.writes();
        Ok(0)
    }

    /// Goes over to another ring. What is in the former one stays there: the guest reads the rest of
    /// `in`, and this sends the rest of `out`.
    fn resize(&mut self, guest: &Guest<'_, H>, grants: &RingGrants) -> Result<u32, Errno> {
        self.stream()?;
        if self.former.is_some() {
            return Err(Errno::EBUSY);
        }
        let memory = RingMemory::map(guest, grants)?;
        self.resized = true;
        self.input = Producer::new(memory.layout.input);
        let output = core::mem::replace(&mut self.output, output(&memory));
        let former = core::mem::replace(&mut self.memory, memory);
        if self.sending {
            self.former = Some((former, output));
        }
        let [input, output] = self.errors;
        if let Some(error) = input {
            self.input.set_error(self.memory.region(), error);
        }
        if let Some(error) = output {
            self.output.set_error(self.memory.region(), error);
        }
        Ok(0)
    }

    /// Moves what can be moved, a bounded amount, and arranges to be woken when there is more.
    pub(super) fn poll(&mut self, guest: &Guest<'_, H>, cx: &mut Context<'_>) {
        self.line.signal.register(Side::Rx, cx.waker());
        let _ = self.poll_send(guest, cx);
        let _ = self.poll_receive(guest, cx);
    }

    /// How many bytes the guest has left to be sent.
    pub(super) fn unsent(&mut self) -> u64 {
        if !self.sending {
            return 0;
        }
        let count = |memory: &RingMemory<H>, output: &mut Consumer| {
            output.data(memory.region()).map_or(0, |data| len(&data) as u64)
        };
        let former = self.former.as_mut().map_or(0, |(memory, output)| count(memory, output));
        former + count(&self.memory, &mut self.output)
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
        while self.receiving {
            let region = self.memory.region();
            let Some(stream) = &self.stream else { break };
            let mut room = self.input.room(region);
            if matches!(&room, Ok(room) if len(room) == 0) {
                // Half of the ring at once, rather than an event for every byte that is read.
                self.input.arm(region, self.memory.layout.input.size / 2);
                room = self.input.room(region);
            }
            let room = match room {
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
                Ok(count) => self.line.notify(self.input.advance(region, count)),
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
        self.leave_former();
        let Some(stream) = &self.stream else { return Poll::Ready(()) };
        let (memory, output) = match &mut self.former {
            Some((memory, output)) => (&*memory, output),
            None => (&self.memory, &mut self.output),
        };
        let region = memory.region();
        let mut data = output.data(region);
        if matches!(&data, Ok(data) if len(data) == 0) {
            if self.finishing {
                // It may be broken already, which the receiving side finds out.
                let _ = stream.shutdown(Shutdown::Write);
                self.end_sending(Errno::EPIPE);
                return Poll::Ready(());
            }
            output.arm(region);
            data = output.data(region);
        }
        let data = match data {
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
                self.line.notify(output.advance(region, count));
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

    /// Lets go of the former ring when all of it is sent. The guest may be waiting to have its pages back.
    fn leave_former(&mut self) {
        if let Some((memory, output)) = &mut self.former
            && matches!(output.data(memory.region()), Ok(data) if len(&data) == 0)
        {
            self.former = None;
            self.line.notify(Notify::Due);
        }
    }

    fn end_receiving(&mut self, error: Errno) {
        self.receiving = false;
        self.errors[0] = Some(error);
        self.input.set_error(self.memory.region(), error);
        self.after_end();
    }

    fn end_sending(&mut self, error: Errno) {
        if self.sending {
            self.sending = false;
            self.former = None;
            self.errors[1] = Some(error);
            self.output.set_error(self.memory.region(), error);
            self.after_end();
        }
    }

    fn after_end(&mut self) {
        self.line.notify(Notify::Due);
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
