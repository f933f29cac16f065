//! A socket that connections come to.

use super::state::{Inner, State};
use super::stream::{Connection, Stream};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::net::SocketAddr;
use edge_nal::{Readable, TcpAccept};
use embassy_time::Instant;
use embedded_io_async::ErrorType;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::time::Duration;
use smoltcp::wire::IpListenEndpoint;
use xen::{Errno, WaitList};

/// How long a connection may take to come about.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// A listening socket. Connections wait in its backlog; dropping it closes those that do.
pub struct Listener {
    inner: Rc<Inner>,
    queue: Rc<Queue>,
}

/// A listener's sockets.
pub(super) struct Queue {
    at: IpListenEndpoint,
    /// The one that waits for the next connection; none while the backlog is full, or memory short.
    listening: Cell<Option<SocketHandle>>,
    /// Connections that nobody has accepted, and those that are not quite there.
    pending: RefCell<VecDeque<SocketHandle>>,
    /// Told when there may be one to accept.
    arrived: WaitList,
}

/// Listens at an address.
pub(super) fn bind(inner: &Rc<Inner>, at: SocketAddr) -> Result<Listener, Errno> {
    let socket = inner.socket()?;
    let queue = inner.with(|state| {
        let port = if at.port() == 0 { state.free_port()? } else { at.port() };
        let addr = (!at.ip().is_unspecified()).then(|| at.ip().into());
        if addr.is_some_and(|addr| !state.interface.has_ip_addr(addr)) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let at = IpListenEndpoint { addr, port };
        let clashes = |other: &IpListenEndpoint| {
            other.port == port && (other.addr.is_none() || addr.is_none() || other.addr == addr)
        };
        if state.listeners().iter().any(|listener| clashes(&listener.at)) {
            return Err(Errno::EADDRINUSE);
        }
        let queue = Rc::new(Queue {
            at,
            listening: Cell::new(None),
            pending: RefCell::default(),
            arrived: WaitList::default(),
        });
        queue.listen(state, socket);
        state.listeners.push(Rc::downgrade(&queue));
        Ok(queue)
    })?;
    Ok(Listener { inner: inner.clone(), queue })
}

impl Queue {
    fn listen(&self, state: &mut State, mut socket: tcp::Socket<'static>) {
        socket.set_timeout(Some(HANDSHAKE));
        if socket.listen(self.at).is_ok() {
            self.listening.set(Some(state.sockets.add(socket)));
        }
    }

    /// Takes in the connection that has come, if one has, and listens for the next.
    pub(super) fn attend(&self, inner: &Inner, state: &mut State) {
        if let Some(handle) = self.listening.get()
            && state.tcp(handle).state() != tcp::State::Listen
        {
            self.listening.set(None);
            if state.has_twin(handle) {
                state.sockets.remove(handle);
            } else {
                self.pending.borrow_mut().push_back(handle);
            }
        }
        let mut some = false;
        self.pending.borrow_mut().retain(|&handle| match state.tcp(handle).state() {
            // It was reset before it came about. A socket that listened listens again then.
            tcp::State::Closed | tcp::State::Listen => {
                state.sockets.remove(handle);
                false
            }
            tcp::State::SynReceived => true,
            _ => {
                some = true;
                true
            }
        });
        if self.listening.get().is_none()
            && self.pending.borrow().len() < inner.config.backlog
            && let Ok(socket) = inner.socket()
        {
            self.listen(state, socket);
        }
        if some {
            self.arrived.wake_one();
        }
    }

    /// The first connection that has come about.
    fn take(&self, state: &mut State) -> Option<SocketHandle> {
        let mut pending = self.pending.borrow_mut();
        let is_there = |handle: &SocketHandle| {
            !matches!(
                state.tcp(*handle).state(),
                tcp::State::Closed | tcp::State::Listen | tcp::State::SynReceived
            )
        };
        let at = pending.iter().position(is_there)?;
        pending.remove(at)
    }
}

impl Listener {
    /// Waits for a connection.
    pub async fn accept(&self) -> Result<Stream, Errno> {
        let taken = || self.inner.with(|state| self.queue.take(state));
        let handle = self.queue.arrived.until(taken).await;
        self.inner.with(|state| state.tcp(handle).set_timeout(None));
        let stream = Stream::new(Connection::new(&self.inner, handle));
        // There is room in the backlog again, and the next waiter may find a connection, too.
        self.inner.kick();
        Ok(stream)
    }

    /// Where it listens; an unspecified address is IPv4's.
    pub fn local_addr(&self) -> SocketAddr {
        let unspecified = core::net::Ipv4Addr::UNSPECIFIED.into();
        let IpListenEndpoint { addr, port } = self.queue.at;
        SocketAddr::new(addr.map_or(unspecified, Into::into), port)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let until = Instant::now() + self.inner.config.linger;
        self.inner.with(|state| {
            let pending = self.queue.pending.take();
            for handle in pending.into_iter().chain(self.queue.listening.take()) {
                state.tcp(handle).abort();
                state.retire(handle, until);
            }
        });
        self.inner.kick();
    }
}

impl TcpAccept for Listener {
    type Error = Errno;
    type Socket<'a> = Stream;

    async fn accept(&self) -> Result<(SocketAddr, Stream), Errno> {
        let stream = Listener::accept(self).await?;
        let unknown = (core::net::Ipv4Addr::UNSPECIFIED, 0).into();
        Ok((stream.peer_addr().unwrap_or(unknown), stream))
    }
}

impl ErrorType for Listener {
    type Error = Errno;
}

impl Readable for Listener {
    async fn readable(&mut self) -> Result<(), Errno> {
        let some = || {
            self.inner.with(|state| {
                let handle = self.queue.take(state)?;
                self.queue.pending.borrow_mut().push_front(handle);
                Some(())
            })
        };
        self.queue.arrived.until(some).await;
        Ok(())
    }
}
