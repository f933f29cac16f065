//! Linux's sockets on tokio's reactor: none blocks or has a thread.

use crate::counts::Ticket;
use crate::linux::{self, Watched, errno, watch};
use crate::options;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use std::cell::OnceCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use xen::{Counter, DomId, Errno, Shared};
use xensock::back::{Listener, Network, Socket, Stream};
use xensock::wire::{Options, Shutdown, SocketOption};

/// Opens sockets.
#[derive(Clone, Default)]
pub struct Sockets {
    counter: Rc<Counter>,
    reuse_port: bool,
}

impl Sockets {
    /// Sockets counted in `counter`. With `reuse_port`, any number of listening sockets may have
    /// the same address and share its connections.
    pub fn new(counter: Rc<Counter>, reuse_port: bool) -> Self {
        Sockets { counter, reuse_port }
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
        let socket = open(to)?;
        sockopt::set_tcp_nodelay(&socket, true).map_err(errno)?;
        set_all(&socket, options)?;
        match net::connect(&socket, &to) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(errno(error)),
        }
        // Registered only now: epoll reports a socket that was never connected as closed.
        let connected = Connected::new(socket, Ticket::new(self.counter.clone()))?;
        connected.socket.writable().await.map_err(errno)?.retain_ready();
        match sockopt::socket_error(&connected.socket).map_err(errno)? {
            Ok(()) => Ok(connected),
            Err(error) => Err(errno(error)),
        }
    }

    fn bind(&self, _: DomId, to: SocketAddr, options: &Options) -> Result<Bound, Errno> {
        let socket = open(to)?;
        sockopt::set_socket_reuseaddr(&socket, true).map_err(errno)?;
        if self.reuse_port {
            sockopt::set_socket_reuseport(&socket, true).map_err(errno)?;
        }
        set_all(&socket, options)?;
        net::bind(&socket, &to).map_err(errno)?;
        Ok(Bound {
            socket: Rc::new(socket),
            ready: OnceCell::new(),
            counter: self.counter.clone(),
            _ticket: Ticket::new(self.counter.clone()),
        })
    }
}

fn open(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP)).map_err(errno)
}

fn set_all(socket: &OwnedFd, options: &Options) -> Result<(), Errno> {
    options
        .iter()
        .try_for_each(|(option, value)| options::set(socket, option, value).map_err(errno))
}

fn local_addr(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    let address = net::getsockname(socket).map_err(errno)?;
    address.try_into().map_err(|_| Errno::EAFNOSUPPORT)
}

/// A connected socket.
pub struct Connected {
    socket: Watched,
    _ticket: Ticket,
}

impl Connected {
    fn new(socket: OwnedFd, ticket: Ticket) -> Result<Self, Errno> {
        let socket =
            watch(Rc::new(socket), Interest::READABLE | Interest::WRITABLE).map_err(errno)?;
        Ok(Connected { socket, _ticket: ticket })
    }
}

impl Stream for Connected {
    fn poll_recv(&self, cx: &mut Context<'_>, room: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx)).map_err(errno)?;
            match ready.try_io(|socket| uninterrupted(|| linux::receive(socket, room))) {
                // Linux stops at urgent data, so fewer bytes than room does not mean that the
                // socket is empty. Only EAGAIN clears the readiness.
                Ok(result) => return Poll::Ready(result.map_err(errno)),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, data: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        let size = xensock::ring::len(&data);
        loop {
            let mut ready = ready!(self.socket.poll_write_ready(cx)).map_err(errno)?;
            match ready.try_io(|socket| uninterrupted(|| linux::send(socket, data))) {
                Ok(result) => {
                    if matches!(result, Ok(count) if count < size) {
                        ready.clear_ready();
                    }
                    return Poll::Ready(result.map_err(errno));
                }
                Err(_would_block) => {}
            }
        }
    }

    fn shutdown(&self, how: Shutdown) -> Result<(), Errno> {
        let how = match how {
            Shutdown::Read => net::Shutdown::Read,
            Shutdown::Write => net::Shutdown::Write,
            Shutdown::Both => net::Shutdown::Both,
        };
        net::shutdown(self.socket.get_ref(), how).map_err(errno)
    }

    fn peer_addr(&self) -> Result<SocketAddr, Errno> {
        let address = net::getpeername(self.socket.get_ref()).map_err(errno)?;
        address.and_then(|address| address.try_into().ok()).ok_or(Errno::ENOTCONN)
    }
}

impl Socket for Connected {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        options::set(self.socket.get_ref(), option, value).map_err(errno)
    }

    fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        options::get(self.socket.get_ref(), option).map_err(errno)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        local_addr(self.socket.get_ref())
    }
}

/// A bound socket, which may listen.
pub struct Bound {
    socket: Rc<OwnedFd>,
    /// Registered once the socket listens: epoll reports it as closed before.
    ready: OnceCell<Watched>,
    counter: Rc<Counter>,
    _ticket: Ticket,
}

impl Bound {
    fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        io: impl Fn() -> io::Result<T>,
    ) -> Poll<Result<T, Errno>> {
        let Some(socket) = self.ready.get() else { return Poll::Ready(Err(Errno::EINVAL)) };
        loop {
            let mut ready = ready!(socket.poll_read_ready(cx)).map_err(errno)?;
            if let Ok(result) = ready.try_io(|_| io()) {
                return Poll::Ready(result.map_err(errno));
            }
        }
    }
}

impl Listener for Bound {
    type Stream = Connected;

    fn listen(&self, backlog: u32) -> Result<(), Errno> {
        net::listen(&self.socket, i32::try_from(backlog).unwrap_or(i32::MAX)).map_err(errno)?;
        if self.ready.get().is_none() {
            let ready = watch(self.socket.clone(), Interest::READABLE);
            let _ = self.ready.set(ready.map_err(errno)?);
        }
        Ok(())
    }

    fn poll_acceptable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        let waiting = || {
            let mut socket = [PollFd::new(&self.socket, PollFlags::IN)];
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
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accept = || match net::accept_with(&self.socket, flags) {
            // Retry: the peer aborted before accept.
            Err(rustix::io::Errno::CONNABORTED) => Err(rustix::io::Errno::INTR.into()),
            result => Ok(result?),
        };
        let socket = ready!(self.poll_io(cx, || uninterrupted(accept)))?;
        sockopt::set_tcp_nodelay(&socket, true).map_err(errno)?;
        Poll::Ready(Connected::new(socket, Ticket::new(self.counter.clone())))
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
        local_addr(&self.socket)
    }
}

fn uninterrupted<T>(call: impl Fn() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
