//! A bound socket, and the queue of ACCEPTs and POLLs that wait for its connections.
//!
//! They are served in order. Only the first in the queue polls the host's socket, so the socket
//! needs to remember only one waker.

use super::account::Share;
use super::host::{Host, Listener, ListenerOf, Socket, StreamOf};
use crate::wire::{Options, SocketOption};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::net::SocketAddr;
use core::task::{Context, Poll, Waker, ready};
use xen::Errno;

/// A bound socket.
pub(super) struct BoundSocket<H: Host> {
    socket: ListenerOf<H>,
    /// The connections that may wait.
    backlog: RefCell<Share>,
    /// SO_LINGER of its connections, in seconds, which the engine implements.
    linger: Cell<Option<u32>>,
    listening: Cell<bool>,
    closing: Cell<bool>,
    /// The number of the latest turn.
    last: Cell<u64>,
    queue: RefCell<VecDeque<Place>>,
    /// The task of the RELEASE, which waits for the queue to become empty.
    closer: Cell<Option<Waker>>,
}

struct Place {
    number: u64,
    waker: Option<Waker>,
}

impl<H: Host> BoundSocket<H> {
    /// A socket that does not listen yet, with the options that it was bound with, and none of the
    /// connections that may wait.
    pub(super) fn new(socket: ListenerOf<H>, options: Options, backlog: Share) -> Self {
        BoundSocket {
            socket,
            backlog: backlog.into(),
            linger: Cell::new(options.get(SocketOption::Linger)),
            listening: Cell::new(false),
            closing: Cell::new(false),
            last: Cell::new(0),
            queue: RefCell::default(),
            closer: Cell::default(),
        }
    }

    /// Makes the socket listen, or changes its backlog, which is smaller than the guest asks for if
    /// its sockets together would exceed `limit`.
    pub(super) fn listen(&self, backlog: u32, limit: usize) -> Result<(), Errno> {
        let mut share = self.backlog.borrow_mut();
        let former = share.count();
        share.resize(backlog as usize, limit);
        let granted = u32::try_from(share.count()).unwrap_or(u32::MAX);
        self.socket.listen(granted).inspect_err(|_| share.resize(former, usize::MAX))?;
        self.listening.set(true);
        Ok(())
    }

    /// Sets an option; later connections inherit it.
    pub(super) fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        self.socket.set_option(option, value)?;
        if option == SocketOption::Linger {
            self.linger.set(Some(value));
        }
        Ok(())
    }

    /// Returns an option's value.
    pub(super) fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        match (option, self.linger.get()) {
            (SocketOption::Linger, Some(seconds)) => Ok(seconds),
            _ => self.socket.option(option),
        }
    }

    /// Returns the address that it is bound to.
    pub(super) fn local_addr(&self) -> Result<SocketAddr, Errno> {
        self.socket.local_addr()
    }

    /// Takes the last place in the queue. [`Errno::EINVAL`] if the socket does not listen.
    pub(super) fn queue(self: &Rc<Self>) -> Result<Turn<H>, Errno> {
        if !self.listening.get() {
            return Err(Errno::EINVAL);
        }
        let number = self.last.get() + 1;
        self.last.set(number);
        self.queue.borrow_mut().push_back(Place { number, waker: None });
        Ok(Turn { socket: self.clone(), number })
    }

    /// Ends all turns with [`Errno::ECONNABORTED`], and waits until the queue is empty.
    pub(super) async fn close(&self) {
        self.closing.set(true);
        for place in self.queue.borrow_mut().iter_mut() {
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
        }
        poll_fn(|cx| {
            if self.queue.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.closer.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// A place in a socket's queue, until it is dropped.
pub(super) struct Turn<H: Host> {
    socket: Rc<BoundSocket<H>>,
    number: u64,
}

impl<H: Host> Turn<H> {
    /// SO_LINGER of the connection, in seconds.
    pub(super) fn linger(&self) -> Option<u32> {
        self.socket.linger.get()
    }

    /// Waits for this place to be the first. [`Errno::ECONNABORTED`] if the socket is released.
    pub(super) fn poll_first(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        if self.socket.closing.get() {
            return Poll::Ready(Err(Errno::ECONNABORTED));
        }
        let mut queue = self.socket.queue.borrow_mut();
        let first = queue.front().is_some_and(|place| place.number == self.number);
        // The first one registers too: a RELEASE of the socket wakes it.
        if let Some(place) = queue.iter_mut().find(|place| place.number == self.number) {
            place.waker = Some(cx.waker().clone());
        }
        if first { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Waits for this place to be the first, and then until a connection can be accepted.
    pub(super) fn poll_acceptable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        ready!(self.poll_first(cx))?;
        self.socket.socket.poll_acceptable(cx)
    }

    /// Waits for this place to be the first, and then for a connection.
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<StreamOf<H>, Errno>> {
        ready!(self.poll_first(cx))?;
        self.socket.socket.poll_accept(cx)
    }
}

impl<H: Host> Drop for Turn<H> {
    fn drop(&mut self) {
        let mut queue = self.socket.queue.borrow_mut();
        queue.retain(|place| place.number != self.number);
        let next = match queue.front_mut() {
            Some(place) => place.waker.take(),
            None => self.socket.closer.take(),
        };
        drop(queue);
        if let Some(waker) = next {
            waker.wake();
        }
    }
}
