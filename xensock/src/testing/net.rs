//! A network in memory: listening sockets by address, and connections.

use super::pipe::Pipe;
use crate::wire::{Options, SocketOption};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use xen::Errno;
use xen::WaitList;

/// What each direction of a connection buffers.
const CAPACITY: usize = 64 * 1024;

/// The first port that is given to a socket that is bound to port 0.
const EPHEMERAL: u16 = 49152;

/// A network. Clones are the same network.
#[derive(Clone, Default)]
pub struct Net(Rc<State>);

#[derive(Default)]
struct State {
    bound: RefCell<BTreeMap<u16, Weak<Bound>>>,
    silent: RefCell<BTreeSet<SocketAddr>>,
    /// Told when an address is silent no more.
    spoke: WaitList,
    open: Cell<usize>,
    last_port: Cell<u16>,
}

struct Bound {
    net: Net,
    at: SocketAddr,
    options: Cell<Options>,
    backlog: Cell<Option<usize>>,
    waiting: RefCell<VecDeque<Socket>>,
    waker: RefCell<Option<Waker>>,
}

/// A socket that was bound, and perhaps listens. Dropping it closes it.
pub struct Acceptor(Rc<Bound>);

/// One end of a connection. Dropping it closes it: what was sent still arrives.
pub struct Socket {
    net: Net,
    input: Rc<Pipe>,
    output: Rc<Pipe>,
    local: SocketAddr,
    peer: SocketAddr,
    options: Cell<Options>,
}

impl Net {
    /// A network without any socket.
    pub fn new() -> Net {
        Net::default()
    }

    /// Connects two ends of a connection, whose addresses nobody listens at.
    pub fn pair(&self) -> (Socket, Socket) {
        let any = |port| (Ipv4Addr::LOCALHOST, port).into();
        self.pair_of(any(1), any(2))
    }

    fn pair_of(&self, near: SocketAddr, far: SocketAddr) -> (Socket, Socket) {
        self.0.open.set(self.0.open.get() + 2);
        let (there, back) = (Rc::new(Pipe::new(CAPACITY)), Rc::new(Pipe::new(CAPACITY)));
        let socket = |input: &Rc<Pipe>, output: &Rc<Pipe>, local, peer| Socket {
            net: self.clone(),
            input: input.clone(),
            output: output.clone(),
            local,
            peer,
            options: Cell::default(),
        };
        (socket(&back, &there, near, far), socket(&there, &back, far, near))
    }

    /// Connects to an address; addresses differ by their ports alone.
    pub async fn connect(&self, to: SocketAddr) -> Result<Socket, Errno> {
        let heard = || (!self.0.silent.borrow().contains(&to)).then_some(());
        self.0.spoke.until(heard).await;
        let bound = self.0.bound.borrow().get(&to.port()).and_then(Weak::upgrade);
        let bound = bound.ok_or(Errno::ECONNREFUSED)?;
        let mut waiting = bound.waiting.borrow_mut();
        // A full backlog refuses: nobody sends again here.
        if bound.backlog.get().is_none_or(|backlog| waiting.len() >= backlog.max(1)) {
            return Err(Errno::ECONNREFUSED);
        }
        let from = SocketAddr::new(to.ip(), self.next_port());
        let (near, far) = self.pair_of(from, SocketAddr::new(to.ip(), bound.at.port()));
        far.options.set(bound.options.get());
        waiting.push_back(far);
        drop(waiting);
        if let Some(waker) = bound.waker.borrow_mut().take() {
            waker.wake();
        }
        Ok(near)
    }

    /// Binds a socket. It does not listen yet.
    pub fn bind(&self, at: SocketAddr) -> Result<Acceptor, Errno> {
        let mut bound = self.0.bound.borrow_mut();
        let port = match at.port() {
            0 => (EPHEMERAL..).find(|port| !bound.contains_key(port)).ok_or(Errno::EADDRINUSE)?,
            port if bound.contains_key(&port) => return Err(Errno::EADDRINUSE),
            port => port,
        };
        let socket = Rc::new(Bound {
            net: self.clone(),
            at: SocketAddr::new(at.ip(), port),
            options: Cell::default(),
            backlog: Cell::new(None),
            waiting: RefCell::default(),
            waker: RefCell::default(),
        });
        bound.insert(port, Rc::downgrade(&socket));
        Ok(Acceptor(socket))
    }

    /// A port for the near end of a connection.
    fn next_port(&self) -> u16 {
        let port = self.0.last_port.get().max(EPHEMERAL - 1).checked_add(1).unwrap_or(EPHEMERAL);
        self.0.last_port.set(port);
        port
    }

    /// Binds a socket and listens.
    pub fn listen(&self, at: SocketAddr) -> Result<Acceptor, Errno> {
        let acceptor = self.bind(at)?;
        acceptor.listen(128);
        Ok(acceptor)
    }

    /// Whoever connects to this address waits, until [`speak`](Net::speak).
    pub fn silence(&self, address: SocketAddr) {
        self.0.silent.borrow_mut().insert(address);
    }

    /// Ends the silence of an address.
    pub fn speak(&self, address: SocketAddr) {
        self.0.silent.borrow_mut().remove(&address);
        self.0.spoke.wake_all();
    }

    /// How many sockets are open, listening ones left out.
    pub fn open_sockets(&self) -> usize {
        self.0.open.get()
    }

    /// How many sockets are bound.
    pub fn bound_sockets(&self) -> usize {
        self.0.bound.borrow().len()
    }
}

impl Acceptor {
    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.0.at
    }

    /// Its options.
    pub(super) fn options(&self) -> &Cell<Options> {
        &self.0.options
    }

    /// Starts to listen.
    pub fn listen(&self, backlog: usize) {
        self.0.backlog.set(Some(backlog));
    }

    /// Waits for a connection and takes it.
    pub async fn accept(&self) -> Socket {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    pub(super) fn poll_acceptable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.0.waiting.borrow().is_empty() {
            return Poll::Ready(());
        }
        *self.0.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Socket> {
        let first = self.0.waiting.borrow_mut().pop_front();
        match first {
            Some(socket) => Poll::Ready(socket),
            None => {
                *self.0.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
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

impl Socket {
    /// Receives some bytes; 0 at the end of the stream.
    pub async fn read(&self, to: &mut [u8]) -> Result<usize, Errno> {
        poll_fn(|cx| {
            self.poll_take(cx, |bytes| {
                let count = bytes.len().min(to.len());
                to[..count].copy_from_slice(&bytes[..count]);
                count
            })
        })
        .await
    }

    /// Receives without copying: `take` sees some bytes and says how many it is done with.
    pub async fn read_in_place(
        &self,
        mut take: impl FnMut(&[u8]) -> usize,
    ) -> Result<usize, Errno> {
        poll_fn(|cx| self.poll_take(cx, &mut take)).await
    }

    /// Sends without copying: `put` fills some room and says how much of it.
    pub async fn write_in_place(
        &self,
        mut put: impl FnMut(&mut [u8]) -> usize,
    ) -> Result<usize, Errno> {
        poll_fn(|cx| self.poll_put(cx, &mut put)).await
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
            self.poll_put(cx, |room| {
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

    /// The address of the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Its options.
    pub(super) fn options(&self) -> &Cell<Options> {
        &self.options
    }

    /// Receives no more, and goes on sending.
    pub(super) fn abandon(&self) {
        self.input.abandon();
    }

    /// Sends no more, and goes on receiving.
    pub fn finish(&self) {
        self.output.finish();
    }

    /// Breaks the connection.
    pub fn reset(&self) {
        self.input.reset();
        self.output.reset();
    }

    pub(super) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<Result<usize, Errno>> {
        self.input.poll_take(cx, take)
    }

    pub(super) fn poll_put(
        &self,
        cx: &mut Context<'_>,
        put: impl FnOnce(&mut [u8]) -> usize,
    ) -> Poll<Result<usize, Errno>> {
        self.output.poll_put(cx, put)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.net.0.open.set(self.net.0.open.get() - 1);
        if self.options.get().get(SocketOption::Linger) == Some(0) {
            self.output.reset();
        }
        self.output.finish();
        self.input.abandon();
    }
}
