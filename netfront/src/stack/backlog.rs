//! A listener's sockets: the one that listens, and the connections that wait for `accept`.

use super::config::Config;
use alloc::collections::VecDeque;
use core::cell::{Cell, RefCell};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Duration;
use smoltcp::wire::IpListenEndpoint;
use xen::{Errno, WaitList};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// The sockets of a listener.
pub(super) struct Backlog {
    pub(super) addr: IpListenEndpoint,
    /// The socket for the next connection. None while the backlog is full or memory is short.
    listening: Cell<Option<SocketHandle>>,
    /// Connections that were not accepted yet, including those in their handshake.
    pending: RefCell<VecDeque<SocketHandle>>,
    /// Woken when a connection can be accepted.
    pub(super) arrived: WaitList,
}

impl Backlog {
    /// Listens at an address.
    pub(super) fn new(
        addr: IpListenEndpoint,
        config: &Config,
        sockets: &mut SocketSet<'static>,
    ) -> Result<Self, Errno> {
        let backlog = Backlog {
            addr,
            listening: Cell::new(None),
            pending: RefCell::default(),
            arrived: WaitList::default(),
        };
        backlog.listen(config, sockets)?;
        Ok(backlog)
    }

    /// Whether both listen for some connection.
    pub(super) fn overlaps(&self, other: IpListenEndpoint) -> bool {
        let IpListenEndpoint { addr, port } = self.addr;
        port == other.port && (addr.is_none() || other.addr.is_none() || addr == other.addr)
    }

    fn listen(&self, config: &Config, sockets: &mut SocketSet<'static>) -> Result<(), Errno> {
        let mut socket = config.socket()?;
        socket.set_timeout(Some(HANDSHAKE_TIMEOUT));
        // A new socket can listen at any port but 0, which no backlog has.
        socket.listen(self.addr).map_err(|_| Errno::EINVAL)?;
        self.listening.set(Some(sockets.add(socket)));
        Ok(())
    }

    /// Queues a connection that has arrived, and listens for the next one.
    pub(super) fn update(&self, config: &Config, sockets: &mut SocketSet<'static>) {
        if let Some(handle) = self.listening.get()
            && state(sockets, handle) != tcp::State::Listen
        {
            self.listening.set(None);
            if has_twin(sockets, handle) {
                sockets.remove(handle);
            } else {
                self.pending.borrow_mut().push_back(handle);
            }
        }
        self.pending.borrow_mut().retain(|&handle| {
            // After a reset during the handshake, smoltcp's socket listens again.
            let failed = matches!(state(sockets, handle), tcp::State::Closed | tcp::State::Listen);
            if failed {
                sockets.remove(handle);
            }
            !failed
        });
        if self.listening.get().is_none() && self.pending.borrow().len() < config.backlog {
            // Retried at the next update.
            let _ = self.listen(config, sockets);
        }
        if self.is_ready(sockets) {
            self.arrived.wake_one();
        }
    }

    fn first_connected(&self, sockets: &SocketSet<'static>) -> Option<usize> {
        let pending = self.pending.borrow();
        pending.iter().position(|&handle| {
            !matches!(
                state(sockets, handle),
                tcp::State::Closed | tcp::State::Listen | tcp::State::SynReceived
            )
        })
    }

    /// Whether a connection can be accepted.
    pub(super) fn is_ready(&self, sockets: &SocketSet<'static>) -> bool {
        self.first_connected(sockets).is_some()
    }

    /// The first connection that can be accepted.
    pub(super) fn accept(&self, sockets: &mut SocketSet<'static>) -> Option<SocketHandle> {
        let index = self.first_connected(sockets)?;
        let handle = self.pending.borrow_mut().remove(index)?;
        sockets.get_mut::<tcp::Socket<'_>>(handle).set_timeout(None);
        Some(handle)
    }

    /// Removes and returns all sockets.
    pub(super) fn take(&self) -> impl Iterator<Item = SocketHandle> + use<> {
        self.pending.take().into_iter().chain(self.listening.take())
    }
}

fn state(sockets: &SocketSet<'static>, handle: SocketHandle) -> tcp::State {
    sockets.get::<tcp::Socket<'_>>(handle).state()
}

/// Whether another socket has the same two endpoints. smoltcp gives a segment to the first socket
/// that takes it: a SYN that is repeated (a copy, or the client's retransmission) may reach a
/// listening socket before the socket of its connection, and two sockets that answer one client end
/// in a reset.
fn has_twin(sockets: &SocketSet<'static>, of: SocketHandle) -> bool {
    let ends = |socket: &tcp::Socket<'_>| (socket.local_endpoint(), socket.remote_endpoint());
    let wanted = ends(sockets.get(of));
    sockets.iter().any(|(handle, socket)| match socket {
        smoltcp::socket::Socket::Tcp(socket) => {
            handle != of && socket.is_open() && ends(socket) == wanted
        }
        _ => false,
    })
}
