//! The state of a guest's socket.

use super::account::Share;
use super::host::{DatagramsOf, Host};
use super::listener::BoundSocket;
use crate::wire::{Family, Group, Header, Options, RingGrants, Shutdown, SocketOption};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::net::SocketAddr;
use core::task::{Context, Waker};
use xen::Errno;

/// A guest's socket.
pub(super) enum Socket<H: Host> {
    /// Created: the host has no socket for it yet.
    New(Settings),
    /// Connected, or being connected. A task serves it.
    Connection(Rc<Mailbox>),
    /// Bound; it may listen.
    Bound(Rc<BoundSocket<H>>),
    /// A socket of datagrams.
    Datagrams(DatagramSocket<H>),
    /// Being released.
    Releasing,
}

/// A guest's socket of datagrams.
pub(super) enum DatagramSocket<H: Host> {
    /// Created: the host has no socket for it yet.
    New(Settings),
    /// Bound, without a ring.
    Bound(DatagramsOf<H>, Settings),
    /// Open, or being opened. A task serves it.
    Open(Rc<Mailbox>),
}

/// A device's sockets, by the guest's ids, each with its share of what the guest may have.
pub(super) struct Sockets<H: Host>(BTreeMap<u64, (Socket<H>, Share)>);

impl<H: Host> Default for Sockets<H> {
    fn default() -> Self {
        Sockets(BTreeMap::new())
    }
}

impl<H: Host> Sockets<H> {
    pub(super) fn get(&self, id: u64) -> Option<&Socket<H>> {
        self.0.get(&id).map(|(socket, _)| socket)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Socket<H>> {
        self.0.get_mut(&id).map(|(socket, _)| socket)
    }

    /// Adds a socket whose id is free.
    pub(super) fn add(&mut self, id: u64, socket: Socket<H>, share: Share) {
        self.0.insert(id, (socket, share));
    }

    /// Changes what a socket is.
    pub(super) fn replace(&mut self, id: u64, socket: Socket<H>) {
        if let Some(entry) = self.get_mut(id) {
            *entry = socket;
        }
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.0.remove(&id);
    }
}

/// The properties of a socket for which the host has none yet.
#[derive(Clone, Copy, Default)]
pub(super) struct Settings {
    /// The family of its addresses, if the dialect states it before the first address.
    pub(super) family: Option<Family>,
    pub(super) options: Options,
}

impl Settings {
    /// [`Errno::EAFNOSUPPORT`] if the address is of another family.
    pub(super) fn check_family(&self, addr: SocketAddr) -> Result<(), Errno> {
        match self.family {
            Some(family) if family != Family::of(addr) => Err(Errno::EAFNOSUPPORT),
            _ => Ok(()),
        }
    }
}

/// A request that an open socket carries out.
pub(super) enum Operation {
    SetOption(SocketOption, u32),
    GetOption(SocketOption),
    LocalAddr,
    PeerAddr,
    Shutdown(Shutdown),
    Resize(RingGrants),
    Join(Group),
    Leave(Group),
}

impl Operation {
    /// [`Errno::EOPNOTSUPP`] if it is for sockets of the other type.
    pub(super) fn check_type(&self, is_datagrams: bool) -> Result<(), Errno> {
        let wrong = match self {
            Operation::Shutdown(_) | Operation::Resize(_) => is_datagrams,
            Operation::Join(_) | Operation::Leave(_) => !is_datagrams,
            _ => false,
        };
        if wrong { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
    }
}

/// A RELEASE.
pub(super) struct Release {
    pub(super) header: Header,
    /// Whether the guest will offer the same ring again.
    pub(super) reuse: bool,
}

/// Passes the requests about an open socket to its task.
#[derive(Default)]
pub(super) struct Mailbox {
    /// Whether the socket is open. Before, the task takes only a RELEASE.
    open: Cell<bool>,
    /// Few: each request occupies a slot of the command ring.
    operations: RefCell<VecDeque<(Header, Operation)>>,
    release: Cell<Option<Release>>,
    waker: Cell<Option<Waker>>,
}

impl Mailbox {
    /// Hands over a request, which the task will answer. [`Errno::ENOTCONN`] before the socket
    /// is open.
    pub(super) fn hand_over(&self, header: Header, operation: Operation) -> Result<(), Errno> {
        if !self.open.get() {
            return Err(Errno::ENOTCONN);
        }
        self.operations.borrow_mut().push_back((header, operation));
        self.wake();
        Ok(())
    }

    /// Hands over the RELEASE, which is the last request.
    pub(super) fn release(&self, release: Release) {
        self.release.set(Some(release));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Marks the socket as open.
    pub(super) fn open(&self) {
        self.open.set(true);
    }

    /// Wakes the task at the next request.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.waker.set(Some(cx.waker().clone()));
    }

    /// Takes the next request to carry out.
    pub(super) fn take_operation(&self) -> Option<(Header, Operation)> {
        self.operations.borrow_mut().pop_front()
    }

    /// Takes the RELEASE, if it was requested.
    pub(super) fn take_release(&self) -> Option<Release> {
        self.release.take()
    }
}
