//! Moves bytes between a socket and its data ring, both ways.
//!
//! The directions are independent: a peer that has sent everything can still be written to. An
//! error word is set after the last byte that came before the error.

use super::account::Flow;
use super::connection::{Linger, Pump};
use super::data_ring::{DataRing, EventChannel, RingMemory};
use super::engine::{Engine, OPENING, Reply};
use super::gate::Place;
use super::host::{Host, Ring, Socket, Stream, StreamOf};
use super::socket::Operation;
use crate::ring::{Consumer, Notify, NotifyPolicy, Producer, len, split_at};
use crate::wire::{RingGrants, Shutdown, SocketOption};
use alloc::rc::{Rc, Weak};
use core::task::{Context, Poll, ready};
use xen::Errno;

/// The two pumps of one connection.
pub(super) struct Pumps<H: Host> {
    channel: EventChannel<H>,
    memory: Rc<RingMemory<H>>,
    /// After a RESIZE: the former ring, until what the guest wrote there is sent.
    former: Option<(Rc<RingMemory<H>>, Consumer)>,
    input: Producer,
    output: Consumer,
    /// The socket, until neither direction needs it any more.
    stream: Option<StreamOf<H>>,
    receiving: bool,
    sending: bool,
    /// Whether the last operation was to send.
    has_sent: bool,
    /// The places of `in` and `out` at their gates.
    places: [Place; 2],
    /// Whether sending ends when the ring is empty.
    finishing: bool,
    /// The error that ended sending, unless the peer only stopped receiving. The guest gets it
    /// instead of the end of the stream that the socket then reports.
    broken: Option<Errno>,
    /// The error words of `in` and `out`, if set.
    errors: [Option<Errno>; 2],
    /// The pages of the present ring, if a RESIZE has replaced the first one.
    resized: Option<RingGrants>,
    /// The number of bytes sent.
    sent: u64,
    linger: Linger,
}

fn output<H: Host>(memory: &RingMemory<H>) -> Consumer {
    Consumer::new(memory.layout.output, NotifyPolicy::FullOrEmpty)
}

fn view<H: Host>(memory: &Rc<RingMemory<H>>) -> Weak<dyn Ring> {
    Rc::downgrade(memory) as _
}

impl<H: Host> Pumps<H> {
    /// Pumps between a socket and an unused ring.
    pub(super) fn new(ring: DataRing<H>, stream: StreamOf<H>, linger: Linger) -> Self {
        let DataRing { memory, channel } = ring;
        stream.set_ring(view(&memory));
        Pumps {
            channel,
            input: Producer::new(memory.layout.input),
            output: output(&memory),
            memory,
            former: None,
            stream: Some(stream),
            receiving: true,
            sending: true,
            has_sent: false,
            places: Default::default(),
            finishing: false,
            broken: None,
            errors: [None; 2],
            resized: None,
            sent: 0,
            linger,
        }
    }

    fn stream(&self) -> Result<&StreamOf<H>, Errno> {
        self.stream.as_ref().ok_or(Errno::ENOTCONN)
    }

    fn set_option(&mut self, option: SocketOption, value: u32) -> Result<(), Errno> {
        self.stream()?.set_option(option, value)?;
        if option == SocketOption::Linger {
            self.linger = Linger(Some(value));
        }
        Ok(())
    }

    fn option(&self, engine: &Engine<'_, H>, option: SocketOption) -> Result<u32, Errno> {
        if option == SocketOption::Linger {
            return Ok(self.linger.value(engine));
        }
        self.stream()?.option(option)
    }

    fn shutdown(&mut self, how: Shutdown) -> Result<(), Errno> {
        let stream = self.stream()?;
        if how.reads() && self.receiving {
            stream.shutdown(Shutdown::Read)?;
            self.end_receiving(Errno::ENOTCONN);
        }
        // The bytes in the ring are sent first.
        self.finishing |= how.writes();
        Ok(())
    }

    /// Switches to another ring. Bytes stay in the former one: the guest reads the rest of its
    /// `in`, and `poll_send` sends the rest of its `out`.
    fn resize(&mut self, engine: &Engine<'_, H>, grants: RingGrants) -> Result<(), Errno> {
        let stream = self.stream()?;
        if self.former.is_some() {
            return Err(Errno::EBUSY);
        }
        engine.charge(OPENING);
        let memory = engine.rings.map(&grants)?;
        stream.set_ring(view(&memory));
        self.resized = Some(grants);
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
        Ok(())
    }

    fn poll_send_once(&mut self, engine: &Engine<'_, H>, cx: &mut Context<'_>) -> Poll<()> {
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
                // The receiving direction reports a broken connection.
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
                self.fail(engine, error);
                return Poll::Ready(());
            }
        };
        ready!(engine.poll_budget(cx));
        let most = ready!(engine.poll_permitted(cx, Flow::Out, &mut self.places[1]));
        let sent = ready!(stream.poll_send(cx, split_at(data, most.min(engine.budget())).0));
        self.has_sent = true;
        engine.spend(Flow::Out, *sent.as_ref().unwrap_or(&0));
        match sent {
            Ok(count) => {
                self.sent += count as u64;
                self.channel.notify(output.advance(region, count));
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

    /// Unmaps the former ring once all of it is sent. The guest may wait for its pages.
    fn leave_former(&mut self) {
        if let Some((memory, output)) = &mut self.former
            && matches!(output.data(memory.region()), Ok(data) if len(&data) == 0)
        {
            self.former = None;
            self.channel.notify(Notify::Due);
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
        self.channel.notify(Notify::Due);
        if !self.receiving && !self.sending {
            self.stream = None;
        }
    }

    /// Closes the connection: the guest broke the protocol on its ring.
    fn fail(&mut self, engine: &Engine<'_, H>, error: Errno) {
        log::debug!(
            "domain {}: impossible indexes on a data ring; closing the connection",
            engine.guest
        );
        self.end_sending(error);
        self.end_receiving(error);
    }
}

impl<H: Host> Pump<H> for Pumps<H> {
    fn carry_out(&mut self, engine: &Engine<'_, H>, operation: Operation) -> Result<Reply, Errno> {
        let mut reply = Reply::default();
        match operation {
            Operation::SetOption(option, value) => self.set_option(option, value)?,
            Operation::GetOption(option) => reply.value = self.option(engine, option)?,
            Operation::LocalAddr => reply.addr = Some(self.stream()?.local_addr()?),
            Operation::PeerAddr => reply.addr = Some(self.stream()?.peer_addr()?),
            Operation::Shutdown(how) => self.shutdown(how)?,
            Operation::Resize(grants) => self.resize(engine, grants)?,
            Operation::Join(_) | Operation::Leave(_) => return Err(Errno::EOPNOTSUPP),
        }
        Ok(reply)
    }

    fn channel(&self) -> &EventChannel<H> {
        &self.channel
    }

    fn has_sent(&self) -> bool {
        self.has_sent
    }

    fn poll_receive(&mut self, engine: &Engine<'_, H>, cx: &mut Context<'_>) -> Poll<()> {
        while self.receiving {
            let region = self.memory.region();
            let Some(stream) = &self.stream else { break };
            let mut room = self.input.room(region);
            if matches!(&room, Ok(room) if len(room) == 0) {
                // One event per half of the ring, not one per read of the guest.
                self.input.arm(region, self.memory.layout.input.size / 2);
                room = self.input.room(region);
            }
            let room = match room {
                Ok(room) if len(&room) == 0 => return Poll::Pending,
                Ok(room) => room,
                Err(error) => {
                    self.fail(engine, error);
                    break;
                }
            };
            ready!(engine.poll_budget(cx));
            let most = ready!(engine.poll_permitted(cx, Flow::In, &mut self.places[0]));
            let received =
                ready!(stream.poll_recv(cx, split_at(room, most.min(engine.budget())).0));
            self.has_sent = false;
            engine.spend(Flow::In, *received.as_ref().unwrap_or(&0));
            match received {
                Ok(0) => self.end_receiving(self.broken.unwrap_or(Errno::ENOTCONN)),
                Ok(count) => self.channel.notify(self.input.advance(region, count)),
                Err(error) => {
                    self.end_sending(error);
                    self.end_receiving(error);
                }
            }
        }
        Poll::Ready(())
    }

    fn poll_send(&mut self, engine: &Engine<'_, H>, cx: &mut Context<'_>) -> Poll<()> {
        while self.sending {
            ready!(self.poll_send_once(engine, cx));
        }
        Poll::Ready(())
    }

    fn unsent(&mut self) -> u64 {
        if !self.sending {
            return 0;
        }
        let count = |memory: &RingMemory<H>, output: &mut Consumer| {
            output.data(memory.region()).map_or(0, |data| len(&data) as u64)
        };
        let former = self.former.as_mut().map_or(0, |(memory, output)| count(memory, output));
        former + count(&self.memory, &mut self.output)
    }

    fn progress(&self) -> (u64, Linger) {
        (self.sent, self.linger)
    }

    fn poll_drain(&mut self, engine: &Engine<'_, H>, cx: &mut Context<'_>, total: u64) -> Poll<()> {
        while self.sending && self.sent < total {
            ready!(self.poll_send_once(engine, cx));
        }
        Poll::Ready(())
    }

    fn into_ring(self) -> (DataRing<H>, Option<RingGrants>) {
        let Pumps { channel, memory, stream, resized, .. } = self;
        drop(stream);
        (DataRing { memory, channel }, resized)
    }
}
