//! Linux's sockets on the thread's reactor: none blocks.
//!
//! A call that moves less than it could leaves the socket empty or full, so the next call waits for
//! the reactor's word and not for EAGAIN.

use crate::linux;
use crate::options;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{self, sockopt};
use std::cell::OnceCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use xen::{DomId, Errno, Shared, Side};
use xen_linux::runtime::{READABLE, Reactor, SOCKET, Watched};
use xen_linux::{Count, Ticket, errno, tcp};
use xensock::back::{Listener, Network, Socket, Stream};
use xensock::wire::{Options, Shutdown, SocketOption};

/// Opens sockets.
#[derive(Clone)]
pub struct Sockets {
    reactor: Reactor,
    counter: Arc<Count>,
    reuse_port: bool,
    start: Instant,
}

impl Sockets {
    /// Sockets counted in `counter`. With `reuse_port`, any number of listening sockets may have
    /// the same address and share its connections.
    pub fn new(reactor: &Reactor, counter: Arc<Count>, reuse_port: bool) -> Self {
        Sockets { reactor: reactor.clone(), counter, reuse_port, start: Instant::now() }
    }

    /// The thread's reactor.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// A moment from which time can be measured.
    pub fn start(&self) -> Instant {
        self.start
    }
}

impl Network for Sockets {
    type Stream = Connected;
    type Listener = Bound;

    async fn connect(
        &self,
        _: DomId,
        to: SocketAddr,
        options: &Options,
    ) -> Result<Connected, Errno> {
        let socket = tcp::open(to)?;
        set_all(&socket, options)?;
        let ticket = Ticket::new(self.counter.clone());
        let socket = tcp::connect(&self.reactor, socket, to).await?;
        Ok(Connected { socket, peer: to, _ticket: ticket })
    }

    fn bind(&self, _: DomId, to: SocketAddr, options: &Options) -> Result<Bound, Errno> {
        let socket = tcp::open(to)?;
        sockopt::set_socket_reuseaddr(&socket, true).map_err(errno)?;
        if self.reuse_port {
            sockopt::set_socket_reuseport(&socket, true).map_err(errno)?;
        }
        set_all(&socket, options)?;
        net::bind(&socket, &to).map_err(errno)?;
        Ok(Bound {
            socket: Rc::new(socket),
            reactor: self.reactor.clone(),
            ready: OnceCell::new(),
            counter: self.counter.clone(),
            _ticket: Ticket::new(self.counter.clone()),
        })
    }
}

fn set_all(socket: &OwnedFd, options: &Options) -> Result<(), Errno> {
    options
        .iter()
        .try_for_each(|(option, value)| options::set(socket, option, value).map_err(errno))
}

/// A connected socket.
pub struct Connected {
    socket: Watched,
    peer: SocketAddr,
    _ticket: Ticket,
}

impl Stream for Connected {
    fn poll_recv(&self, cx: &mut Context<'_>, room: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        let size = xensock::ring::len(&room);
        let received = self.socket.poll_io(cx, Side::Rx, |socket| linux::receive(socket, room));
        let result = ready!(received);
        if matches!(result, Ok(count) if count < size) {
            self.socket.clear_after_short_read();
        }
        Poll::Ready(result.map_err(errno))
    }

    fn poll_send(&self, cx: &mut Context<'_>, data: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        let size = xensock::ring::len(&data);
        let result = ready!(self.socket.poll_io(cx, Side::Tx, |socket| linux::send(socket, data)));
        if matches!(result, Ok(count) if count < size) {
            self.socket.clear(Side::Tx);
        }
        Poll::Ready(result.map_err(errno))
    }

    fn shutdown(&self, how: Shutdown) -> Result<(), Errno> {
        let how = match how {
            Shutdown::Read => net::Shutdown::Read,
            Shutdown::Write => net::Shutdown::Write,
            Shutdown::Both => net::Shutdown::Both,
        };
        net::shutdown(&*self.socket, how).map_err(errno)
    }

    fn peer_addr(&self) -> Result<SocketAddr, Errno> {
        Ok(self.peer)
    }
}

impl Socket for Connected {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        options::set(&self.socket, option, value).map_err(errno)
    }

    fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        options::get(&self.socket, option).map_err(errno)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        tcp::local_addr(&self.socket)
    }
}

/// A bound socket, which may listen.
pub struct Bound {
    socket: Rc<OwnedFd>,
    reactor: Reactor,
    /// Registered once the socket listens: epoll reports it as closed before.
    ready: OnceCell<Watched>,
    counter: Arc<Count>,
    _ticket: Ticket,
}

impl Bound {
    fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        io: impl Fn(&OwnedFd) -> io::Result<T>,
    ) -> Poll<Result<T, Errno>> {
        match self.ready.get() {
            Some(socket) => socket.poll_io(cx, Side::Rx, io).map_err(errno),
            None => Poll::Ready(Err(Errno::EINVAL)),
        }
    }
}

impl Listener for Bound {
    type Stream = Connected;

    fn listen(&self, backlog: u32) -> Result<(), Errno> {
        net::listen(&self.socket, i32::try_from(backlog).unwrap_or(i32::MAX)).map_err(errno)?;
        if self.ready.get().is_none() {
            let ready = self.reactor.watch(self.socket.clone(), READABLE);
            let _ = self.ready.set(ready.map_err(errno)?);
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
        self.poll_io(cx, waiting)
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Connected, Errno>> {
        let (socket, peer) = ready!(self.poll_io(cx, tcp::accept))?;
        let peer = peer.ok_or(Errno::EAFNOSUPPORT)?;
        let socket = self.reactor.watch(Rc::new(socket), SOCKET).map_err(errno)?;
        Poll::Ready(Ok(Connected { socket, peer, _ticket: Ticket::new(self.counter.clone()) }))
    }
}

impl Socket for Bound {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        options::set(&self.socket, option, value).map_err(errno)
    }

    fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        options::get(&self.socket, option).map_err(errno)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        tcp::local_addr(&self.socket)
    }
}
