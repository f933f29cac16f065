//! What a frontend's handles, sockets and driver share.

use super::Config;
use super::calls::{Answer, Calls};
use super::counters::Counters;
use super::listener::Passive;
use super::memory::{Granted, Memory};
use super::session;
use super::socket::Socket;
use crate::wire::{Call, Orders, Protocol};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::time::Duration;
use embassy_time::{Timer, with_timeout};
use futures_channel::oneshot;
use xen::WaitList;
use xen::frontend::{self, Meeting, SessionEnd};
use xen::{DomId, Errno, Port};
use xen::{Machine, Signal};

/// How long a backend may take to let go of what it has mapped, before the frontend goes on.
const LETTING_GO: Duration = Duration::from_secs(5);

/// Work that goes on whether or not anybody waits for it.
pub(super) type Job = Pin<Box<dyn Future<Output = ()>>>;

/// The state of the way to the backend.
pub(super) enum Link {
    /// Not connected yet, or not connected again yet.
    Waiting,
    /// Connected.
    Up(Box<Session>),
    /// Over.
    Down(Errno),
}

/// A connection to a backend: its command ring.
pub(super) struct Session {
    pub(super) attachment: Attachment,
    pub(super) calls: Calls,
    pub(super) page: Granted,
    pub(super) port: Port,
    pub(super) signal: Arc<Signal>,
}

/// What a socket needs to know of the session that it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Attachment {
    /// The session's number: a later session knows nothing of this one's sockets.
    pub(super) session: u32,
    pub(super) backend: DomId,
    /// What the two ends have agreed on.
    pub(super) protocol: Protocol,
    /// The orders of data rings that the backend maps.
    pub(super) orders: Orders,
    /// The order of a data ring whose user has no wish.
    pub(super) ring_order: u32,
}

impl Attachment {
    /// The order of the smallest ring that holds `receive` bytes of `in` and `send` bytes of `out`, or of
    /// the largest there is. Without a wish it is the usual one.
    pub(super) fn order_for(&self, receive: Option<u32>, send: Option<u32>) -> u32 {
        if receive.is_none() && send.is_none() {
            return self.ring_order;
        }
        let holds = |order| {
            self.protocol.layout(order).is_ok_and(|layout| {
                layout.input.size >= receive.unwrap_or(0) && layout.output.size >= send.unwrap_or(0)
            })
        };
        let orders = self.orders.min..=self.orders.max;
        orders.clone().find(|&order| holds(order)).unwrap_or(*orders.end())
    }
}

/// The shared state.
pub(super) struct Device<M: Machine + 'static> {
    pub(super) config: Config,
    pub(super) memory: Memory<M>,
    pub(super) counters: Rc<Counters>,
    pub(super) link: RefCell<Link>,
    /// Told when the link's state changes.
    pub(super) link_changed: WaitList,
    /// Whether somebody wants the device closed.
    closing: Cell<bool>,
    /// How many sockets are being released.
    releasing: Cell<usize>,
    /// Whether the session is to be left at once, as the machine has lost all that it was made of.
    lost: Cell<bool>,
    /// Told when one of the three changes.
    closing_changed: WaitList,
    /// How many listeners were dropped and are not released yet.
    pub(super) unbinding: Cell<usize>,
    /// Told when one is.
    pub(super) unbound: WaitList,
    /// Jobs that the driver has not picked up yet.
    spawned: RefCell<Vec<Job>>,
    /// Told when there is one.
    spawned_some: WaitList,
    /// The active sockets that hold a ring.
    sockets: RefCell<BTreeMap<u64, Weak<Socket<M>>>>,
    /// The listeners, which listen again whenever the link comes up.
    listeners: RefCell<Vec<Weak<Passive<M>>>>,
    next_socket: Cell<u64>,
}

impl<M: Machine + 'static> Device<M> {
    pub(super) fn new(machine: M, config: Config) -> Self {
        let counters = Rc::new(Counters::default());
        Device {
            config,
            memory: Memory::new(machine, counters.clone()),
            counters,
            link: RefCell::new(Link::Waiting),
            link_changed: WaitList::default(),
            closing: Cell::new(false),
            releasing: Cell::new(0),
            lost: Cell::new(false),
            closing_changed: WaitList::default(),
            unbinding: Cell::new(0),
            unbound: WaitList::default(),
            spawned: RefCell::default(),
            spawned_some: WaitList::default(),
            sockets: RefCell::default(),
            listeners: RefCell::default(),
            next_socket: Cell::new(1),
        }
    }

    /// Waits until the link is up.
    pub(super) async fn attached(&self) -> Result<Attachment, Errno> {
        self.link_changed
            .until(|| match &*self.link.borrow() {
                Link::Waiting => None,
                Link::Up(session) => Some(Ok(session.attachment)),
                Link::Down(error) => Some(Err(*error)),
            })
            .await
    }

    /// Makes a request and waits for its answer. It must be polled to its end by a job of the driver.
    pub(super) async fn call(&self, session: u32, socket: u64, call: Call) -> Answer {
        let patient = matches!(call, Call::Accept { .. } | Call::Poll);
        let answer = {
            let mut link = self.link.borrow_mut();
            match &mut *link {
                Link::Up(up) if up.attachment.session == session => {
                    let answer = up.calls.queue(socket, call);
                    self.send(up);
                    answer
                }
                _ => return Err(Errno::ENETDOWN),
            }
        };
        let answer = if patient {
            answer.await
        } else {
            match with_timeout(self.config.answer_within, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    log::warn!("the backend has not answered a request about socket {socket}");
                    return Err(Errno::ETIMEDOUT);
                }
            }
        };
        // A queue that went away took its unanswered requests along.
        answer.unwrap_or(Err(Errno::ENETDOWN))
    }

    /// Sends the requests that there are slots for.
    pub(super) fn send(&self, session: &mut Session) {
        if session.calls.send(session.page.pages.shared()).is_due() {
            self.memory.notify(session.port);
        }
    }

    /// Gives a job to the driver. When the link is down for good there is nothing left to do.
    pub(super) fn spawn(&self, job: impl Future<Output = ()> + 'static) {
        if self.is_down() {
            return;
        }
        self.spawned.borrow_mut().push(Box::pin(job));
        self.spawned_some.wake_all();
    }

    /// Lets the driver do some work, and waits for what comes of it. If the wait is given up, the
    /// result is dropped once it is there.
    pub(super) async fn run<T: 'static>(
        &self,
        work: impl Future<Output = Result<T, Errno>> + 'static,
    ) -> Result<T, Errno> {
        if let Some(error) = self.down() {
            return Err(error);
        }
        let (sender, receiver) = oneshot::channel();
        self.spawn(async move {
            // A result that nobody waits for is dropped, which gives back what it holds.
            drop(sender.send(work.await));
        });
        receiver.await.unwrap_or(Err(Errno::ENODEV))
    }

    /// Waits until there is a job to be picked up or, for a driver that is idle, until the link is down.
    pub(super) async fn something_to_do(&self, idle: bool) {
        let something = || !self.spawned.borrow().is_empty() || (idle && self.is_down());
        self.spawned_some.until(|| something().then_some(())).await;
    }

    /// The jobs that were given and not yet picked up.
    pub(super) fn take_jobs(&self) -> Vec<Job> {
        self.spawned.take()
    }

    /// A name for a new socket.
    pub(super) fn name_socket(&self) -> u64 {
        let name = self.next_socket.get();
        self.next_socket.set(name + 1);
        name
    }

    pub(super) fn enrol(&self, name: u64, socket: &Rc<Socket<M>>) {
        self.sockets.borrow_mut().insert(name, Rc::downgrade(socket));
        self.counters.streams_opened.add(1);
        self.counters.streams_open.add(1);
    }

    pub(super) fn strike_off(&self, name: u64) {
        if self.sockets.borrow_mut().remove(&name).is_some() {
            self.counters.streams_open.sub(1);
        }
    }

    /// Adds a listener to those that listen again.
    pub(super) fn enrol_listener(&self, listener: &Rc<Passive<M>>) {
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Rc::downgrade(listener));
    }

    fn listeners(&self) -> Vec<Rc<Passive<M>>> {
        self.listeners.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// Brings the link up, and the listeners back.
    pub(super) fn go_up(&self, session: Session) {
        self.set_link(Link::Up(Box::new(session)));
        for listener in self.listeners() {
            listener.return_to_link();
        }
    }

    /// The present session, if there is one.
    pub(super) fn attachment(&self) -> Option<Attachment> {
        match &*self.link.borrow() {
            Link::Up(session) => Some(session.attachment),
            _ => None,
        }
    }

    /// Changes the link's state, and hands out the former one.
    pub(super) fn set_link(&self, link: Link) -> Link {
        let former = self.link.replace(link);
        self.link_changed.wake_all();
        former
    }

    /// Whether the session is the present one.
    pub(super) fn is_in_session(&self, session: u32) -> bool {
        matches!(&*self.link.borrow(), Link::Up(up) if up.attachment.session == session)
    }

    /// Whether there is a session.
    pub(super) fn is_up(&self) -> bool {
        matches!(*self.link.borrow(), Link::Up(_))
    }

    /// Why the link is down, if it is down for good.
    pub(super) fn down(&self) -> Option<Errno> {
        match *self.link.borrow() {
            Link::Down(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the link is down for good.
    pub(super) fn is_down(&self) -> bool {
        self.down().is_some()
    }

    /// Takes the link down for good.
    pub(super) fn go_down(&self, error: Errno) {
        drop(self.set_link(Link::Down(error)));
        self.end_sockets(error);
        for listener in self.listeners() {
            listener.wake();
        }
        self.spawned_some.wake_all();
        self.closing_changed.wake_all();
    }

    /// Ends all sockets of a link that is gone.
    pub(super) fn end_sockets(&self, error: Errno) {
        // Taken out first: a socket that ends strikes itself off.
        let sockets: Vec<_> = self.sockets.borrow().values().filter_map(Weak::upgrade).collect();
        for socket in sockets {
            socket.end(error);
        }
        self.memory.end_session();
    }

    /// Asks the driver to close the device, and waits until it has. The sockets that were dropped
    /// before are released first, if that does not take too long.
    pub(super) async fn shutdown(&self) {
        let released = || (self.releasing.get() == 0).then_some(());
        let released = self.closing_changed.until(released);
        if with_timeout(self.config.linger, released).await.is_err() {
            log::warn!("the backend is slow to release sockets; closing the device all the same");
        }
        self.closing.set(true);
        self.closing_changed.wake_all();
        self.link_changed.until(|| self.is_down().then_some(())).await;
    }

    /// Leaves the session, if there is one: all sockets end.
    pub(super) fn leave_session(&self, error: Errno) {
        let link = self.set_link(Link::Waiting);
        self.end_sockets(error);
        if let Link::Up(session) = link {
            self.free(*session);
        }
    }

    /// Gives the command ring back. Whoever waits for an answer learns that none will come.
    pub(super) fn free(&self, session: Session) {
        self.memory.close_port(session.port);
        self.memory.withdraw(session.page);
    }

    /// Ends all sockets, has the driver begin anew, and waits until it is about to.
    pub(super) async fn resume(&self) {
        if self.is_down() {
            return;
        }
        self.leave_session(Errno::ENETDOWN);
        self.lost.set(true);
        self.closing_changed.wake_all();
        self.closing_changed.until(|| (!self.lost.get() || self.is_down()).then_some(())).await;
    }

    /// Counts a socket that is being released, until [`released`](Device::released).
    pub(super) fn releasing(&self) {
        self.releasing.set(self.releasing.get() + 1);
    }

    pub(super) fn released(&self) {
        self.releasing.set(self.releasing.get() - 1);
        self.closing_changed.wake_all();
    }
}

impl<M: Machine> frontend::Device for Device<M> {
    async fn closing(&self) {
        self.closing_changed.until(|| self.closing.get().then_some(())).await;
    }

    async fn lost(&self) {
        self.closing_changed.until(|| self.lost.get().then_some(())).await;
    }

    fn begin_anew(&self) {
        self.lost.set(false);
        self.closing_changed.wake_all();
    }

    fn patience(&self) -> Duration {
        LETTING_GO
    }

    async fn sleep(&self, time: Duration) {
        Timer::after_millis(time.as_millis() as u64).await;
    }

    async fn session(&self, meeting: &mut Meeting<'_, Self>) -> Result<SessionEnd, Errno> {
        session::serve(self, meeting).await
    }
}
