//! The transport over TCP, for any stack that has `edge-nal`'s traits.
//!
//! The end that dials leads. A connection begins with a HELLO frame from each end, the dialling end
//! first. Each has the service's name and the end's publication. Further HELLOs follow when a
//! publication changes. After the follower is ready, the connection is the link, which has
//! other frames only. An end that leaves closes the connection.

use crate::address::{Address, Place, Service};
use crate::buffer::RemoteBuffer;
use crate::life::{Phase, Publication};
use crate::time::{Quiet, at};
use crate::transport::{Link, LinkReader, LinkWriter, Meeting, Transport};
use crate::wire::{HEADER_LEN, Header, Hello, Kind, MAX_HELLO};
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::pending;
use core::net::SocketAddr;
use core::ops::Range;
use core::pin::pin;
use edge_nal::{TcpAccept, TcpConnect, TcpSplit};
use embassy_time::{Duration, Instant, Timer, with_timeout};
use embedded_io_async::{Error, ErrorKind, ErrorType, Read, Write};
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use log::Level;
use xen::{DomId, Errno, Flag, Shared, WaitList, yield_now};

/// Bytes of the buffers of a link, one for each direction.
const BUFFER: usize = 16 << 10;

/// The most bytes of a HELLO.
const HELLO: usize = HEADER_LEN + MAX_HELLO as usize;

/// How long an end may take to say HELLO.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The first and the longest pause before dialling again.
const REDIAL: Duration = Duration::from_millis(50);
const REDIAL_MAX: Duration = Duration::from_secs(2);

/// How long a HELLO may wait for room in the socket's buffer. An end that reads has room for many.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The most visitors that say HELLO or wait for an endpoint.
const VISITORS: usize = 64;

/// How often in a row `accept` may fail, with the same pauses as dialling.
const ACCEPT_FAILURES: u32 = 32;

/// After so many operations without waiting, a task lets other tasks run.
const BURST: u32 = 32;

/// Connects through a TCP stack. Clones are the same transport.
///
/// Endpoints of [`Place::Host`] dial. Those of [`Place::Anyone`] wait for visitors, which
/// [`serve`](Tcp::serve) lets in.
pub struct Tcp<'s, S: TcpConnect, A: TcpAccept + 's> {
    stack: &'s S,
    door: Rc<Door<'s, A>>,
    /// Where others reach this end.
    here: Option<SocketAddr>,
}

impl<S: TcpConnect, A: TcpAccept> Clone for Tcp<'_, S, A> {
    fn clone(&self) -> Self {
        Tcp { stack: self.stack, door: self.door.clone(), here: self.here }
    }
}

/// Where visitors wait.
struct Door<'s, A: TcpAccept + 's> {
    /// In the order in which they came.
    visitors: RefCell<Vec<Rc<Visitor<A::Socket<'s>>>>>,
    /// Passive endpoints, which wait for a visitor.
    waiting: WaitList,
    quiet: Quiet,
}

/// Somebody who has dialled.
struct Visitor<S> {
    from: SocketAddr,
    origin: Place,
    /// What he says, and his connection.
    said: RefCell<Option<(Hello, S)>>,
    /// Until when he may say HELLO, and then wait for an endpoint.
    until: Cell<Instant>,
    gone: Flag,
}

impl<S> Visitor<S> {
    fn may_stay(&self) {
        self.until.set(Instant::now() + HELLO_TIMEOUT);
    }

    /// Whether he wants this service.
    fn wants(&self, service: &Service) -> bool {
        let said = self.said.borrow();
        said.as_ref().is_some_and(|(hello, _)| hello.service.name() == service.name())
    }
}

impl<'s, A: TcpAccept + 's> Door<'s, A> {
    /// How many visitors come from where this one does.
    fn company(&self, visitor: &Visitor<A::Socket<'s>>) -> usize {
        let visitors = self.visitors.borrow();
        visitors.iter().filter(|other| other.origin == visitor.origin).count()
    }

    /// Adds a visitor. If there are too many, the first one leaves of the origin with the most.
    fn enter(&self, visitor: Rc<Visitor<A::Socket<'s>>>) {
        if self.visitors.borrow().len() >= VISITORS {
            let visitors = self.visitors.borrow().clone();
            let crowd = visitors.iter().rev().max_by_key(|visitor| self.company(visitor));
            crowd.into_iter().for_each(|visitor| self.leave(visitor));
        }
        self.visitors.borrow_mut().push(visitor);
    }

    fn leave(&self, visitor: &Rc<Visitor<A::Socket<'s>>>) {
        self.visitors.borrow_mut().retain(|other| !Rc::ptr_eq(other, visitor));
        visitor.gone.raise();
    }

    /// Waits until somebody has been there for too long, who leaves. One timer is enough: those of
    /// the visitors would stay when they have gone.
    async fn dismiss(&self) {
        let until = |visitor: &Rc<Visitor<A::Socket<'s>>>| visitor.until.get();
        let first = self.visitors.borrow().iter().map(until).min();
        at(first.unwrap_or(Instant::MAX)).await;
        let late: Vec<_> = self.visitors.borrow().clone();
        for visitor in late.iter().filter(|visitor| until(visitor) <= Instant::now()) {
            self.leave(visitor);
        }
    }

    /// Takes a visitor who wants the service: the first one of the origin with the fewest, so that
    /// nobody waits behind many of one host.
    fn take(&self, service: &Service) -> Option<(SocketAddr, Hello, A::Socket<'s>)> {
        let visitors = self.visitors.borrow().clone();
        let wanted = visitors.iter().filter(|visitor| visitor.wants(service));
        let visitor = wanted.min_by_key(|visitor| self.company(visitor))?;
        self.leave(visitor);
        let (hello, socket) = visitor.said.take()?;
        Some((visitor.from, hello, socket))
    }
}

impl<'s, S: TcpConnect, A: TcpAccept + 's> Tcp<'s, S, A> {
    /// A transport over a stack. `here` is the address of [`serve`](Tcp::serve)'s acceptor as
    /// others see it, if there is one: they need it for the registered buffers of this end.
    pub fn new(stack: &'s S, here: Option<SocketAddr>) -> Self {
        let (visitors, waiting, quiet) = Default::default();
        let door = Door { visitors, waiting, quiet };
        Tcp { stack, door: Rc::new(door), here }
    }

    /// Lets visitors in. Ends only if nobody can be accepted any more.
    pub async fn serve(&self, acceptor: &'s A) -> A::Error {
        let mut visitors = FuturesUnordered::new();
        let (mut failures, mut rested) = (0, Instant::MIN);
        loop {
            let accept = async {
                Timer::at(rested).await;
                acceptor.accept().await
            };
            // First, so that those who have come get further however many come.
            let greet = async {
                if visitors.next().await.is_none() {
                    pending().await
                }
            };
            let (greet, dismiss) = (pin!(greet), pin!(self.door.dismiss()));
            let accepted = match select(select(greet, dismiss), pin!(accept)).await {
                Either::Left(_) => continue,
                Either::Right((accepted, _)) => accepted,
            };
            match accepted {
                Ok((from, socket)) => {
                    failures = 0;
                    visitors.push(self.greet(from, socket));
                }
                Err(error) if failures == ACCEPT_FAILURES => return error,
                Err(error) => {
                    // A visitor that was gone before he was let in, perhaps.
                    let level = self.door.quiet.level(Level::Warn);
                    log::log!(level, "cannot accept a visitor: {error:?}; trying again");
                    rested = Instant::now() + (REDIAL * (1 << failures.min(6))).min(REDIAL_MAX);
                    failures += 1;
                }
            }
            yield_now().await;
        }
    }

    /// Reads what a visitor says, and lets him wait for an endpoint.
    async fn greet(&self, from: SocketAddr, mut socket: A::Socket<'s>) {
        let (said, gone, until) = (RefCell::default(), Flag::default(), Cell::new(Instant::MAX));
        let origin = Place::Host(from).origin();
        let visitor = Rc::new(Visitor { from, origin, said, until, gone });
        visitor.may_stay();
        self.door.enter(visitor.clone());
        let stay = async {
            let mut bytes = Vec::with_capacity(HELLO);
            match hello(&mut socket, &mut bytes).await {
                Ok(hello) => {
                    visitor.said.replace(Some((hello, socket)));
                    visitor.may_stay();
                    self.door.waiting.wake_all();
                    pending().await
                }
                Err(error) => {
                    let level = self.door.quiet.level(Level::Info);
                    log::log!(level, "a visitor from {from} has said no HELLO: {error}");
                }
            }
        };
        select(pin!(visitor.gone.raised()), pin!(stay)).await;
        self.door.leave(&visitor);
    }
}

/// Takes a HELLO from the start of the bytes. `None` if it is not complete.
fn take_hello(bytes: &mut Vec<u8>) -> Result<Option<Hello>, Errno> {
    let Some(header) = bytes.first_chunk() else { return Ok(None) };
    let header = Header::from_bytes(header)?;
    if header.kind != Kind::Hello {
        return Err(Errno::EPROTO);
    }
    let end = HEADER_LEN + header.len as usize;
    let Some(text) = bytes.get(HEADER_LEN..end) else { return Ok(None) };
    let hello = Hello::from_bytes(text).map_err(|error| {
        log::debug!("{error}");
        Errno::EPROTO
    })?;
    bytes.drain(..end);
    Ok(Some(hello))
}

/// The frame of a HELLO.
fn frame(hello: &Hello) -> Vec<u8> {
    let text = hello.to_string();
    let header = Header { kind: Kind::Hello, slot: 0, len: text.len() as u32, code: 0 };
    [&header.to_bytes()[..], text.as_bytes()].concat()
}

/// Waits for a HELLO. What was received of it is in `bytes`, so this can be dropped and called
/// again.
async fn hello(socket: &mut impl Read, bytes: &mut Vec<u8>) -> Result<Hello, Errno> {
    loop {
        if let Some(hello) = take_hello(bytes)? {
            return Ok(hello);
        }
        receive(socket, bytes).await?;
    }
}

/// Appends what a socket has received. [`Errno::EPIPE`] at the end of the stream.
async fn receive(socket: &mut impl Read, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    // Not more than a HELLO: what follows it is the link's.
    let mut piece = [0; HELLO];
    let room = HELLO - bytes.len().min(HELLO);
    match socket.read(&mut piece[..room]).await.map_err(errno)? {
        0 => Err(Errno::EPIPE),
        count => {
            bytes.extend_from_slice(&piece[..count]);
            Ok(())
        }
    }
}

/// The nearest error number.
fn errno(error: impl Error) -> Errno {
    match error.kind() {
        ErrorKind::ConnectionRefused => Errno::ECONNREFUSED,
        ErrorKind::TimedOut => Errno::ETIMEDOUT,
        ErrorKind::OutOfMemory => Errno::ENOMEM,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            Errno::EPIPE
        }
        _ => Errno::EIO,
    }
}

/// A TCP connection and what was received from it too early.
struct Conversation<D, V> {
    socket: Socket<D, V>,
    received: Vec<u8>,
}

/// A socket that was dialled, or a visitor's; or one direction of it.
pub enum Socket<D, V> {
    /// That was dialled.
    Dialled(D),
    /// A visitor's.
    Visitor(V),
}

impl<D, V> ErrorType for Socket<D, V> {
    type Error = Errno;
}

impl<D: Read, V: Read> Read for Socket<D, V> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Socket::Dialled(socket) => socket.read(to).await.map_err(errno),
            Socket::Visitor(socket) => socket.read(to).await.map_err(errno),
        }
    }
}

impl<D: Write, V: Write> Write for Socket<D, V> {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        match self {
            Socket::Dialled(socket) => socket.write(from).await.map_err(errno),
            Socket::Visitor(socket) => socket.write(from).await.map_err(errno),
        }
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        match self {
            Socket::Dialled(socket) => socket.flush().await.map_err(errno),
            Socket::Visitor(socket) => socket.flush().await.map_err(errno),
        }
    }
}

/// The conversation of a meeting, which becomes its link's.
type Shelf<D, V> = Rc<RefCell<Option<Conversation<D, V>>>>;

/// Takes the conversation for a while, also if it is dropped.
struct Borrowed<'a, D, V> {
    shelf: &'a RefCell<Option<Conversation<D, V>>>,
    conversation: Option<Conversation<D, V>>,
}

impl<D, V> Drop for Borrowed<'_, D, V> {
    fn drop(&mut self) {
        *self.shelf.borrow_mut() = self.conversation.take();
    }
}

/// Two ends that have met through TCP, or will.
pub struct TcpMeeting<'s, S: TcpConnect, A: TcpAccept + 's> {
    transport: Tcp<'s, S, A>,
    address: Address,
    /// The service that both ends mean: if this end waits for visitors, the visitor's.
    service: Service,
    /// Where the other end is, if it was seen.
    place: Place,
    mine: Option<Publication>,
    shelf: Shelf<S::Socket<'s>, A::Socket<'s>>,
    /// Whether the other end was seen, and is still there as far as the driver knows.
    seen: bool,
    /// How long to wait before dialling.
    pause: Duration,
}

impl<'s, S: TcpConnect, A: TcpAccept + 's> Transport for Tcp<'s, S, A> {
    type Meeting = TcpMeeting<'s, S, A>;
    type Reserve = ();

    fn here(&self) -> (Option<DomId>, Option<SocketAddr>) {
        (None, self.here)
    }

    fn routes(&self, to: &RemoteBuffer) -> [Option<Place>; 2] {
        [to.host.map(Place::Host), None]
    }

    fn reserve(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn meet(&self, address: &Address, (): ()) -> Self::Meeting {
        TcpMeeting {
            transport: self.clone(),
            address: address.clone(),
            service: address.service.clone(),
            place: address.place,
            mine: None,
            shelf: Shelf::default(),
            seen: false,
            pause: Duration::MIN,
        }
    }
}

impl<'s, S: TcpConnect, A: TcpAccept + 's> TcpMeeting<'s, S, A> {
    /// Waits until the two ends have said HELLO. Returns the other end's.
    async fn meet(&mut self) -> Publication {
        loop {
            let (mut socket, visitor) = match self.address.place {
                Place::Host(host) => match self.dial(host).await {
                    Ok(socket) => (Socket::Dialled(socket), None),
                    Err(error) => {
                        log::debug!("{}: cannot dial: {error}", self.address);
                        continue;
                    }
                },
                Place::Anyone => {
                    let (from, hello, socket) = self.visitor().await;
                    self.place = Place::Host(from);
                    self.service = hello.service.clone();
                    (Socket::Visitor(socket), Some(hello))
                }
                Place::Domain(_) => {
                    log::error!("{}: TCP reaches no domains", self.address);
                    pending().await
                }
            };
            match with_timeout(HELLO_TIMEOUT, self.greet(&mut socket, visitor)).await {
                Ok(Ok((other, received))) => {
                    *self.shelf.borrow_mut() = Some(Conversation { socket, received });
                    return other;
                }
                Ok(Err(error)) => log::debug!("{}: no HELLO: {error}", self.address),
                Err(_) => log::debug!("{}: no HELLO in time", self.address),
            }
        }
    }

    async fn dial(&mut self, host: SocketAddr) -> Result<S::Socket<'s>, Errno> {
        Timer::after(self.pause).await;
        self.pause = (self.pause * 2).clamp(REDIAL, REDIAL_MAX);
        let stack: &'s S = self.transport.stack;
        stack.connect(host).await.map_err(errno)
    }

    /// Waits for somebody who wants this service.
    async fn visitor(&self) -> (SocketAddr, Hello, A::Socket<'s>) {
        let door = &self.transport.door;
        door.waiting.until(|| door.take(&self.address.service)).await
    }

    /// Says HELLO, and hears it. Returns also what was received after it.
    async fn greet(
        &self,
        socket: &mut Socket<S::Socket<'s>, A::Socket<'s>>,
        visitor: Option<Hello>,
    ) -> Result<(Publication, Vec<u8>), Errno> {
        let service = self.service.clone();
        let publication = self.mine.expect("an end publishes before it meets");
        send(socket, &frame(&Hello { service, publication })).await?;
        let mut received = Vec::with_capacity(HELLO);
        let hello = match visitor {
            Some(hello) => hello,
            None => hello(socket, &mut received).await?,
        };
        Ok((hello.publication, received))
    }
}

impl<'s, S: TcpConnect, A: TcpAccept + 's> Meeting for TcpMeeting<'s, S, A> {
    type Link = TcpLink<S::Socket<'s>, A::Socket<'s>>;
    type Reserve = ();

    async fn changed(&mut self) -> Option<Publication> {
        if self.mine.is_some_and(|mine| mine.phase.is_connected()) {
            // The link has the connection, and notices its end.
            pending::<()>().await;
        }
        let mut borrowed = Borrowed { shelf: &self.shelf, conversation: self.shelf.take() };
        if let Some(Conversation { socket, received }) = &mut borrowed.conversation {
            match hello(socket, received).await {
                Ok(hello) => return Some(hello.publication),
                Err(error) => log::debug!("{}: no HELLO: {error}", self.address),
            }
            borrowed.conversation = None;
        }
        drop(borrowed);
        if core::mem::take(&mut self.seen) {
            return None;
        }
        let other = self.meet().await;
        self.seen = true;
        self.pause = REDIAL;
        Some(other)
    }

    async fn publish(&mut self, mine: &Publication) -> Result<(), Errno> {
        self.mine = Some(*mine);
        let mut conversation = self.shelf.take();
        match (mine.phase, &mut conversation) {
            (Phase::Leaving, _) | (_, None) => return Ok(()),
            // The follower is ready and needs no other word.
            (Phase::Up(_), _) => {}
            (_, Some(Conversation { socket, .. })) => {
                let service = self.service.clone();
                let hello = frame(&Hello { service, publication: *mine });
                let sent = with_timeout(SEND_TIMEOUT, send(socket, &hello)).await;
                if let Err(error) = sent.unwrap_or(Err(Errno::ETIMEDOUT)) {
                    log::debug!("{}: cannot publish: {error}", self.address);
                    return Ok(());
                }
            }
        }
        *self.shelf.borrow_mut() = conversation;
        Ok(())
    }

    fn place(&self) -> Place {
        self.place
    }

    fn instance(&self) -> u32 {
        self.service.instance()
    }

    fn leads(&self) -> bool {
        matches!(self.address.place, Place::Host(_))
    }

    async fn link(&mut self) -> Result<Self::Link, Errno> {
        let (received, unsent) = (Buffer::new()?, Buffer::new()?);
        Ok(TcpLink { shelf: self.shelf.clone(), conversation: None, received, unsent })
    }

    async fn dismiss(&mut self) {
        drop(self.shelf.take());
        self.seen = false;
    }

    async fn part(self) {}
}

/// A TCP connection as a link.
pub struct TcpLink<D, V> {
    /// Where the connection is until its first use.
    shelf: Shelf<D, V>,
    conversation: Option<Conversation<D, V>>,
    received: Buffer,
    unsent: Buffer,
}

/// Bytes between a socket and a link. It is valid whenever an access to the socket is given up.
struct Buffer {
    bytes: Vec<u8>,
    /// The bytes that were put in and not taken out.
    used: Range<usize>,
    /// How often the socket was used without a pause.
    burst: u32,
}

impl Buffer {
    fn new() -> Result<Self, Errno> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(BUFFER).map_err(|_| Errno::ENOMEM)?;
        bytes.resize(BUFFER, 0);
        Ok(Buffer { bytes, used: 0..0, burst: 0 })
    }

    /// Lets other tasks run from time to time. The socket may always be ready.
    async fn pause(&mut self) {
        self.burst += 1;
        if self.burst == BURST {
            self.burst = 0;
            yield_now().await;
        }
    }

    fn taken(&mut self, count: usize) {
        self.used.start += count;
        if self.used.is_empty() {
            self.used = 0..0;
        }
    }
}

impl<D, V> Drop for TcpLink<D, V> {
    fn drop(&mut self) {
        // Not used yet, perhaps.
        drop(self.shelf.take());
    }
}

impl<D, V> Link for TcpLink<D, V>
where
    D: Read + Write + TcpSplit,
    V: Read + Write + TcpSplit,
{
    type Reader<'a>
        = TcpReader<'a, Socket<D::Read<'a>, V::Read<'a>>>
    where
        Self: 'a;
    type Writer<'a>
        = TcpWriter<'a, Socket<D::Write<'a>, V::Write<'a>>>
    where
        Self: 'a;

    fn split(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>) {
        if let Some(conversation) = self.shelf.take() {
            let early = &conversation.received;
            self.received.bytes[..early.len()].copy_from_slice(early);
            self.received.used = 0..early.len();
            self.conversation = Some(conversation);
        }
        let (read, write) = match self.conversation.as_mut().map(|with| &mut with.socket) {
            Some(Socket::Dialled(socket)) => {
                let (read, write) = socket.split();
                (Some(Socket::Dialled(read)), Some(Socket::Dialled(write)))
            }
            Some(Socket::Visitor(socket)) => {
                let (read, write) = socket.split();
                (Some(Socket::Visitor(read)), Some(Socket::Visitor(write)))
            }
            None => (None, None),
        };
        let reader = TcpReader { socket: read, received: &mut self.received };
        (reader, TcpWriter { socket: write, unsent: &mut self.unsent })
    }
}

/// The stream from the other end.
pub struct TcpReader<'a, S> {
    /// `None` if the connection is gone.
    socket: Option<S>,
    received: &'a mut Buffer,
}

impl<S: Read<Error = Errno>> LinkReader for TcpReader<'_, S> {
    async fn read(&mut self, to: Shared<'_>) -> Result<usize, Errno> {
        if self.received.used.start == self.received.used.end {
            self.received.pause().await;
        }
        let Buffer { bytes, used, .. } = &mut *self.received;
        if used.start == used.end {
            match self.socket.as_mut().ok_or(Errno::EPIPE)?.read(bytes).await? {
                0 => return Err(Errno::EPIPE),
                count => *used = 0..count,
            }
        }
        let count = to.len().min(used.len());
        to.write(0, &bytes[used.start..used.start + count]);
        self.received.taken(count);
        Ok(count)
    }
}

/// The stream to the other end.
pub struct TcpWriter<'a, S> {
    /// `None` if the connection is gone.
    socket: Option<S>,
    unsent: &'a mut Buffer,
}

impl<S: Write<Error = Errno>> LinkWriter for TcpWriter<'_, S> {
    async fn write(&mut self, from: Shared<'_>) -> Result<usize, Errno> {
        if self.unsent.used.end == BUFFER {
            self.send().await?;
        }
        let Buffer { bytes, used, .. } = &mut *self.unsent;
        let count = from.len().min(BUFFER - used.end);
        from.read(0, &mut bytes[used.end..used.end + count]);
        used.end += count;
        Ok(count)
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        self.send().await?;
        self.socket.as_mut().ok_or(Errno::EPIPE)?.flush().await
    }
}

impl<S: Write<Error = Errno>> TcpWriter<'_, S> {
    /// Gives all bytes to the socket.
    async fn send(&mut self) -> Result<(), Errno> {
        while !self.unsent.used.is_empty() {
            self.unsent.pause().await;
            let bytes = &self.unsent.bytes[self.unsent.used.clone()];
            match self.socket.as_mut().ok_or(Errno::EPIPE)?.write(bytes).await? {
                0 => return Err(Errno::EPIPE),
                count => self.unsent.taken(count),
            }
        }
        Ok(())
    }
}

async fn send(socket: &mut impl Write, bytes: &[u8]) -> Result<(), Errno> {
    socket.write_all(bytes).await.map_err(errno)?;
    socket.flush().await.map_err(errno)
}
