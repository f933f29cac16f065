//! Carries out each request, or hands it to a task.

use super::connection::{self, Origin};
use super::datagrams;
use super::engine::{Engine, OPENING, Reply, Task};
use super::host::{Host, Limit, Network, Socket as _};
use super::listener::BoundSocket;
use super::socket::{DatagramSocket, Mailbox, Operation, Release, Settings, Socket};
use crate::wire::{Call, Family, Header, Options, Request, RingOffer, SocketOption};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::future::poll_fn;
use core::net::SocketAddr;
use xen::Errno;

/// What remains to be done for a request.
enum Step<'e> {
    /// Only the response.
    Done(Reply),
    /// A new task carries it out and answers it.
    Spawn(Task<'e>),
    /// The connection's own task carries it out and answers it.
    HandedOver,
}

const DONE: Step<'static> = Step::Done(Reply { value: 0, addr: None });

impl<H: Host> Engine<'_, H> {
    /// Carries out a request, or returns the task that will.
    pub(super) fn begin(&self, request: Request) -> Option<Task<'_>> {
        self.account.count_request();
        let header = request.header();
        let id = header.socket;
        let step = match request.call {
            Call::Socket { family } => {
                let settings = Settings { family: Some(family), options: Options::new() };
                self.insert(id, Socket::New(settings)).map(|()| DONE)
            }
            Call::Bind { addr } => self.bind(id, addr),
            Call::Listen { backlog } => {
                let limit = self.account.limits().backlog;
                self.bound(id).and_then(|socket| socket.listen(backlog, limit)).map(|()| DONE)
            }
            Call::Connect { addr, ring, .. } => self.connect(header, addr, ring),
            Call::Accept { new, ring } => self.accept(header, new, ring),
            Call::Poll => self.poll(header),
            Call::Release { reuse } => self.release(Release { header, reuse }),
            Call::SetOption { option, value } => self.set_option(header, option, value),
            Call::GetOption { option } => self.option(header, option),
            Call::LocalAddr => self.local_addr(header),
            Call::PeerAddr => self.hand_over(header, Operation::PeerAddr),
            Call::Shutdown { how } => self.hand_over(header, Operation::Shutdown(how)),
            Call::Resize { grants } => self.hand_over(header, Operation::Resize(grants)),
            Call::DatagramSocket { family } => {
                let settings = Settings { family: Some(family), options: Options::new() };
                self.insert(id, Socket::Datagrams(DatagramSocket::New(settings))).map(|()| DONE)
            }
            Call::Open { peer, ring } => self.open(header, peer, ring),
            Call::Join(group) => self.hand_over(header, Operation::Join(group)),
            Call::Leave(group) => self.hand_over(header, Operation::Leave(group)),
        };
        match step {
            Ok(Step::Done(reply)) => self.answer(header, Ok(reply)),
            Ok(Step::Spawn(task)) => return Some(task),
            Ok(Step::HandedOver) => {}
            Err(error) => self.answer(header, Err(error)),
        }
        None
    }

    fn insert(&self, id: u64, socket: Socket<H>) -> Result<(), Errno> {
        let mut sockets = self.sockets.borrow_mut();
        if sockets.get(id).is_some() {
            return Err(Errno::EEXIST);
        }
        let Some(share) = self.account.take_socket() else {
            self.host.limited(self.guest, Limit::Sockets);
            return Err(Errno::EMFILE);
        };
        sockets.add(id, socket, share);
        Ok(())
    }

    /// Creates the socket if it does not exist and the dialect has no command for that.
    fn ensure_exists(&self, id: u64) -> Result<(), Errno> {
        if self.protocol.dialect.has_socket_command() {
            return Ok(());
        }
        match self.insert(id, Socket::New(Settings::default())) {
            Err(Errno::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// Undoes what a failed CONNECT or BIND made of a socket.
    pub(super) fn reset(&self, id: u64, settings: Settings) {
        if self.protocol.dialect.has_socket_command() {
            self.sockets.borrow_mut().replace(id, Socket::New(settings));
        } else {
            self.sockets.borrow_mut().remove(id);
        }
    }

    fn bind(&self, id: u64, addr: SocketAddr) -> Result<Step<'_>, Errno> {
        self.ensure_exists(id)?;
        let settings = match self.sockets.borrow().get(id) {
            Some(Socket::New(settings)) => Some(*settings),
            Some(Socket::Datagrams(_)) => None,
            _ => return Err(Errno::EINVAL),
        };
        let Some(settings) = settings else { return self.bind_datagrams(id, addr) };
        self.charge(OPENING);
        let bind = || self.host.network().bind(self.guest, addr, &settings.options);
        let socket = settings
            .check_family(addr)
            .and_then(|()| bind())
            .inspect_err(|_| self.reset(id, settings))?;
        let addr = socket.local_addr().ok();
        let socket = Rc::new(BoundSocket::new(socket, settings.options, self.account.backlog()));
        self.sockets.borrow_mut().replace(id, Socket::Bound(socket));
        Ok(Step::Done(Reply { value: 0, addr }))
    }

    fn bind_datagrams(&self, id: u64, addr: SocketAddr) -> Result<Step<'_>, Errno> {
        let mut sockets = self.sockets.borrow_mut();
        let Some(Socket::Datagrams(socket)) = sockets.get_mut(id) else {
            return Err(Errno::EINVAL);
        };
        let DatagramSocket::New(settings) = *socket else { return Err(Errno::EINVAL) };
        settings.check_family(addr)?;
        self.charge(OPENING);
        let (network, family) = (self.host.network(), Family::of(addr));
        let bound = network.datagrams(self.guest, family, Some(addr), &settings.options)?;
        let addr = bound.local_addr().ok();
        *socket = DatagramSocket::Bound(bound, settings);
        Ok(Step::Done(Reply { value: 0, addr }))
    }

    fn open(
        &self,
        header: Header,
        peer: Option<SocketAddr>,
        ring: RingOffer,
    ) -> Result<Step<'_>, Errno> {
        let id = header.socket;
        let mut sockets = self.sockets.borrow_mut();
        let socket = match sockets.get_mut(id) {
            Some(Socket::Datagrams(DatagramSocket::Open(_))) => return Err(Errno::EISCONN),
            Some(Socket::Datagrams(socket)) => socket,
            Some(Socket::Releasing) | None => return Err(Errno::EINVAL),
            Some(_) => return Err(Errno::EOPNOTSUPP),
        };
        let mailbox = Rc::new(Mailbox::default());
        let former = core::mem::replace(socket, DatagramSocket::Open(mailbox.clone()));
        Ok(Step::Spawn(Box::pin(datagrams::run(self, mailbox, former, peer, ring, header))))
    }

    fn connect(
        &self,
        header: Header,
        addr: SocketAddr,
        ring: RingOffer,
    ) -> Result<Step<'_>, Errno> {
        let id = header.socket;
        self.ensure_exists(id)?;
        let settings = match self.sockets.borrow().get(id) {
            Some(Socket::New(settings)) => *settings,
            Some(Socket::Connection(_)) => return Err(Errno::EISCONN),
            Some(Socket::Bound(_) | Socket::Datagrams(_)) => return Err(Errno::EOPNOTSUPP),
            Some(Socket::Releasing) | None => return Err(Errno::EINVAL),
        };
        settings.check_family(addr).inspect_err(|_| self.reset(id, settings))?;
        let mailbox = Rc::new(Mailbox::default());
        self.sockets.borrow_mut().replace(id, Socket::Connection(mailbox.clone()));
        let origin = Origin::Connect(addr, settings);
        Ok(Step::Spawn(Box::pin(connection::run(self, id, mailbox, origin, ring, header))))
    }

    fn accept(&self, header: Header, new: u64, ring: RingOffer) -> Result<Step<'_>, Errno> {
        let origin = Origin::Accept(self.bound(header.socket)?.queue()?);
        let mailbox = Rc::new(Mailbox::default());
        self.insert(new, Socket::Connection(mailbox.clone()))?;
        Ok(Step::Spawn(Box::pin(connection::run(self, new, mailbox, origin, ring, header))))
    }

    fn poll(&self, header: Header) -> Result<Step<'_>, Errno> {
        let turn = self.bound(header.socket)?.queue()?;
        Ok(Step::Spawn(Box::pin(async move {
            let result = poll_fn(|cx| turn.poll_acceptable(cx)).await;
            drop(turn);
            self.answer(header, result.map(|()| Reply::default()));
        })))
    }

    fn release(&self, release: Release) -> Result<Step<'_>, Errno> {
        let id = release.header.socket;
        let mut sockets = self.sockets.borrow_mut();
        let socket = sockets.get_mut(id).ok_or(Errno::EINVAL)?;
        match core::mem::replace(socket, Socket::Releasing) {
            Socket::New(_) | Socket::Datagrams(DatagramSocket::New(_)) => {
                sockets.remove(id);
                Ok(DONE)
            }
            Socket::Connection(mailbox) | Socket::Datagrams(DatagramSocket::Open(mailbox)) => {
                mailbox.release(release);
                Ok(Step::HandedOver)
            }
            Socket::Datagrams(DatagramSocket::Bound(socket, _)) => {
                self.charge(OPENING);
                drop(socket);
                sockets.remove(id);
                Ok(DONE)
            }
            Socket::Bound(socket) => Ok(Step::Spawn(Box::pin(async move {
                socket.close().await;
                self.work(OPENING).await;
                // This is the last reference, so it closes the host's socket.
                drop(socket);
                self.sockets.borrow_mut().remove(id);
                self.answer(release.header, Ok(Reply::default()));
            }))),
            Socket::Releasing => Err(Errno::EINVAL),
        }
    }

    fn set_option(
        &self,
        header: Header,
        option: SocketOption,
        value: u32,
    ) -> Result<Step<'_>, Errno> {
        self.ensure_exists(header.socket)?;
        match self.sockets.borrow_mut().get_mut(header.socket) {
            Some(Socket::New(settings) | Socket::Datagrams(DatagramSocket::New(settings))) => {
                settings.options.set(option, value)
            }
            Some(Socket::Bound(socket)) => socket.set_option(option, value)?,
            Some(Socket::Datagrams(DatagramSocket::Bound(socket, settings))) => {
                socket.set_option(option, value)?;
                settings.options.set(option, value);
            }
            Some(
                Socket::Connection(mailbox) | Socket::Datagrams(DatagramSocket::Open(mailbox)),
            ) => {
                mailbox.hand_over(header, Operation::SetOption(option, value))?;
                return Ok(Step::HandedOver);
            }
            Some(Socket::Releasing) | None => return Err(Errno::EINVAL),
        }
        Ok(DONE)
    }

    fn option(&self, header: Header, option: SocketOption) -> Result<Step<'_>, Errno> {
        let value = match self.sockets.borrow().get(header.socket) {
            // The defaults are unknown until the host has a socket.
            Some(Socket::New(settings) | Socket::Datagrams(DatagramSocket::New(settings))) => {
                settings.options.get(option).ok_or(Errno::ENOTCONN)?
            }
            Some(Socket::Bound(socket)) => socket.option(option)?,
            Some(Socket::Datagrams(DatagramSocket::Bound(socket, _))) => socket.option(option)?,
            _ => return self.hand_over(header, Operation::GetOption(option)),
        };
        Ok(Step::Done(Reply { value, addr: None }))
    }

    fn local_addr(&self, header: Header) -> Result<Step<'_>, Errno> {
        let addr = match self.sockets.borrow().get(header.socket) {
            Some(Socket::Bound(socket)) => socket.local_addr()?,
            Some(Socket::Datagrams(DatagramSocket::Bound(socket, _))) => socket.local_addr()?,
            _ => return self.hand_over(header, Operation::LocalAddr),
        };
        Ok(Step::Done(Reply { value: 0, addr: Some(addr) }))
    }

    /// Hands a request over to the open socket that it is about.
    fn hand_over(&self, header: Header, operation: Operation) -> Result<Step<'_>, Errno> {
        let sockets = self.sockets.borrow();
        let socket = sockets.get(header.socket);
        let (mailbox, is_datagrams) = match socket {
            Some(Socket::Connection(mailbox)) => (Some(mailbox), false),
            Some(Socket::New(_) | Socket::Bound(_)) => (None, false),
            Some(Socket::Datagrams(DatagramSocket::Open(mailbox))) => (Some(mailbox), true),
            Some(Socket::Datagrams(_)) => (None, true),
            Some(Socket::Releasing) | None => return Err(Errno::EINVAL),
        };
        operation.check_type(is_datagrams)?;
        mailbox.ok_or(Errno::ENOTCONN)?.hand_over(header, operation)?;
        Ok(Step::HandedOver)
    }

    fn bound(&self, id: u64) -> Result<Rc<BoundSocket<H>>, Errno> {
        match self.sockets.borrow().get(id) {
            Some(Socket::Bound(socket)) => Ok(socket.clone()),
            Some(Socket::Datagrams(_)) => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::EINVAL),
        }
    }
}
