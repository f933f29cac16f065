//! Datagram sockets: records on a ring, one for each datagram.
//!
//! A socket without a peer outlives the backend, as a listener does.

use super::again::again;
use super::link::Session;
use super::socket::{Addrs, Kind, Socket, preparations, requested_sizes};
use super::state::{Core, Member};
use crate::ring::{copy_in, copy_out, len, split_at};
use crate::wire::{
    Call, Extensions, Family, Group, Options, RECORD_HEADER, Record, SocketOption, longest_payload,
};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::net::SocketAddr;
use core::task::{Context, Poll};
use xen::{Errno, Machine, Shared, Side, Signal};
use xensock_stream::PollDatagrams;

/// A datagram socket with the traits of `edge-nal`. Besides them it has the operations of
/// [`UdpSocket`].
///
/// ```
/// use edge_nal::{UdpReceive, UdpSend};
/// use xen::{Errno, Machine};
/// use xensock::front::Frontend;
///
/// /// Sends each datagram back.
/// async fn echo<M: Machine>(frontend: &Frontend<M>) -> Result<(), Errno> {
///     let mut socket = frontend.bind_udp(([0, 0, 0, 0], 7).into()).await?;
///     let mut data = [0; 2048];
///     loop {
///         let (length, peer) = socket.receive(&mut data).await?;
///         if let Some(whole) = data.get(..length) {
///             socket.send(peer, whole).await?;
///         }
///     }
/// }
/// ```
pub type Datagrams<M> = xensock_stream::Datagrams<UdpSocket<M>>;

/// The socket of [`Datagrams`].
///
/// A datagram that was sent and could not be delivered, as far as the backend's system knows, is an
/// error of the next call: [`Errno::ECONNREFUSED`] if the peer of a connected socket has no such
/// port, [`Errno::EMSGSIZE`], [`Errno::EACCES`] and others. The socket continues.
///
/// Dropping it closes the socket: the driver waits until the backend has taken all that was sent,
/// then releases the socket.
///
/// If the backend disconnects, a connected socket ends with [`Errno::ENETDOWN`]. Another one is
/// bound again, to the same port and with its options and groups, when the backend returns: calls
/// wait meanwhile, and the datagrams that were under way are lost. If that fails repeatedly, one
/// call gets the error, and the next call tries again. [`Errno::ENODEV`]: the device was shut down.
pub struct UdpSocket<M: Machine + 'static>(Rc<Inner<M>>);

/// What a socket shares with the driver's jobs.
struct Inner<M: Machine + 'static> {
    core: Rc<Core<M>>,
    /// Identifies the socket among the members of the core.
    member: u64,
    /// The requested address, and the bound address once it is known.
    local: Cell<SocketAddr>,
    peer: Option<SocketAddr>,
    options: Cell<Options>,
    groups: RefCell<Vec<Group>>,
    /// The socket of the present or the last session.
    socket: RefCell<Rc<Socket<M>>>,
    longest: Cell<usize>,
    state: Cell<State>,
    /// Wakes the tasks that wait until the socket is bound again.
    bound: Signal,
}

/// The state of a socket whose session is over.
#[derive(Clone, Copy)]
enum State {
    Idle,
    /// A job is binding the socket again.
    Binding,
    /// Binding again failed. The next caller gets the error.
    Failed(Errno),
    /// The owner has closed the socket.
    Closed,
}

/// Opens a socket, binds it to `local` and connects it to `peer`.
pub(super) async fn open<M: Machine>(
    core: Rc<Core<M>>,
    local: SocketAddr,
    peer: Option<SocketAddr>,
    options: Options,
) -> Result<Datagrams<M>, Errno> {
    let session = core.link.up().await?;
    let socket = open_in(&core, &session, local, peer, &options).await?;
    let inner = Rc::new(Inner {
        member: core.new_id(),
        local: Cell::new(local),
        peer,
        options: Cell::new(options),
        groups: RefCell::default(),
        socket: RefCell::new(socket.clone()),
        longest: Cell::new(0),
        state: Cell::new(State::Idle),
        bound: Signal::new(),
        core,
    });
    inner.set(socket);
    if peer.is_none() {
        inner.core.register(inner.member, &inner);
    }
    Ok(Datagrams::new(UdpSocket(inner)))
}

/// Opens a socket in a session.
async fn open_in<M: Machine>(
    core: &Rc<Core<M>>,
    session: &Session,
    local: SocketAddr,
    peer: Option<SocketAddr>,
    options: &Options,
) -> Result<Rc<Socket<M>>, Errno> {
    if !session.protocol.has(Extensions::DATAGRAM) {
        return Err(Errno::EOPNOTSUPP);
    }
    if peer.is_some_and(|peer| peer.is_ipv4() != local.is_ipv4()) {
        return Err(Errno::EAFNOSUPPORT);
    }
    let kind = Kind::Datagrams;
    let mut calls = preparations(session, kind, Family::of(local), options);
    let is_any = local.ip().is_unspecified();
    if local.port() != 0 || !is_any {
        calls.push(Call::Bind { addr: local });
    }
    let open = |ring| Call::Open { peer, ring };
    let sizes = requested_sizes(options);
    let socket = Socket::open(core, *session, kind, sizes, peer, calls, open).await?;
    let addrs = socket.addrs.get();
    let is_known = local.port() != 0 && !(is_any && peer.is_some());
    let local = addrs.local.or(is_known.then_some(local));
    socket.addrs.set(Addrs { local, ..addrs });
    Ok(socket)
}

/// Binds a socket again in the present session: a job.
async fn bind_again<M: Machine>(inner: Rc<Inner<M>>) {
    let bind = async |session: &Session| {
        let Inner { core, local, options, .. } = &*inner;
        let socket = open_in(core, session, local.get(), None, &options.get()).await?;
        let groups = inner.groups.borrow().clone();
        for group in groups {
            if let Err(error) = socket.call(Call::Join(group)).await {
                log::warn!("joining {} again failed: {error}", group.addr());
            }
        }
        Ok(socket)
    };
    let is_closed = || matches!(inner.state.get(), State::Closed);
    let bound = again(&inner.core.link, "receiving at", &inner.local, is_closed, bind).await;
    if is_closed() {
        if let Some(Ok(socket)) = bound {
            socket.start_closing(false);
        }
        return;
    }
    inner.state.set(State::Idle);
    match bound {
        Some(Ok(socket)) => inner.set(socket),
        Some(Err(error)) => inner.state.set(State::Failed(error)),
        // Another session may have started.
        None => inner.clone().link_up(),
    }
    inner.bound.raise();
}

impl<M: Machine> Inner<M> {
    fn set(&self, socket: Rc<Socket<M>>) {
        if let Some(local) = socket.addrs.get().local {
            self.local.set(local);
        }
        if let Some(layout) = socket.layout() {
            let longest = longest_payload(Family::of(self.local.get()));
            self.longest.set(longest.min(Record::longest(layout.output.size)));
        }
        self.socket.replace(socket);
    }

    /// Whether the socket has ended with its session and can be bound again.
    fn is_lost(&self) -> bool {
        let socket = self.socket.borrow();
        self.peer.is_none() && !socket.is_open() && socket.failure() == Errno::ENETDOWN
    }

    fn socket(&self) -> Rc<Socket<M>> {
        self.socket.borrow().clone()
    }
}

impl<M: Machine> Member for Inner<M> {
    /// Binds the socket again.
    fn link_up(self: Rc<Self>) {
        let is_idle = matches!(self.state.get(), State::Idle | State::Failed(_));
        if is_idle && self.is_lost() && self.core.link.session().is_some() {
            self.state.set(State::Binding);
            self.core.link.spawn(bind_again(self.clone()));
        }
    }

    fn link_lost(&self, _: Errno) {
        self.bound.raise();
    }
}

impl<M: Machine> Drop for UdpSocket<M> {
    fn drop(&mut self) {
        self.0.core.unregister(self.0.member);
        self.0.state.set(State::Closed);
        self.0.socket().start_closing(false);
    }
}

impl<M: Machine> UdpSocket<M> {
    /// Waits for a datagram and reads it in place. `read` gets the sender and up to two pieces.
    ///
    /// The backend can change the pieces while they are read: copy bytes before checking them.
    pub async fn receive_in_place<R>(
        &mut self,
        mut read: impl FnMut(SocketAddr, [Shared<'_>; 2]) -> R,
    ) -> Result<R, Errno> {
        poll_fn(|cx| self.poll_take(cx, &mut read)).await
    }

    /// Waits for room for a datagram of at most `longest` bytes, and writes it in place. `write`
    /// gets up to two pieces of so many bytes and returns how many it has filled, from the first
    /// one on, and a value of its own. A connected socket ignores `to`.
    pub async fn send_in_place<R>(
        &mut self,
        to: SocketAddr,
        longest: usize,
        mut write: impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Result<R, Errno> {
        poll_fn(|cx| self.poll_put(cx, to, longest, &mut write)).await
    }

    /// Changes an option; see [`SocketOption`] for the values. [`Errno::EOPNOTSUPP`] for the sizes
    /// of the ring, which can be chosen only when the socket is opened, and for all options if the
    /// backend does not support them.
    pub async fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        if option.is_ring_size() {
            return Err(Errno::EOPNOTSUPP);
        }
        let inner = self.0.clone();
        let set = async move {
            inner.socket().set_option(option, value).await?;
            inner.options.set(inner.options.get().with(option, value));
            Ok(())
        };
        self.0.core.link.run(set).await
    }

    /// An option's value.
    pub async fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        self.0.socket().option(option).await
    }

    /// The address of this end, in the backend's network. If the port was 0, it has the port that
    /// the backend's system chose. [`Errno::EOPNOTSUPP`] if the backend does not report addresses
    /// and this one is not known.
    pub fn local_addr(&self) -> Result<SocketAddr, Errno> {
        self.0.socket.borrow().addrs.get().local.ok_or(Errno::EOPNOTSUPP)
    }

    /// The only peer of a connected socket.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.0.peer
    }

    /// The longest datagram that can be sent: UDP and the size of the ring limit it.
    pub fn longest(&self) -> usize {
        self.0.longest.get()
    }

    /// How many datagrams for this socket were dropped because there was no room for them, since
    /// the socket was last bound. The count wraps.
    pub fn dropped(&self) -> u32 {
        self.0.socket.borrow().word(|layout| layout.dropped)
    }

    /// Closes the socket and waits until the backend has taken all that was sent.
    pub async fn close(&self) -> Result<(), Errno> {
        self.0.core.unregister(self.0.member);
        self.0.state.set(State::Closed);
        self.0.socket().close().await
    }

    /// Polls the socket, or waits until it is bound again.
    fn poll<R>(
        &self,
        cx: &mut Context<'_>,
        side: Side,
        attempt: impl FnOnce(&Rc<Socket<M>>, &mut Context<'_>) -> Poll<Result<R, Errno>>,
    ) -> Poll<Result<R, Errno>> {
        let inner = &self.0;
        let socket = inner.socket.borrow();
        if socket.is_usable() {
            return attempt(&socket, cx);
        }
        if matches!(inner.state.get(), State::Closed) || !inner.is_lost() {
            return Poll::Ready(Err(socket.failure()));
        }
        inner.core.link.check()?;
        if let State::Failed(error) = inner.state.get() {
            inner.state.set(State::Idle);
            return Poll::Ready(Err(error));
        }
        inner.bound.register(side, cx.waker());
        inner.clone().link_up();
        Poll::Pending
    }

    /// Waits for a datagram.
    fn poll_take<R>(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(SocketAddr, [Shared<'_>; 2]) -> R,
    ) -> Poll<Result<R, Errno>> {
        let taken = self.poll(cx, Side::Rx, |socket, cx| {
            let taken = socket.poll_take(cx, |data| {
                let next = match Record::next(data) {
                    Ok(Some(next)) => next,
                    Ok(None) => return (0, Err(Errno::ENOTCONN)),
                    Err(error) => return (0, Err(socket.fail(error))),
                };
                let value = match (next.record.error, next.record.addr.or(self.0.peer)) {
                    (Some(error), _) => Err(error),
                    (None, Some(from)) => Ok(take(from, next.payload)),
                    (None, None) => return (0, Err(socket.fail(Errno::EPROTO))),
                };
                (next.record.size as usize, value)
            });
            taken.map(|value| value?)
        });
        if let Poll::Ready(Ok(_)) = taken {
            self.0.core.statistics.borrow_mut().datagrams_received += 1;
        }
        taken
    }

    /// Waits for room for a datagram of at most `longest` bytes.
    fn poll_put<R>(
        &self,
        cx: &mut Context<'_>,
        to: SocketAddr,
        longest: usize,
        mut put: impl FnMut([Shared<'_>; 2]) -> (usize, R),
    ) -> Poll<Result<R, Errno>> {
        let sent = self.poll(cx, Side::Tx, |socket, cx| {
            if longest > self.longest() {
                return Poll::Ready(Err(Errno::EMSGSIZE));
            }
            take_error(socket)?;
            let addr = self.0.peer.is_none().then_some(to);
            socket.poll_put(cx, Record::space(longest) as u32, |room| {
                let (payload, _) = split_at(split_at(room, RECORD_HEADER).1, longest);
                let (count, value) = put(payload);
                assert!(count <= longest, "{count} bytes written, but {longest} had room");
                let record = Record::new(count, addr);
                record.put(&room);
                (record.size as usize, value)
            })
        });
        if let Poll::Ready(Ok(_)) = sent {
            self.0.core.statistics.borrow_mut().datagrams_sent += 1;
        }
        sent
    }
}

/// Takes the error of a datagram that was sent, if it is next in the ring.
fn take_error<M: Machine>(socket: &Socket<M>) -> Result<(), Errno> {
    let next = socket.try_take(&mut |data| match Record::next(data) {
        Ok(Some(next)) if next.record.error.is_some() => {
            (next.record.size as usize, next.record.error)
        }
        Ok(_) => (0, None),
        Err(error) => (0, Some(socket.fail(error))),
    });
    next?.flatten().map_or(Ok(()), Err)
}

impl<M: Machine> PollDatagrams for UdpSocket<M> {
    type Error = Errno;

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<Result<(usize, SocketAddr), Errno>> {
        self.poll_take(cx, |from, payload| {
            copy_out(&payload, to);
            (len(&payload), from)
        })
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        self.poll(cx, Side::Rx, |socket, cx| socket.poll_take(cx, |_| (0, ())))
    }

    /// [`Errno::EMSGSIZE`] if the datagram is longer than [`longest`](UdpSocket::longest).
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        to: SocketAddr,
        data: &[u8],
    ) -> Poll<Result<(), Errno>> {
        self.poll_put(cx, to, data.len(), |room| (copy_in(&room, data), ()))
    }

    /// The interface is one of the backend's system. [`Errno::EADDRINUSE`] if the socket has joined
    /// the group.
    async fn join(&self, group: Group) -> Result<(), Errno> {
        let inner = self.0.clone();
        let join = async move {
            inner.socket().call(Call::Join(group)).await?;
            inner.groups.borrow_mut().push(group);
            Ok(())
        };
        self.0.core.link.run(join).await
    }

    /// [`Errno::EADDRNOTAVAIL`] if the socket has not joined the group.
    async fn leave(&self, group: Group) -> Result<(), Errno> {
        let inner = self.0.clone();
        let leave = async move {
            inner.socket().call(Call::Leave(group)).await?;
            inner.groups.borrow_mut().retain(|joined| *joined != group);
            Ok(())
        };
        self.0.core.link.run(leave).await
    }
}
