//! A network in memory: listening sockets by address, connections, and sockets of datagrams.

use super::datagrams::{FakeDatagrams, Sockets};
use super::pipe::Pipe;
use crate::back::{Listener, Network, Ring, Socket, Stream};
use crate::ring::{copy_in, copy_out};
use crate::wire::{Family, Options, Shutdown, SocketOption};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use xen::{DomId, Errno, Shared, WaitList};

/// The buffer of each direction of a connection, in bytes, unless a test sets another size.
const CAPACITY: usize = 64 * 1024;

/// The first port for sockets that are bound to port 0.
const EPHEMERAL: u16 = 49152;

/// A network in memory. Clones are the same network.
#[derive(Clone, Default)]
pub struct FakeNet(Rc<State>);

#[derive(Default)]
struct State {
    bound: RefCell<BTreeMap<u16, Weak<Bound>>>,
    silent: RefCell<BTreeSet<SocketAddr>>,
    /// Woken when an address answers again.
    spoke: WaitList,
    open: Cell<usize>,
    last_port: Cell<u16>,
    capacity: Cell<Option<usize>>,
    datagrams: Sockets,
    /// The ring of the latest socket that got one.
    ring: RefCell<Option<Weak<dyn Ring>>>,
}

struct Bound {
    net: FakeNet,
    at: SocketAddr,
    options: Cell<Options>,
    backlog: Cell<Option<usize>>,
    waiting: RefCell<VecDeque<FakeStream>>,
    waker: Cell<Option<Waker>>,
}

/// A bound socket, which may listen. Dropping it closes it.
pub struct FakeListener(Rc<Bound>);

/// One end of a connection. Dropping it closes it; bytes that were sent still arrive.
pub struct FakeStream {
    net: FakeNet,
    input: Rc<Pipe>,
    output: Rc<Pipe>,
    local: SocketAddr,
    peer: SocketAddr,
    options: Cell<Options>,
}

impl FakeNet {
    /// A network without any socket.
    pub fn new() -> FakeNet {
        FakeNet::default()
    }

    /// Sets how many bytes each direction of later connections buffers.
    pub fn set_capacity(&self, bytes: usize) {
        self.0.capacity.set(Some(bytes));
    }

    /// Both ends of a connection, at addresses where no socket listens.
    pub fn pair(&self) -> (FakeStream, FakeStream) {
        let any = |port| (Ipv4Addr::LOCALHOST, port).into();
        self.pair_of(any(1), any(2))
    }

    fn pair_of(&self, near: SocketAddr, far: SocketAddr) -> (FakeStream, FakeStream) {
        self.0.open.set(self.0.open.get() + 2);
        let capacity = self.0.capacity.get().unwrap_or(CAPACITY);
        let (there, back) = (Rc::new(Pipe::new(capacity)), Rc::new(Pipe::new(capacity)));
        let socket = |input: &Rc<Pipe>, output: &Rc<Pipe>, local, peer| FakeStream {
            net: self.clone(),
            input: input.clone(),
            output: output.clone(),
            local,
            peer,
            options: Cell::default(),
        };
        (socket(&back, &there, near, far), socket(&there, &back, far, near))
    }

    /// Connects to an address, of which only the port counts.
    pub async fn connect(&self, to: SocketAddr) -> Result<FakeStream, Errno> {
        let answers = || (!self.0.silent.borrow().contains(&to)).then_some(());
        self.0.spoke.until(answers).await;
        let bound = self.0.bound.borrow().get(&to.port()).and_then(Weak::upgrade);
        let bound = bound.ok_or(Errno::ECONNREFUSED)?;
        let mut waiting = bound.waiting.borrow_mut();
        // A full backlog refuses, as nothing is sent again here.
        if bound.backlog.get().is_none_or(|backlog| waiting.len() >= backlog.max(1)) {
            return Err(Errno::ECONNREFUSED);
        }
        let from = SocketAddr::new(to.ip(), self.next_port());
        let (near, far) = self.pair_of(from, SocketAddr::new(to.ip(), bound.at.port()));
        far.options.set(bound.options.get());
        waiting.push_back(far);
        drop(waiting);
        if let Some(waker) = bound.waker.take() {
            waker.wake();
        }
        Ok(near)
    }

    /// Binds a socket. It does not listen yet.
    pub fn bind(&self, at: SocketAddr) -> Result<FakeListener, Errno> {
        let mut bound = self.0.bound.borrow_mut();
        let port = match at.port() {
            0 => self.free_port(|port| bound.contains_key(&port))?,
            port if bound.contains_key(&port) => return Err(Errno::EADDRINUSE),
            port => port,
        };
        let socket = Rc::new(Bound {
            net: self.clone(),
            at: SocketAddr::new(at.ip(), port),
            options: Cell::default(),
            backlog: Cell::new(None),
            waiting: RefCell::default(),
            waker: Cell::default(),
        });
        bound.insert(port, Rc::downgrade(&socket));
        Ok(FakeListener(socket))
    }

    /// A port for a socket that is bound to port 0.
    pub(super) fn free_port(&self, is_taken: impl Fn(u16) -> bool) -> Result<u16, Errno> {
        (EPHEMERAL..).find(|port| !is_taken(*port)).ok_or(Errno::EADDRINUSE)
    }

    /// The network's sockets of datagrams.
    pub(super) fn datagrams(&self) -> &Sockets {
        &self.0.datagrams
    }

    /// Notes the ring of a socket.
    pub(super) fn report_ring(&self, ring: Weak<dyn Ring>) {
        self.0.ring.replace(Some(ring));
    }

    /// A port for the near end of a connection.
    fn next_port(&self) -> u16 {
        let port = self.0.last_port.get().max(EPHEMERAL - 1).checked_add(1).unwrap_or(EPHEMERAL);
        self.0.last_port.set(port);
        port
    }

    /// Binds a socket and listens.
    pub fn listen(&self, at: SocketAddr) -> Result<FakeListener, Errno> {
        let listener = self.bind(at)?;
        listener.listen(128)?;
        Ok(listener)
    }

    /// Lets connections to this address wait until [`speak`](FakeNet::speak).
    pub fn silence(&self, address: SocketAddr) {
        self.0.silent.borrow_mut().insert(address);
    }

    /// Lets an address answer again after [`silence`](FakeNet::silence).
    pub fn speak(&self, address: SocketAddr) {
        self.0.silent.borrow_mut().remove(&address);
        self.0.spoke.wake_all();
    }

    /// The latest data ring that an engine reported.
    pub fn last_ring(&self) -> Option<Weak<dyn Ring>> {
        self.0.ring.borrow().clone()
    }

    /// The number of open sockets, without bound ones.
    pub fn open_sockets(&self) -> usize {
        self.0.open.get()
    }

    /// The number of bound sockets.
    pub fn bound_sockets(&self) -> usize {
        self.0.bound.borrow().len()
    }
}

impl FakeListener {
    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.0.at
    }

    /// Waits for a connection and accepts it.
    pub async fn accept(&self) -> FakeStream {
        poll_fn(|cx| self.poll_accept(cx)).await.expect("this never fails")
    }
}

impl Listener for FakeListener {
    type Stream = FakeStream;

    fn listen(&self, backlog: u32) -> Result<(), Errno> {
        self.0.backlog.set(Some(backlog as usize));
        Ok(())
    }

    fn poll_acceptable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        if !self.0.waiting.borrow().is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.0.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<FakeStream, Errno>> {
        ready!(self.poll_acceptable(cx))?;
        Poll::Ready(self.0.waiting.borrow_mut().pop_front().ok_or(Errno::EIO))
    }
}

impl Socket for FakeListener {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        set_option(&self.0.options, option, value)
    }

    fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        get_option(&self.0.options, option)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        Ok(self.address())
    }
}

/// An option that was never set is 0.
pub(super) fn get_option(options: &Cell<Options>, option: SocketOption) -> Result<u32, Errno> {
    Ok(options.get().get(option).unwrap_or(0))
}

/// The network refuses one option, so that tests meet a refusal.
pub(super) fn set_option(
    options: &Cell<Options>,
    option: SocketOption,
    value: u32,
) -> Result<(), Errno> {
    if option == SocketOption::BusyPoll {
        return Err(Errno::EPERM);
    }
    options.set(options.get().with(option, value));
    Ok(())
}

impl Network for FakeNet {
    type Stream = FakeStream;
    type Listener = FakeListener;
    type Datagrams = FakeDatagrams;

    async fn connect(
        &self,
        _: DomId,
        to: SocketAddr,
        options: &Options,
    ) -> Result<FakeStream, Errno> {
        let socket = FakeNet::connect(self, to).await?;
        options.iter().try_for_each(|(option, value)| socket.set_option(option, value))?;
        Ok(socket)
    }

    fn bind(&self, _: DomId, to: SocketAddr, options: &Options) -> Result<FakeListener, Errno> {
        let socket = FakeNet::bind(self, to)?;
        options.iter().try_for_each(|(option, value)| socket.set_option(option, value))?;
        Ok(socket)
    }

    fn datagrams(
        &self,
        _: DomId,
        family: Family,
        local: Option<SocketAddr>,
        options: &Options,
    ) -> Result<FakeDatagrams, Errno> {
        let any = || match family {
            Family::V4 => (Ipv4Addr::UNSPECIFIED, 0).into(),
            Family::V6 => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = self.datagrams_at(local.unwrap_or_else(any))?;
        options.iter().try_for_each(|(option, value)| socket.set_option(option, value))?;
        Ok(socket)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.net.0.bound.borrow_mut().remove(&self.at.port());
        for socket in self.waiting.take() {
            socket.reset();
        }
    }
}

impl FakeStream {
    /// Receives some bytes; 0 at the end of the stream.
    pub async fn read(&self, to: &mut [u8]) -> Result<usize, Errno> {
        poll_fn(|cx| {
            self.input.poll_take(cx, |bytes| {
                let count = bytes.len().min(to.len());
                to[..count].copy_from_slice(&bytes[..count]);
                count
            })
        })
        .await
    }

    /// Receives without copying: `take` sees some bytes and returns how many of them it took.
    pub async fn read_in_place(
        &self,
        mut take: impl FnMut(&[u8]) -> usize,
    ) -> Result<usize, Errno> {
        poll_fn(|cx| self.input.poll_take(cx, &mut take)).await
    }

    /// Sends without copying: `put` fills some room and returns how much of it.
    pub async fn write_in_place(
        &self,
        mut put: impl FnMut(&mut [u8]) -> usize,
    ) -> Result<usize, Errno> {
        poll_fn(|cx| self.output.poll_put(cx, &mut put)).await
    }

    /// Receives all bytes up to the end of the stream.
    pub async fn read_to_end(&self) -> Result<Vec<u8>, Errno> {
        let (mut all, mut some) = (Vec::new(), [0; 4096]);
        loop {
            match self.read(&mut some).await? {
                0 => return Ok(all),
                count => all.extend_from_slice(&some[..count]),
            }
        }
    }

    /// Sends some bytes.
    pub async fn write(&self, from: &[u8]) -> Result<usize, Errno> {
        poll_fn(|cx| {
            self.output.poll_put(cx, |room| {
                let count = room.len().min(from.len());
                room[..count].copy_from_slice(&from[..count]);
                count
            })
        })
        .await
    }

    /// Sends all bytes.
    pub async fn write_all(&self, mut from: &[u8]) -> Result<(), Errno> {
        while !from.is_empty() {
            from = &from[self.write(from).await?..];
        }
        Ok(())
    }

    /// The address of this end.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The address of the peer.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Closes the sending direction.
    pub fn finish(&self) {
        self.output.finish();
    }

    /// Resets the connection.
    pub fn reset(&self) {
        self.input.reset();
        self.output.reset();
    }
}

impl Stream for FakeStream {
    fn poll_recv(&self, cx: &mut Context<'_>, room: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        self.input.poll_take(cx, |bytes| copy_in(&room, bytes))
    }

    fn poll_send(&self, cx: &mut Context<'_>, data: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        self.output.poll_put(cx, |bytes| copy_out(&data, bytes))
    }

    fn shutdown(&self, how: Shutdown) -> Result<(), Errno> {
        if how.reads() {
            self.input.abandon();
        }
        if how.writes() {
            self.output.finish();
        }
        Ok(())
    }

    fn peer_addr(&self) -> Result<SocketAddr, Errno> {
        Ok(self.peer)
    }

    fn set_ring(&self, ring: Weak<dyn Ring>) {
        self.net.report_ring(ring);
    }
}

impl Socket for FakeStream {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        set_option(&self.options, option, value)
    }

    fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        get_option(&self.options, option)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        Ok(self.local)
    }
}

impl Drop for FakeStream {
    fn drop(&mut self) {
        self.net.0.open.set(self.net.0.open.get() - 1);
        if self.options.get().get(SocketOption::Linger) == Some(0) {
            self.output.reset();
        }
        self.output.finish();
        self.input.abandon();
    }
}
