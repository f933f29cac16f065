//! Linux's sockets on the thread's reactor: none blocks.
//!
//! A call that moves less than it could leaves the socket empty or full, so the next call waits for
//! the reactor's word and not for EAGAIN.

use crate::control::{Kind, RingStatus, SocketStatus};
use crate::guests::{Guest, Guests, Listed, Open};
use crate::linux;
use crate::listeners::{Claim, Holder, Taken};
use crate::options;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{self, sockopt};
use rustix::time::{ClockId, clock_gettime};
use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use xen::{DomId, Errno, Shared, Side};
use xen_linux::runtime::{READABLE, Reactor, SOCKET, Watched};
use xen_linux::{Count, Ticket, errno, tcp};
use xensock::back::{Listener, Network, Ring, RingUsage, Socket, Stream};
use xensock::wire::{Options, Shutdown, SocketOption};

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
}

impl Sockets {
    /// Sockets of these guests, counted in `counter`.
    pub fn new(reactor: &Reactor, counter: Arc<Count>, guests: Guests) -> Self {
        Sockets { reactor: reactor.clone(), counter, guests }
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

    async fn connect(
        &self,
        guest: DomId,
        to: SocketAddr,
        options: &Options,
    ) -> Result<Connected, Errno> {
        let guest = self.guests.get(guest)?;
        guest.check_connect(to)?;
        let socket = tcp::open(to)?;
        set_all(&guest, &socket, options)?;
        let ticket = Ticket::new(self.counter.clone());
        let socket = tcp::connect(&self.reactor, socket, to).await?;
        // The rules may have changed meanwhile.
        guest.check_connect(to)?;
        Ok(Connected::new(socket, to, Origin::Connect(to), guest, ticket))
    }

    fn bind(&self, guest: DomId, asked: SocketAddr, options: &Options) -> Result<Bound, Errno> {
        let guest = self.guests.get(guest)?;
        // Linux chooses a port for port 0, and the rules decide about that.
        let any = asked.port() == 0;
        let at = if any { asked } else { guest.check_listen(asked)? };
        let socket = tcp::open(at)?;
        sockopt::set_socket_reuseaddr(&socket, true).map_err(errno)?;
        let sharing = guest.sharing().filter(|_| !any);
        if sharing.is_some() {
            sockopt::set_socket_reuseport(&socket, true).map_err(errno)?;
        }
        set_all(&guest, &socket, options)?;
        let reuses = options.get(SocketOption::ReusePort) == Some(1);
        let holder = Holder { guest: guest.id(), name: guest.to_string(), at, sharing, reuses };
        let bound = guest.listeners().claim(holder, || {
            net::bind(&socket, &at).map_err(errno)?;
            tcp::local_addr(&socket)
        });
        let claim = bound.map_err(|taken| report(&guest, at, taken))?;
        let asked = if any { claim.at() } else { asked };
        if any && !is_same(guest.check_listen(asked)?, asked) {
            return Err(Errno::EACCES);
        }
        let ticket = Ticket::new(self.counter.clone());
        let inner = Rc::new(Listening {
            socket: Rc::new(socket),
            reactor: self.reactor.clone(),
            ready: OnceCell::new(),
            asked,
            claim,
            since: now(),
            ended: Cell::new(false),
        });
        let open: Weak<dyn Open> = Rc::downgrade(&inner) as _;
        let listed = guest.list(open);
        Ok(Bound { inner, guest, _listed: listed, counter: self.counter.clone(), _ticket: ticket })
    }
}

fn set_all(guest: &Guest, socket: &OwnedFd, options: &Options) -> Result<(), Errno> {
    options.iter().try_for_each(|(option, value)| set(guest, socket, option, value))
}

/// Sets an option, if the guest may.
fn set(guest: &Guest, socket: &OwnedFd, option: SocketOption, value: u32) -> Result<(), Errno> {
    if option == SocketOption::ReusePort && value != 0 {
        guest.check_sharing()?;
    }
    options::set(socket, option, value).map_err(errno)
}

/// Whether both are the same place, whatever scope and flow they have.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip(), one.port()) == (other.ip(), other.port())
}

/// Logs why an address cannot be bound.
fn report(guest: &Guest, at: SocketAddr, taken: Taken) -> Errno {
    let (reason, error) = match taken {
        Taken::By(other) => (format!("{other} listens there"), Errno::EADDRINUSE),
        Taken::Refused(error @ Errno::EADDRINUSE) => {
            let port = at.port();
            let reason = format!("another program does; `ss -ltnp sport = {port}` shows it");
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
    guest.report_taken(at, &reason);
    error
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// The guest has connected to this address.
    Connect(SocketAddr),
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
    since: Duration,
    received: Cell<u64>,
    sent: Cell<u64>,
    ring: RefCell<Option<Weak<dyn Ring>>>,
    /// Whether the operator ended it.
    ended: Cell<bool>,
}

impl Connected {
    fn new(
        socket: Watched,
        peer: SocketAddr,
        origin: Origin,
        guest: Rc<Guest>,
        ticket: Ticket,
    ) -> Self {
        let inner = Rc::new(Connection {
            socket,
            peer,
            origin,
            since: now(),
            received: Cell::new(0),
            sent: Cell::new(0),
            ring: RefCell::default(),
            ended: Cell::new(false),
        });
        let open: Weak<dyn Open> = Rc::downgrade(&inner) as _;
        Connected { inner, _listed: guest.list(open), guest, _ticket: ticket }
    }
}

impl Connection {
    /// The result of an operation, which is added to `total`. To Linux, what the operator ended
    /// looks as if the peer had closed it.
    fn result(&self, total: &Cell<u64>, result: io::Result<usize>) -> Result<usize, Errno> {
        match result {
            Ok(0) | Err(_) if self.ended.get() => return Err(Errno::EACCES),
            Ok(count) => total.set(total.get() + count as u64),
            Err(_) => {}
        }
        result.map_err(errno)
    }
}

impl Open for Connection {
    fn is_allowed(&self, guest: &Guest) -> bool {
        match self.origin {
            Origin::Connect(to) => guest.is_connect_allowed(to),
            Origin::Accept(asked, at) => {
                guest.rules().listens(asked).is_some_and(|now| is_same(now, at))
            }
        }
    }

    fn end(&self) {
        self.ended.set(true);
        // The peer gets a reset when the socket is closed. Shutting it down wakes its task.
        let _ = options::set(&self.socket, SocketOption::Linger, 0);
        let _ = net::shutdown(&*self.socket, net::Shutdown::Both);
    }

    fn status(&self, number: u64) -> SocketStatus {
        SocketStatus {
            number,
            kind: match self.origin {
                Origin::Connect(_) => Kind::Connect,
                Origin::Accept(..) => Kind::Accept,
            },
            local: tcp::local_addr(&self.socket).ok(),
            remote: self.peer,
            age: now().saturating_sub(self.since).as_secs(),
            bytes_in: self.received.get(),
            bytes_out: self.sent.get(),
            ring: self.ring.borrow().as_ref().and_then(Weak::upgrade).map(|ring| {
                let RingUsage { in_size, in_used, out_size, out_used } = ring.usage();
                RingStatus { in_size, in_used, out_size, out_used }
            }),
        }
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
        Poll::Ready(self.inner.result(&self.inner.received, result))
    }

    fn poll_send(&self, cx: &mut Context<'_>, data: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        let Connection { socket, .. } = &*self.inner;
        let size = xensock::ring::len(&data);
        let result = ready!(socket.poll_io(cx, Side::Tx, |socket| linux::send(socket, data)));
        if matches!(result, Ok(count) if count < size) {
            socket.clear(Side::Tx);
        }
        Poll::Ready(self.inner.result(&self.inner.sent, result))
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
        self.inner.ring.replace(Some(ring));
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
}

impl Listening {
    fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        io: impl Fn(&OwnedFd) -> io::Result<T>,
    ) -> Poll<Result<T, Errno>> {
        match self.ready.get() {
            _ if self.ended.get() => Poll::Ready(Err(Errno::EACCES)),
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
            report(&self.guest, claim.at(), Taken::Refused(error))
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
        let (socket, peer) = ready!(self.inner.poll_io(cx, tcp::accept))?;
        let peer = peer.ok_or(Errno::EAFNOSUPPORT)?;
        let socket = reactor.watch(Rc::new(socket), SOCKET).map_err(errno)?;
        let (origin, guest) = (Origin::Accept(*asked, claim.at()), self.guest.clone());
        let ticket = Ticket::new(self.counter.clone());
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
