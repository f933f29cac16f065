//! An open socket of datagrams, from its OPEN to the response to its RELEASE, and the records of
//! its ring.
//!
//! A record that the guest wrote is read once, and checked. Several go to the host in one call, and
//! several come from it. An error of a datagram becomes a record; without room for it, the latest
//! error waits.

use super::account::Flow;
use super::connection::{Linger, Pump, serve};
use super::data_ring::{DataRing, EventChannel, RingMemory};
use super::engine::{Engine, OPENING, Reply};
use super::gate::Place;
use super::host::{
    Datagrams, DatagramsOf, Host, Network, Outgoing, Quota, Ring, Sent, Socket as _,
};
use super::socket::{DatagramSocket, Mailbox, Operation, Settings, Socket};
use crate::ring::{Consumer, Notify, NotifyPolicy, Producer, len, split_at};
use crate::wire::{Family, Header, RECORD_HEADER, Record, RingGrants, RingOffer, SocketOption};
use alloc::rc::{Rc, Weak};
use core::net::SocketAddr;
use core::sync::atomic::Ordering::Relaxed;
use core::task::{Context, Poll, ready};
use xen::{Errno, Shared};

/// The most datagrams of one call of the host.
const BATCH: usize = 32;

/// The work of a datagram besides its bytes and its part of the call.
const DATAGRAM: usize = 8 << 10;

/// Opens a socket's ring and answers `opening`, moves datagrams until the guest requests the
/// RELEASE, and answers that. If it cannot be opened, the socket is what it was.
pub(super) async fn run<H: Host>(
    engine: &Engine<'_, H>,
    mailbox: Rc<Mailbox>,
    mut former: DatagramSocket<H>,
    peer: Option<SocketAddr>,
    offer: RingOffer,
    opening: Header,
) {
    engine.work(OPENING).await;
    let release = match open(engine, &mut former, peer, &offer) {
        Ok(pump) => {
            mailbox.open();
            engine.answer(opening, Ok(Reply { value: 0, addr: pump.local_addr().ok() }));
            serve(engine, &mailbox, pump, offer).await
        }
        Err(error) => {
            engine.answer(opening, Err(error));
            let Some(release) = mailbox.take_release() else {
                let former = Socket::Datagrams(former);
                return engine.sockets.borrow_mut().replace(opening.socket, former);
            };
            drop(former);
            release
        }
    };
    engine.sockets.borrow_mut().remove(opening.socket);
    engine.answer(release.header, Ok(Reply::default()));
}

/// Opens a socket, which is then the pump's.
fn open<H: Host>(
    engine: &Engine<'_, H>,
    former: &mut DatagramSocket<H>,
    peer: Option<SocketAddr>,
    offer: &RingOffer,
) -> Result<DatagramPump<H>, Errno> {
    let settings = match former {
        DatagramSocket::New(settings) | DatagramSocket::Bound(_, settings) => *settings,
        // The caller opens only what is not open.
        DatagramSocket::Open(_) => return Err(Errno::EISCONN),
    };
    peer.map_or(Ok(()), |peer| settings.check_family(peer))?;
    engine.count_connection()?;
    let ring = engine.rings.attach(offer)?;
    let family = settings.family.unwrap_or(Family::V4);
    if let DatagramSocket::Bound(socket, _) = former {
        peer.map_or(Ok(()), |peer| socket.connect(peer))?;
    }
    let socket = match core::mem::replace(former, DatagramSocket::New(settings)) {
        DatagramSocket::Bound(socket, _) => socket,
        _ => {
            let network = engine.host.network();
            let socket = network.datagrams(engine.guest, family, None, &settings.options)?;
            peer.map_or(Ok(()), |peer| socket.connect(peer))?;
            socket
        }
    };
    Ok(DatagramPump::new(ring, socket, settings, family, peer))
}

/// Moves datagrams between a socket and its ring.
struct DatagramPump<H: Host> {
    channel: EventChannel<H>,
    memory: Rc<RingMemory<H>>,
    input: Producer,
    output: Consumer,
    /// The socket, until it ends.
    socket: Option<DatagramsOf<H>>,
    family: Family,
    peer: Option<SocketAddr>,
    /// Whether the last operation was to send.
    has_sent: bool,
    /// The places of `in` and `out` at their gates.
    places: [Place; 2],
    /// The room that the host needs for the next datagram.
    wanted: usize,
    /// The latest error, with the destination of its datagram, until its record is in the ring.
    error: Option<(Errno, Option<SocketAddr>)>,
    /// The bytes of the records that are done with.
    sent: u64,
    linger: Linger,
}

/// The records at the start of what the guest wrote.
struct Batch<'a> {
    datagrams: [Outgoing<'a>; BATCH],
    /// The size of each record.
    sizes: [usize; BATCH],
    count: usize,
    /// The bytes of the payloads.
    bytes: usize,
}

/// Why the first record cannot be sent.
enum Unfit {
    /// The guest broke the protocol.
    Violation,
    /// The datagram of so many bytes of the ring has an address that this socket cannot have.
    Address(usize, Errno, Option<SocketAddr>),
}

impl<H: Host> DatagramPump<H> {
    fn new(
        ring: DataRing<H>,
        socket: DatagramsOf<H>,
        settings: Settings,
        family: Family,
        peer: Option<SocketAddr>,
    ) -> Self {
        let DataRing { memory, channel } = ring;
        socket.set_ring(Rc::downgrade(&memory) as Weak<dyn Ring>);
        DatagramPump {
            channel,
            input: Producer::new(memory.layout.input),
            output: Consumer::new(memory.layout.output, NotifyPolicy::FullOrEmpty),
            memory,
            socket: Some(socket),
            family,
            peer,
            has_sent: false,
            places: Default::default(),
            wanted: RECORD_HEADER,
            error: None,
            sent: 0,
            linger: Linger(settings.options.get(SocketOption::Linger)),
        }
    }

    fn socket(&self) -> Result<&DatagramsOf<H>, Errno> {
        self.socket.as_ref().ok_or(Errno::ENOTCONN)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        self.socket()?.local_addr()
    }

    /// Room for at least so many bytes, or none. Then the guest sends an event.
    fn room(&mut self, least: usize) -> Result<Option<[Shared<'_>; 2]>, Errno> {
        let region = self.memory.region();
        if len(&self.input.room(region)?) < least {
            // One event per half of the ring, not one per datagram that the guest reads.
            let half = self.memory.layout.input.size / 2;
            self.input.arm(region, half.max(least as u32));
        }
        Ok(Some(self.input.room(region)?).filter(|room| len(room) >= least))
    }

    /// Puts the record of the error into the ring. Returns whether none waits any more.
    fn put_error(&mut self) -> Result<bool, Errno> {
        let Some((error, addr)) = self.error else { return Ok(true) };
        let Some(room) = self.room(RECORD_HEADER)? else { return Ok(false) };
        Record::error(error, addr).put(&room);
        self.error = None;
        let notify = self.input.advance(self.memory.region(), RECORD_HEADER);
        self.channel.notify(notify);
        Ok(true)
    }

    /// Receives one batch. An error ends the socket.
    fn poll_receive_once(
        &mut self,
        engine: &Engine<'_, H>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Errno>> {
        if !self.put_error()? {
            return Poll::Pending;
        }
        let wanted = self.wanted;
        if self.room(wanted)?.is_none() {
            return Poll::Pending;
        }
        ready!(engine.poll_budget(cx));
        let most = ready!(engine.poll_permitted(cx, Flow::In, &mut self.places[0]));
        let quota =
            Quota { longest: Record::longest(self.memory.layout.input.size), ..engine.quota(most) };
        let region = self.memory.region();
        let room = self.input.room(region)?;
        let Some(socket) = &self.socket else { return Poll::Pending };
        let received = ready!(socket.poll_recv(cx, room, &quota))?;
        self.has_sent = false;
        engine.spend(Flow::In, received.bytes);
        engine.charge(DATAGRAM * received.datagrams);
        region.indexes.store_u32(self.memory.layout.dropped, received.dropped, Relaxed);
        self.channel.notify(self.input.advance(region, received.used));
        self.wanted = received.wanted.max(RECORD_HEADER);
        if let Some(error) = received.error {
            self.error = Some((error, self.peer));
        }
        Poll::Ready(Ok(()))
    }

    /// Sends one batch. An error ends the socket.
    fn poll_send_once(
        &mut self,
        engine: &Engine<'_, H>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Errno>> {
        let region = self.memory.region();
        let mut data = self.output.data(region)?;
        if len(&data) == 0 {
            self.output.arm(region);
            data = self.output.data(region)?;
        }
        if len(&data) == 0 {
            return Poll::Pending;
        }
        ready!(engine.poll_budget(cx));
        let most = ready!(engine.poll_permitted(cx, Flow::Out, &mut self.places[1]));
        let (used, bytes, datagrams, error) = match self.gather(data, &engine.quota(most)) {
            Ok(batch) => {
                let Some(socket) = &self.socket else { return Poll::Pending };
                let Sent { datagrams, error } =
                    ready!(socket.poll_send(cx, &batch.datagrams[..batch.count]))?;
                let to = batch.datagrams[0].to.or(self.peer);
                let used = batch.sizes[..datagrams].iter().sum();
                let sent = &batch.datagrams[..datagrams];
                let bytes = sent.iter().map(|datagram| len(&datagram.payload)).sum();
                (used, bytes, datagrams, error.map(|error| (error, to)))
            }
            Err(Unfit::Violation) => {
                log::debug!("domain {}: a malformed record; closing the socket", engine.guest);
                return Poll::Ready(Err(Errno::EPROTO));
            }
            Err(Unfit::Address(size, error, to)) => (size, 0, 1, Some((error, to))),
        };
        self.has_sent = true;
        engine.spend(Flow::Out, bytes);
        engine.charge(DATAGRAM * datagrams);
        self.sent += used as u64;
        self.channel.notify(self.output.advance(region, used));
        if error.is_some() {
            self.error = error;
            self.put_error()?;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes apart the first records, each of which is read once.
    fn gather<'a>(&self, data: [Shared<'a>; 2], quota: &Quota) -> Result<Batch<'a>, Unfit> {
        let none = Outgoing { to: None, payload: split_at(data, 0).0 };
        let mut batch = Batch { datagrams: [none; BATCH], sizes: [0; BATCH], count: 0, bytes: 0 };
        let mut rest = data;
        while batch.count < quota.datagrams && (batch.count == 0 || batch.bytes < quota.bytes) {
            let (size, datagram) = match self.next(&mut rest) {
                Ok(None) => break,
                Ok(Some(next)) => next,
                // First those before it.
                Err(_) if batch.count > 0 => break,
                Err(unfit) => return Err(unfit),
            };
            batch.bytes += len(&datagram.payload);
            batch.sizes[batch.count] = size;
            batch.datagrams[batch.count] = datagram;
            batch.count += 1;
        }
        Ok(batch)
    }

    /// The first record, and the size of it all.
    fn next<'a>(&self, rest: &mut [Shared<'a>; 2]) -> Result<Option<(usize, Outgoing<'a>)>, Unfit> {
        let next = Record::next(*rest).map_err(|_| Unfit::Violation)?;
        let Some(next) = next else { return Ok(None) };
        let Record { size, addr, error, .. } = next.record;
        if error.is_some() {
            return Err(Unfit::Violation);
        }
        let size = size as usize;
        let to = match (self.peer, addr) {
            (Some(_), _) => Ok(None),
            (None, None) => Err(Errno::EDESTADDRREQ),
            (None, Some(to)) if Family::of(to) != self.family => Err(Errno::EAFNOSUPPORT),
            (None, to) => Ok(to),
        };
        let to = to.map_err(|error| Unfit::Address(size, error, addr))?;
        *rest = next.rest;
        Ok(Some((size, Outgoing { to, payload: next.payload })))
    }

    fn end(&mut self, error: Errno) {
        self.socket = None;
        let region = self.memory.region();
        self.input.set_error(region, error);
        self.output.set_error(region, error);
        self.channel.notify(Notify::Due);
    }
}

impl<H: Host> Pump<H> for DatagramPump<H> {
    fn carry_out(&mut self, engine: &Engine<'_, H>, operation: Operation) -> Result<Reply, Errno> {
        let mut reply = Reply::default();
        match operation {
            Operation::SetOption(option, value) => {
                self.socket()?.set_option(option, value)?;
                if option == SocketOption::Linger {
                    self.linger = Linger(Some(value));
                }
            }
            Operation::GetOption(SocketOption::Linger) => reply.value = self.linger.value(engine),
            Operation::GetOption(option) => reply.value = self.socket()?.option(option)?,
            Operation::LocalAddr => reply.addr = Some(self.local_addr()?),
            Operation::PeerAddr => reply.addr = Some(self.peer.ok_or(Errno::ENOTCONN)?),
            Operation::Join(group) => self.socket()?.join(group)?,
            Operation::Leave(group) => self.socket()?.leave(group)?,
            Operation::Shutdown(_) | Operation::Resize(_) => return Err(Errno::EOPNOTSUPP),
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
        while self.socket.is_some() {
            if let Err(error) = ready!(self.poll_receive_once(engine, cx)) {
                self.end(error);
            }
        }
        Poll::Ready(())
    }

    fn poll_send(&mut self, engine: &Engine<'_, H>, cx: &mut Context<'_>) -> Poll<()> {
        while self.socket.is_some() {
            if let Err(error) = ready!(self.poll_send_once(engine, cx)) {
                self.end(error);
            }
        }
        Poll::Ready(())
    }

    fn unsent(&mut self) -> u64 {
        match self.socket {
            Some(_) => self.output.data(self.memory.region()).map_or(0, |data| len(&data) as u64),
            None => 0,
        }
    }

    fn progress(&self) -> (u64, Linger) {
        (self.sent, self.linger)
    }

    fn poll_drain(&mut self, engine: &Engine<'_, H>, cx: &mut Context<'_>, total: u64) -> Poll<()> {
        while self.socket.is_some() && self.sent < total {
            if let Err(error) = ready!(self.poll_send_once(engine, cx)) {
                self.end(error);
            }
        }
        Poll::Ready(())
    }

    fn into_ring(self) -> (DataRing<H>, Option<RingGrants>) {
        let DatagramPump { channel, memory, socket, .. } = self;
        drop(socket);
        (DataRing { memory, channel }, None)
    }
}

impl<H: Host> Engine<'_, H> {
    /// What one call may move, of so many bytes that are permitted.
    fn quota(&self, permitted: usize) -> Quota {
        let budget = self.budget();
        let datagrams = (budget / DATAGRAM).clamp(1, BATCH);
        Quota { datagrams, bytes: permitted.min(budget), longest: usize::MAX }
    }
}
