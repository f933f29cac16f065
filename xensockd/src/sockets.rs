//! Linux's sockets on the thread's reactor: none blocks.
//!
//! A call that moves less than it could leaves the socket empty or full, so the next call waits for
//! the reactor's word and not for EAGAIN.

use crate::control::{Kind, SocketStatus};
use crate::datagrams::{self, DatagramSocket, Spare};
use crate::guests::{Guest, Guests, Listed, Open};
use crate::handover::Legacy;
use crate::linux;
use crate::listeners::{Claim, Holder, Listeners, Taken};
use crate::options;
use crate::rules::is_same;
use crate::usage::Usage;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{self, sockopt};
use rustix::time::{ClockId, clock_gettime};
use std::cell::{Cell, OnceCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use xen::{DomId, Errno, Shared, Side};
use xen_linux::runtime::{READABLE, Reactor, SOCKET, Watched};
use xen_linux::{Count, Ticket, errno, tcp};
use xensock::back::{Listener, Network, Ring, Socket, Stream};
use xensock::wire::{Family, Options, Shutdown, SocketOption};

/// What a guest asks for, in messages.
const SOCKET_CALL: &str = "a socket";

/// How many ports are tried for a socket that may have any.
const PORTS: usize = 8;

/// The time since the host booted, which may be some milliseconds ago. Reading it is never a system
/// call, while a PV domain may need one for the exact time.
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Opens sockets, as the guests' rules allow.
#[derive(Clone)]
pub struct Sockets {
    reactor: Reactor,
    counter: Arc<Count>,
    guests: Guests,
    spare: Spare,
}

impl Sockets {
    /// Sockets of these guests, counted in `counter`.
    pub fn new(reactor: &Reactor, counter: Arc<Count>, guests: Guests) -> Self {
        Sockets { reactor: reactor.clone(), counter, guests, spare: Spare::default() }
    }

    /// The thread's reactor.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// The thread's guests.
    pub fn guests(&self) -> &Guests {
        &self.guests
    }
}

impl Network for Sockets {
    type Stream = Connected;
    type Listener = Bound;
    type Datagrams = DatagramSocket;

    async fn connect(
        &self,
        guest: DomId,
        to: SocketAddr,
        options: &Options,
    ) -> Result<Connected, Errno> {
        let guest = self.guests.get(guest)?;
        guest.check_connect(to)?;
        let short = |error: &Errno| guest.report_shortage(SOCKET_CALL, *error);
        let ticket = take(&self.counter).inspect_err(short)?;
        let socket = tcp::open(to).inspect_err(short)?;
        set_all(&guest, &socket, options, set)?;
        let socket = tcp::connect(&self.reactor, socket, to).await.inspect_err(short)?;
        // The rules may have changed, and only Linux knows all of this domain's addresses.
        let from = tcp::local_addr(&socket)?;
        guest.check_reached(to, from)?;
        Ok(Connected::new(socket, to, Origin::Connect(to, from), guest, ticket))
    }

    fn bind(&self, guest: DomId, asked: SocketAddr, options: &Options) -> Result<Bound, Errno> {
        let guest = self.guests.get(guest)?;
        let short = |error: &Errno| guest.report_shortage(SOCKET_CALL, *error);
        let ticket = take(&self.counter).inspect_err(short)?;
        let (socket, asked, claim) = bind(&guest, asked, options, &TCP, |at| {
            let socket = tcp::open(at).inspect_err(short)?;
            sockopt::set_socket_reuseaddr(&socket, true).map_err(errno)?;
            set_all(&guest, &socket, options, set)?;
            Ok(socket)
        })?;
        let inner = Rc::new(Listening {
            socket: Rc::new(socket),
            reactor: self.reactor.clone(),
            ready: OnceCell::new(),
            asked,
            claim,
            since: now(),
            ended: Cell::new(false),
            leaving: guest.leaving().clone(),
        });
        let open: Weak<dyn Open> = Rc::downgrade(&inner) as _;
        let listed = guest.list(open);
        Ok(Bound { inner, guest, _listed: listed, counter: self.counter.clone(), _ticket: ticket })
    }

    fn datagrams(
        &self,
        guest: DomId,
        family: Family,
        asked: Option<SocketAddr>,
        options: &Options,
    ) -> Result<DatagramSocket, Errno> {
        let guest = self.guests.get(guest)?;
        let short = |error: &Errno| guest.report_shortage(SOCKET_CALL, *error);
        let ticket = take(&self.counter).inspect_err(short)?;
        let open = || {
            let socket = datagrams::open(family).inspect_err(short)?;
            datagrams::prepare(&socket, family)?;
            set_all(&guest, &socket, options, set_datagram_option)?;
            Ok(socket)
        };
        let open_at = |at: SocketAddr| {
            let socket = open()?;
            if at.ip().is_multicast() {
                // It gets only what is sent to the group, as each other socket there does.
                guest.check_join(at)?;
                sockopt::set_socket_reuseaddr(&socket, true).map_err(errno)?;
            }
            Ok(socket)
        };
        let (socket, asked, claim) = match asked {
            Some(asked) => {
                let (socket, asked, claim) = bind(&guest, asked, options, &UDP, open_at)?;
                (socket, Some(asked), Some(claim))
            }
            None => (bind_anywhere(&guest, family, open)?, None, None),
        };
        let common = (&self.reactor, self.spare.clone());
        DatagramSocket::new(socket, (asked, claim), (guest.clone(), ticket), common)
            .inspect_err(short)
    }
}

/// What differs between the protocols where sockets are bound.
struct Transport {
    /// Who has which address.
    listeners: fn(&Guest) -> &Arc<Listeners>,
    /// The letter of the protocol for `ss`.
    letter: char,
    /// What a socket does at its address.
    verb: &'static str,
}

const TCP: Transport = Transport { listeners: Guest::listeners, letter: 't', verb: "listen" };
const UDP: Transport = Transport { listeners: Guest::datagrams, letter: 'u', verb: "receive" };

/// Opens a socket and binds it where the rules say, which may be an address of the other family.
/// Returns it, the address that the guest asked for with the port that it got, and what keeps
/// others from it.
fn bind(
    guest: &Guest,
    asked: SocketAddr,
    options: &Options,
    transport: &Transport,
    open: impl FnOnce(SocketAddr) -> Result<OwnedFd, Errno>,
) -> Result<(OwnedFd, SocketAddr, Claim), Errno> {
    // Linux chooses a port for port 0, and the rules decide about that.
    let any = asked.port() == 0;
    let at = if any { asked } else { guest.check_listen(asked)? };
    let mut socket = open(at)?;
    let sharing = guest.sharing().filter(|_| !any);
    if sharing.is_some() {
        sockopt::set_socket_reuseport(&socket, true).map_err(errno)?;
    }
    let reuses = options.get(SocketOption::ReusePort) == Some(1);
    let holder = Holder { guest: guest.id(), name: guest.to_string(), at, sharing, reuses };
    let bound = (transport.listeners)(guest).claim(holder, |kept| {
        match kept {
            Some(kept) => {
                set_all(guest, &kept, options, set)?;
                socket = kept;
            }
            None => net::bind(&socket, &at).map_err(errno)?,
        }
        tcp::local_addr(&socket)
    });
    let claim = bound.map_err(|taken| report(guest, at, taken, transport))?;
    let asked = if any { claim.at() } else { asked };
    if any && !is_same(guest.check_listen(asked)?, asked) {
        return Err(Errno::EACCES);
    }
    Ok((socket, asked, claim))
}

/// Opens a socket of datagrams and binds it to any port that is not another guest's.
fn bind_anywhere(
    guest: &Guest,
    family: Family,
    open: impl Fn() -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    for _ in 0..PORTS {
        let socket = open()?;
        net::bind(&socket, &datagrams::unspecified(family)).map_err(errno)?;
        if !guest.rules().is_reserved(tcp::local_addr(&socket)?) {
            return Ok(socket);
        }
    }
    Err(Errno::EADDRINUSE)
}

/// Counts another socket. [`Errno::EMFILE`] if the daemon needs the files that are left.
fn take(counter: &Arc<Count>) -> Result<Ticket, Errno> {
    Ticket::take(counter).ok_or(Errno::EMFILE)
}

/// Sets what the rules and the guest want before a socket is used. Connections inherit it from
/// their listener.
fn set_all(
    guest: &Guest,
    socket: &OwnedFd,
    options: &Options,
    set: impl Fn(&Guest, &OwnedFd, SocketOption, u32) -> Result<(), Errno>,
) -> Result<(), Errno> {
    if let Some(bytes) = guest.rules().socket_buffer {
        // Linux doubles the number, for its own structures.
        let bytes = bytes as usize / 2;
        sockopt::set_socket_recv_buffer_size(socket, bytes).map_err(errno)?;
        sockopt::set_socket_send_buffer_size(socket, bytes).map_err(errno)?;
    }
    options.iter().try_for_each(|(option, value)| set(guest, socket, option, value))
}

/// Sets an option, if the guest may.
fn set(guest: &Guest, socket: &OwnedFd, option: SocketOption, value: u32) -> Result<(), Errno> {
    if option == SocketOption::ReusePort && value != 0 {
        guest.check_sharing()?;
    }
    options::set(socket, option, value).map_err(errno)
}

/// The same for a socket of datagrams. With `SO_REUSEADDR` it would get those of another program
/// that has set that, too.
pub fn set_datagram_option(
    guest: &Guest,
    socket: &OwnedFd,
    option: SocketOption,
    value: u32,
) -> Result<(), Errno> {
    match option {
        SocketOption::ReuseAddr if value != 0 => Err(Errno::EPERM),
        _ => set(guest, socket, option, value),
    }
}

/// Logs why an address cannot be bound.
fn report(guest: &Guest, at: SocketAddr, taken: Taken, transport: &Transport) -> Errno {
    let Transport { letter, verb, .. } = transport;
    let (reason, error) = match taken {
        Taken::By(other) => (format!("{other} {verb}s there"), Errno::EADDRINUSE),
        Taken::Refused(error @ Errno::EADDRINUSE) => {
            let port = at.port();
            let reason = format!("another program does; `ss -l{letter}np sport = {port}` shows it");
            (reason, error)
        }
        Taken::Refused(error @ Errno::EADDRNOTAVAIL) => {
            ("this domain does not have the address".into(), error)
        }
        Taken::Refused(error @ Errno::EACCES) => {
            ("the daemon lacks the capability CAP_NET_BIND_SERVICE".into(), error)
        }
        Taken::Refused(error) => (error.to_string(), error),
    };
    guest.report_taken(verb, at, &reason);
    error
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// The guest has connected to the first address, from the second.
    Connect(SocketAddr, SocketAddr),
    /// A peer has connected to a listener, which the guest asked for at the first address, and
    /// which is at the second.
    Accept(SocketAddr, SocketAddr),
}

/// A connected socket.
pub struct Connected {
    inner: Rc<Connection>,
    guest: Rc<Guest>,
    _listed: Listed,
    _ticket: Ticket,
}

struct Connection {
    socket: Watched,
    peer: SocketAddr,
    origin: Origin,
    usage: Usage,
}

impl Connected {
    fn new(
        socket: Watched,
        peer: SocketAddr,
        origin: Origin,
        guest: Rc<Guest>,
        ticket: Ticket,
    ) -> Self {
        let inner = Rc::new(Connection { socket, peer, origin, usage: Usage::new() });
        let traffic = guest.traffic();
        let count = match origin {
            Origin::Connect(..) => &traffic.connected,
            Origin::Accept(..) => &traffic.accepted,
        };
        count.set(count.get() + 1);
        let open: Weak<dyn Open> = Rc::downgrade(&inner) as _;
        Connected { inner, _listed: guest.list(open), guest, _ticket: ticket }
    }
}

impl Connection {
    /// The result of an operation, which is added to the totals. To Linux, what the operator ended
    /// looks as if the peer had closed it.
    fn result(&self, totals: [&Cell<u64>; 2], result: io::Result<usize>) -> Result<usize, Errno> {
        match result {
            Ok(0) | Err(_) if self.usage.ended.get() => return Err(Errno::EACCES),
            Ok(count) => totals.iter().for_each(|total| total.set(total.get() + count as u64)),
            Err(_) => {}
        }
        result.map_err(errno)
    }
}

impl Open for Connection {
    fn is_allowed(&self, guest: &Guest) -> bool {
        match self.origin {
            Origin::Connect(to, from) => guest.is_reach_allowed(to, from),
            Origin::Accept(asked, at) => {
                guest.rules().listens(asked).is_some_and(|now| is_same(now, at))
            }
        }
    }

    fn end(&self) {
        self.usage.ended.set(true);
        // The peer gets a reset when the socket is closed. Shutting it down wakes its task.
        let _ = options::set(&self.socket, SocketOption::Linger, 0);
        let _ = net::shutdown(&*self.socket, net::Shutdown::Both);
    }

    fn status(&self, number: u64) -> SocketStatus {
        let kind = match self.origin {
            Origin::Connect(..) => Kind::Connect,
            Origin::Accept(..) => Kind::Accept,
        };
        self.usage.status(number, kind, tcp::local_addr(&self.socket).ok(), self.peer)
    }
}

impl Stream for Connected {
    fn poll_recv(&self, cx: &mut Context<'_>, room: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        let Connection { socket, .. } = &*self.inner;
        let size = xensock::ring::len(&room);
        let result = ready!(socket.poll_io(cx, Side::Rx, |socket| linux::receive(socket, room)));
        if matches!(result, Ok(count) if count < size) {
            socket.clear_after_short_read();
        }
        let totals = [&self.inner.usage.received, &self.guest.traffic().received];
        Poll::Ready(self.inner.result(totals, result))
    }

    fn poll_send(&self, cx: &mut Context<'_>, data: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        let Connection { socket, .. } = &*self.inner;
        let size = xensock::ring::len(&data);
        let result = ready!(socket.poll_io(cx, Side::Tx, |socket| linux::send(socket, data)));
        if matches!(result, Ok(count) if count < size) {
            socket.clear(Side::Tx);
        }
        let totals = [&self.inner.usage.sent, &self.guest.traffic().sent];
        Poll::Ready(self.inner.result(totals, result))
    }

    fn shutdown(&self, how: Shutdown) -> Result<(), Errno> {
        let how = match how {
            Shutdown::Read => net::Shutdown::Read,
            Shutdown::Write => net::Shutdown::Write,
            Shutdown::Both => net::Shutdown::Both,
        };
        net::shutdown(&*self.inner.socket, how).map_err(errno)
    }

    fn peer_addr(&self) -> Result<SocketAddr, Errno> {
        Ok(self.inner.peer)
    }

    fn set_ring(&self, ring: Weak<dyn Ring>) {
        self.inner.usage.set_ring(ring);
    }
}

impl Socket for Connected {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        set(&self.guest, &self.inner.socket, option, value)
    }

    fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        options::get(&self.inner.socket, option).map_err(errno)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        tcp::local_addr(&self.inner.socket)
    }
}

/// A bound socket, which may listen.
pub struct Bound {
    inner: Rc<Listening>,
    guest: Rc<Guest>,
    _listed: Listed,
    counter: Arc<Count>,
    _ticket: Ticket,
}

struct Listening {
    socket: Rc<OwnedFd>,
    reactor: Reactor,
    /// Registered once the socket listens: epoll reports it as closed before.
    ready: OnceCell<Watched>,
    /// The address that the guest asked for.
    asked: SocketAddr,
    claim: Claim,
    since: Duration,
    /// Whether the operator ended it.
    ended: Cell<bool>,
    /// Whether the daemon stops, and leaves its listening sockets.
    leaving: Arc<AtomicBool>,
}

impl Listening {
    fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        io: impl Fn(&OwnedFd) -> io::Result<T>,
    ) -> Poll<Result<T, Errno>> {
        match self.ready.get() {
            _ if self.ended.get() => Poll::Ready(Err(Errno::EACCES)),
            // Clients wait for the next daemon.
            Some(_) if self.leaving.load(Ordering::Relaxed) => Poll::Pending,
            Some(socket) => socket.poll_io(cx, Side::Rx, io).map_err(errno),
            None => Poll::Ready(Err(Errno::EINVAL)),
        }
    }
}

impl Open for Listening {
    fn is_allowed(&self, guest: &Guest) -> bool {
        guest.rules().listens(self.asked).is_some_and(|now| is_same(now, self.claim.at()))
    }

    fn end(&self) {
        self.ended.set(true);
        // Clients are refused from now on, and the task that waits for them wakes.
        let _ = net::shutdown(&self.socket, net::Shutdown::Both);
    }

    fn status(&self, number: u64) -> SocketStatus {
        SocketStatus {
            number,
            kind: Kind::Listen,
            local: Some(self.claim.at()),
            remote: self.asked,
            age: now().saturating_sub(self.since).as_secs(),
            bytes_in: 0,
            bytes_out: 0,
            ring: None,
        }
    }

    fn legacy(&self, guest: DomId) -> Option<Legacy> {
        // It also listens after an end by the operator, but serves nobody.
        self.ready.get().filter(|_| !self.ended.get())?;
        let socket = self.socket.try_clone().ok()?;
        Some(Legacy { guest, asked: self.asked, socket })
    }
}

impl Listener for Bound {
    type Stream = Connected;

    fn listen(&self, backlog: u32) -> Result<(), Errno> {
        let Listening { socket, ready, asked, claim, .. } = &*self.inner;
        // The rules may have changed since the socket was bound.
        if !is_same(self.guest.check_listen(*asked)?, claim.at()) {
            return Err(Errno::EACCES);
        }
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        net::listen(socket, backlog).map_err(|error| {
            let error = errno(error);
            report(&self.guest, claim.at(), Taken::Refused(error), &TCP)
        })?;
        if ready.get().is_none() {
            let watched = self.inner.reactor.watch(socket.clone(), READABLE);
            let _ = ready.set(watched.map_err(errno)?);
        }
        Ok(())
    }

    fn poll_acceptable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        let waiting = |socket: &OwnedFd| {
            let mut socket = [PollFd::new(socket, PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            match rustix::event::poll(&mut socket, Some(&now)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        self.inner.poll_io(cx, waiting)
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Connected, Errno>> {
        let Listening { reactor, asked, claim, .. } = &*self.inner;
        let short = |error: &Errno| self.guest.report_shortage(SOCKET_CALL, *error);
        let accept = |socket: &OwnedFd| {
            let ticket =
                take(&self.counter).map_err(|Errno(error)| io::Error::from_raw_os_error(error))?;
            tcp::accept(socket).map(|(socket, peer)| (socket, peer, ticket))
        };
        let accepted = ready!(self.inner.poll_io(cx, accept));
        let (socket, peer, ticket) = accepted.inspect_err(short)?;
        let peer = peer.ok_or(Errno::EAFNOSUPPORT)?;
        let socket = reactor.watch(Rc::new(socket), SOCKET).map_err(errno).inspect_err(short)?;
        let (origin, guest) = (Origin::Accept(*asked, claim.at()), self.guest.clone());
        Poll::Ready(Ok(Connected::new(socket, peer, origin, guest, ticket)))
    }
}

impl Socket for Bound {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        set(&self.guest, &self.inner.socket, option, value)
    }

    fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        options::get(&self.inner.socket, option).map_err(errno)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        Ok(self.inner.claim.at())
    }
}
