//! A socket that was bound, and the queue of those who wait for its connections.
//!
//! ACCEPTs and POLLs are served in the order in which they came: only the first of the queue looks at the
//! socket, so the host has to remember only one waker.

use super::guest::Guest;
use super::{Host, Socket};
use crate::wire::{Options, Request, SocketOption};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::net::SocketAddr;
use core::task::{Context, Poll, Waker, ready};
use xen::Errno;

/// A bound socket.
pub(super) struct Passive<H: Host> {
    socket: H::Listener,
    /// In seconds, for its connections: the engine's own affair.
    linger: Cell<Option<u32>>,
    listening: Cell<bool>,
    closing: Cell<bool>,
    last: Cell<u64>,
    queue: RefCell<VecDeque<Place>>,
    closer: RefCell<Option<Waker>>,
}

struct Place {
    number: u64,
    waker: Option<Waker>,
}

impl<H: Host> Passive<H> {
    /// A socket that does not listen yet.
    pub(super) fn new(socket: H::Listener, options: Options) -> Self {
        Passive {
            socket,
            linger: Cell::new(options.get(SocketOption::Linger)),
            listening: Cell::new(false),
            closing: Cell::new(false),
            last: Cell::new(0),
            queue: RefCell::default(),
            closer: RefCell::default(),
        }
    }

    /// Makes the socket listen, or changes its backlog.
    pub(super) fn listen(&self, host: &H, backlog: u32) -> Result<(), Errno> {
        host.listen(&self.socket, backlog)?;
        self.listening.set(true);
        Ok(())
    }

    /// Changes an option, which the connections that come from now on have, too.
    pub(super) fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        self.socket.set_option(option, value)?;
        if option == SocketOption::Linger {
            self.linger.set(Some(value));
        }
        Ok(())
    }

    /// An option's value.
    pub(super) fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        match (option, self.linger.get()) {
            (SocketOption::Linger, Some(seconds)) => Ok(seconds),
            _ => self.socket.option(option),
        }
    }

    /// The address that it is bound to.
    pub(super) fn local_addr(&self) -> Result<SocketAddr, Errno> {
        self.socket.local_addr()
    }

    /// Takes the last place in the queue. [`Errno::EINVAL`] when the socket does not listen.
    pub(super) fn queue(self: &Rc<Self>) -> Result<Turn<H>, Errno> {
        if !self.listening.get() {
            return Err(Errno::EINVAL);
        }
        let number = self.last.get() + 1;
        self.last.set(number);
        self.queue.borrow_mut().push_back(Place { number, waker: None });
        Ok(Turn { passive: self.clone(), number })
    }

    /// Waits until nobody is in the queue.
    fn poll_deserted(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.queue.borrow().is_empty() {
            return Poll::Ready(());
        }
        *self.closer.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wake_all(&self) {
        for place in self.queue.borrow_mut().iter_mut() {
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
        }
    }
}

/// A place in a socket's queue, until it is dropped.
pub(super) struct Turn<H: Host> {
    passive: Rc<Passive<H>>,
    number: u64,
}

impl<H: Host> Turn<H> {
    /// How long the connection that comes may linger, in seconds.
    pub(super) fn linger(&self) -> Option<u32> {
        self.passive.linger.get()
    }

    /// Waits for this place to be the first. [`Errno::ECONNABORTED`] when the socket is released.
    fn poll_first(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        if self.passive.closing.get() {
            return Poll::Ready(Err(Errno::ECONNABORTED));
        }
        let mut queue = self.passive.queue.borrow_mut();
        let first = queue.front().is_some_and(|place| place.number == self.number);
        // The first one too: that is how it hears of the socket's release.
        if let Some(place) = queue.iter_mut().find(|place| place.number == self.number) {
            place.waker = Some(cx.waker().clone());
        }
        if first { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Waits for this place to be the first, and then for a connection.
    pub(super) fn poll_accept(
        &self,
        host: &H,
        cx: &mut Context<'_>,
    ) -> Poll<Result<H::Stream, Errno>> {
        ready!(self.poll_first(cx))?;
        host.poll_accept(cx, &self.passive.socket)
    }
}

impl<H: Host> Drop for Turn<H> {
    fn drop(&mut self) {
        let mut queue = self.passive.queue.borrow_mut();
        queue.retain(|place| place.number != self.number);
        let next = match queue.front_mut() {
            Some(place) => place.waker.take(),
            None => self.passive.closer.borrow_mut().take(),
        };
        drop(queue);
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

/// Carries out a POLL.
pub(super) async fn poll<H: Host>(guest: &Guest<'_, H>, turn: Turn<H>, request: Request) {
    let result = poll_fn(|cx| {
        ready!(turn.poll_first(cx))?;
        guest.host.poll_acceptable(cx, &turn.passive.socket)
    })
    .await;
    drop(turn);
    guest.answer(request.answer(result.map(|()| 0)));
}

/// Carries out the RELEASE of a bound socket: those in its queue are turned away first.
pub(super) async fn release<H: Host>(
    guest: &Guest<'_, H>,
    passive: Rc<Passive<H>>,
    request: Request,
) {
    passive.closing.set(true);
    passive.wake_all();
    poll_fn(|cx| passive.poll_deserted(cx)).await;
    // Nobody else holds it now, so this closes the socket.
    drop(passive);
    guest.sockets.borrow_mut().remove(&request.socket);
    guest.answer(request.answer(Ok(0)));
}
