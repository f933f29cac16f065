//! The link to the backend: requests on the present session's command ring, and work that consists
//! of requests.
//!
//! One call of an application can take several requests. The work must run to its end even if the
//! caller drops its future: [`Link::run`] hands unfinished work to the driver then.
//!
//! The command ring has few slots. An ACCEPT occupies one until a connection arrives, and a CONNECT
//! until the peer has answered. So each of the two has its own queue and never takes the last
//! slots, which serve all other requests in order. ACCEPTs also leave some slots to CONNECTs.

use super::progress::Operations;
use crate::ring::{CommandFront, Notify};
use crate::wire::{Call, Command, Orders, Protocol, Request, Response};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::pin::{Pin, pin};
use core::task::Poll;
use embassy_time::{Duration, with_timeout};
use futures_channel::oneshot::{self, Receiver, Sender};
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use xen::frontend::{GrantedPages, Lifecycle, PagePool};
use xen::{DomId, Errno, Machine, Port, Shared, Side, Signal, WaitList};

/// How many slots the calls of each queue leave free: other requests, CONNECTs, ACCEPTs.
const KEPT_FREE: [u32; 3] = [0, 2, 4];

/// Work that the driver carries out.
type Job = Pin<Box<dyn Future<Output = ()>>>;

/// A session with one backend, and what the two ends agreed on.
#[derive(Clone, Copy)]
pub(super) struct Session {
    /// The session's number. Sockets exist only in their own session.
    pub(super) number: u32,
    pub(super) backend: DomId,
    pub(super) protocol: Protocol,
    /// The orders of data rings that the backend maps.
    pub(super) orders: Orders,
    /// The order of a new data ring for which no size was requested.
    pub(super) ring_order: u32,
    /// The order up to which such a ring may grow.
    pub(super) max_ring_order: u32,
    /// The order of a datagram socket's ring for which no size was requested.
    pub(super) datagram_order: u32,
}

impl Session {
    /// The order of the smallest ring that holds `receive` bytes of `in` and `send` bytes of `out`,
    /// or of the largest possible ring.
    pub(super) fn order_for(&self, [receive, send]: [Option<u32>; 2]) -> u32 {
        let holds = |order| {
            self.protocol.layout(order).is_ok_and(|layout| {
                layout.input.size >= receive.unwrap_or(0) && layout.output.size >= send.unwrap_or(0)
            })
        };
        let orders = self.orders.min..=self.orders.max;
        orders.clone().find(|&order| holds(order)).unwrap_or(*orders.end())
    }
}

/// A session's command ring and its event channel.
struct CommandRing {
    session: Session,
    /// Whether the backend is connected.
    is_up: bool,
    calls: Calls,
    page: GrantedPages,
    port: Port,
    signal: Arc<Signal>,
}

/// The link to the backend.
pub(super) struct Link<M> {
    pub(super) lifecycle: Lifecycle,
    pages: Rc<PagePool<M>>,
    answer_within: Duration,
    commands: RefCell<Option<Box<CommandRing>>>,
    /// Woken when the link comes up, and when it ends.
    changed: WaitList,
    /// Work that the driver has not picked up yet.
    jobs: RefCell<Vec<Job>>,
    /// Work that callers poll themselves.
    running: Operations,
    /// Woken when there is a job, and when the link is closed.
    jobs_changed: WaitList,
    /// The number of events sent.
    pub(super) notifications: Cell<u64>,
}

impl<M: Machine> Link<M> {
    pub(super) fn new(pages: Rc<PagePool<M>>, answer_within: Duration) -> Self {
        Link {
            lifecycle: Lifecycle::default(),
            pages,
            answer_within,
            commands: RefCell::default(),
            changed: WaitList::default(),
            jobs: RefCell::default(),
            running: Operations::default(),
            jobs_changed: WaitList::default(),
            notifications: Cell::new(0),
        }
    }

    /// Waits until the link is up. Fails once the device has ended.
    pub(super) async fn up(&self) -> Result<Session, Errno> {
        let is_up = || match self.session() {
            Some(session) => Some(Ok(session)),
            None => self.lifecycle.ended().map(Err),
        };
        self.changed.until(is_up).await
    }

    /// Returns the error that ended the device, if it has ended.
    pub(super) fn check(&self) -> Result<(), Errno> {
        self.lifecycle.ended().map_or(Ok(()), Err)
    }

    /// The present session, if the link is up.
    pub(super) fn session(&self) -> Option<Session> {
        let commands = self.commands.borrow();
        commands.as_ref().filter(|commands| commands.is_up).map(|commands| commands.session)
    }

    /// Whether `session` is the present one and the link is up.
    pub(super) fn is_in(&self, session: &Session) -> bool {
        self.session().is_some_and(|present| present.number == session.number)
    }

    /// Allocates the command ring of a session. Returns the grant and the port, for the backend.
    pub(super) fn open(&self, session: Session) -> Result<[(&'static str, u32); 2], Errno> {
        let page = self.pages.share(session.backend, 1)?;
        let signal = Arc::new(Signal::new());
        let port = match self.pages.machine().open_port(session.backend, signal.clone()) {
            Ok(port) => port,
            Err(error) => {
                self.pages.withdraw(page);
                return Err(error);
            }
        };
        let nodes = [("port", port.0), ("ring-ref", page.grants()[0].0)];
        let calls = Calls::new(session.protocol, page.shared());
        let commands = CommandRing { session, is_up: false, calls, page, port, signal };
        self.commands.replace(Some(Box::new(commands)));
        Ok(nodes)
    }

    /// Brings the link up or down. The command ring stays until it is [closed](Link::close).
    pub(super) fn set_up(&self, is_up: bool) {
        if let Some(commands) = self.commands.borrow_mut().as_mut() {
            commands.is_up = is_up;
        }
        self.changed.wake_all();
    }

    /// Takes the link down and frees the command ring. Callers that wait for an answer get
    /// [`Errno::ENETDOWN`].
    pub(super) fn close(&self) {
        let commands = self.commands.take();
        if let Some(CommandRing { page, port, .. }) = commands.map(|commands| *commands) {
            self.pages.machine().close_port(port);
            self.pages.withdraw(page);
        }
        self.changed.wake_all();
        self.jobs_changed.wake_all();
    }

    /// Sends an event to the backend.
    pub(super) fn notify(&self, port: Port) {
        self.notifications.set(self.notifications.get() + 1);
        self.pages.machine().notify(port);
    }

    /// Makes a request about a socket and waits for its answer.
    pub(super) async fn call(&self, session: &Session, socket: u64, call: Call) -> Answer {
        let waits_for_remote = matches!(call, Call::Accept { .. } | Call::Poll);
        let answer = self.queue(session, |calls| calls.queue(socket, call))?;
        if waits_for_remote {
            // An error: the command ring was closed with the request unanswered.
            return answer.await.unwrap_or(Err(Errno::ENETDOWN));
        }
        self.in_time(socket, async { answer.await.unwrap_or(Err(Errno::ENETDOWN)) }).await
    }

    /// Makes all calls about a new socket at once, with one event: a backend carries them out in
    /// order, and refuses those after a failure. Returns the last reply, with the last address that
    /// was received.
    pub(super) async fn call_all(
        &self,
        session: &Session,
        socket: u64,
        calls: Vec<Call>,
    ) -> Answer {
        let answers: Vec<_> = self.queue(session, |queues| {
            calls.into_iter().map(|call| queues.queue(socket, call)).collect()
        })?;
        let all = async {
            let mut all: Answer = Ok(Reply::default());
            for answer in answers {
                let answer = answer.await.unwrap_or(Err(Errno::ENETDOWN));
                all = all.and_then(|last| {
                    answer.map(|reply| Reply { addr: reply.addr.or(last.addr), ..reply })
                });
            }
            all
        };
        self.in_time(socket, all).await
    }

    /// Queues calls and sends them.
    fn queue<T>(&self, session: &Session, queue: impl FnOnce(&mut Calls) -> T) -> Result<T, Errno> {
        let mut commands = self.commands.borrow_mut();
        match commands.as_mut() {
            Some(up) if up.is_up && up.session.number == session.number => {
                let queued = queue(&mut up.calls);
                self.send(up);
                Ok(queued)
            }
            _ => Err(Errno::ENETDOWN),
        }
    }

    async fn in_time(&self, socket: u64, answer: impl Future<Output = Answer>) -> Answer {
        with_timeout(self.answer_within, answer).await.unwrap_or_else(|_| {
            log::warn!("the backend has not answered a request about socket {socket}");
            Err(Errno::ETIMEDOUT)
        })
    }

    fn send(&self, commands: &mut CommandRing) {
        if commands.calls.send(commands.page.shared()).is_due() {
            self.notify(commands.port);
        }
    }

    /// Passes responses to their callers, until the link goes down or the backend breaks the
    /// protocol.
    pub(super) async fn receive(&self) {
        poll_fn(|cx| {
            let mut commands = self.commands.borrow_mut();
            let Some(commands) = commands.as_mut() else { return Poll::Ready(()) };
            commands.signal.register(Side::Rx, cx.waker());
            let received = commands.calls.receive(commands.page.shared());
            self.send(commands);
            match received {
                Ok(()) => Poll::Pending,
                Err(error) => {
                    log::error!(
                        "the backend's command ring: {error}; all of its sockets are closed"
                    );
                    Poll::Ready(())
                }
            }
        })
        .await;
    }

    /// Runs `work` in the caller's task. If the caller drops the future, the driver completes the
    /// work and drops its result.
    pub(super) async fn run<T: 'static>(
        &self,
        work: impl Future<Output = Result<T, Errno>> + 'static,
    ) -> Result<T, Errno> {
        self.check()?;
        let _running = self.running.begin();
        let mut unfinished = Unfinished { link: self, work: Some(Box::pin(work)) };
        poll_fn(|cx| {
            let Some(work) = &mut unfinished.work else { return Poll::Pending };
            work.as_mut().poll(cx).map(|result| {
                unfinished.work = None;
                result
            })
        })
        .await
    }

    /// Gives work to the driver, unless the device has ended.
    pub(super) fn spawn(&self, job: impl Future<Output = ()> + 'static) {
        if self.lifecycle.ended().is_none() {
            self.push(Box::pin(job));
        }
    }

    fn push(&self, job: Job) {
        self.jobs.borrow_mut().push(job);
        self.jobs_changed.wake_all();
    }

    /// Drops the jobs that the driver has not picked up.
    pub(super) fn drop_jobs(&self) {
        drop(self.jobs.take());
    }

    /// Carries out jobs until the device has ended and no work is left.
    pub(super) async fn work(&self) {
        let mut jobs = FuturesUnordered::<Job>::new();
        loop {
            jobs.extend(self.jobs.take());
            let has_more = || (!self.jobs.borrow().is_empty()).then_some(());
            let more = pin!(self.jobs_changed.until(has_more));
            if !jobs.is_empty() {
                select(more, jobs.next()).await;
                continue;
            }
            let over = pin!(async {
                self.jobs_changed.until(|| self.lifecycle.ended()).await;
                self.running.finished().await;
            });
            if let Either::Right(_) = select(more, over).await {
                return;
            }
        }
    }
}

/// Work that is handed to the driver if it is dropped unfinished.
struct Unfinished<'a, M: Machine, T: 'static> {
    link: &'a Link<M>,
    work: Option<Pin<Box<dyn Future<Output = T>>>>,
}

impl<M: Machine, T> Drop for Unfinished<'_, M, T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.link.push(Box::pin(async { drop(work.await) }));
        }
    }
}

/// The result of a request.
pub(super) type Answer = Result<Reply, Errno>;

/// The contents of a successful answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    /// The requested value.
    pub(super) value: u32,
    /// The requested address, or the one that came with the answer.
    pub(super) addr: Option<SocketAddr>,
}

/// The requests of one command ring.
struct Calls {
    ring: CommandFront,
    next_id: u32,
    /// Requests that were sent and not answered: few, so a search takes less than a map.
    outstanding: Vec<Outstanding>,
    /// The queues, in the order of [`KEPT_FREE`].
    queues: [VecDeque<(u64, Call, Sender<Answer>)>; 3],
}

struct Outstanding {
    id: u32,
    command: Command,
    socket: u64,
    answer: Sender<Answer>,
}

impl Calls {
    fn new(protocol: impl Into<Protocol>, page: Shared<'_>) -> Calls {
        Calls {
            ring: CommandFront::new(protocol, page),
            next_id: 0,
            outstanding: Vec::new(),
            queues: Default::default(),
        }
    }

    /// Queues a call; [`send`](Calls::send) must follow. The receiver is cancelled if the ring is
    /// closed.
    fn queue(&mut self, socket: u64, call: Call) -> Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let queue = match call.command() {
            Command::Accept => 2,
            Command::Connect => 1,
            _ => 0,
        };
        self.queues[queue].push_back((socket, call, sender));
        receiver
    }

    /// Sends queued calls while there are slots for them.
    fn send(&mut self, page: Shared<'_>) -> Notify {
        loop {
            let free = self.ring.free();
            let mut ready = self.queues.iter_mut().zip(KEPT_FREE).filter(|(_, kept)| free > *kept);
            let next = ready.find_map(|(queue, _)| queue.pop_front());
            let Some((socket, call, answer)) = next else { return self.ring.publish(page) };
            // The caller has closed the ring that this call offers, and its grants may be reused.
            let offers_ring =
                matches!(call, Call::Connect { .. } | Call::Accept { .. } | Call::Open { .. });
            if offers_ring && answer.is_canceled() {
                continue;
            }
            self.forget_cancelled();
            let (id, command) = (self.unused_id(), call.command());
            match self.ring.push(page, &Request { id, socket, call }) {
                Ok(()) => {
                    self.outstanding.push(Outstanding { id, command, socket, answer });
                }
                // The caller may have stopped waiting.
                Err(error) => drop(answer.send(Err(error))),
            }
        }
    }

    /// Takes all responses. Only the first response to an outstanding request counts.
    /// [`Errno::EPROTO`]: the ring cannot be used any more.
    fn receive(&mut self, page: Shared<'_>) -> Result<(), Errno> {
        loop {
            while let Some(response) = self.ring.pop(page)? {
                self.dispatch(response);
            }
            if !self.ring.final_check(page) {
                return Ok(());
            }
        }
    }

    fn dispatch(&mut self, response: Response) {
        let Response { id, command, socket, result, addr } = response;
        let Some(at) = self.outstanding.iter().position(|asked| asked.id == id) else {
            log::warn!("the backend answered request {id}, which waits for no answer");
            return;
        };
        let sent = &self.outstanding[at];
        if (sent.command, sent.socket) != (command, socket) {
            log::warn!(
                "the backend answered request {id} ({:?} of socket {}) as {command:?} of socket \
                 {socket}; the answer is ignored",
                sent.command,
                sent.socket
            );
            return;
        }
        // The caller may have stopped waiting.
        let sent = self.outstanding.swap_remove(at);
        let _ = sent.answer.send(result.map(|value| Reply { value, addr }));
    }

    /// Forgets requests whose callers have stopped waiting. A backend that answers with wrong ids
    /// frees slots but leaves requests outstanding; this bounds their number.
    fn forget_cancelled(&mut self) {
        if self.outstanding.len() >= self.ring.slots() as usize {
            self.outstanding.retain(|asked| !asked.answer.is_canceled());
        }
    }

    fn unused_id(&mut self) -> u32 {
        // The search is short: few ids are outstanding.
        while self.outstanding.iter().any(|asked| asked.id == self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }
}

#[cfg(test)]
mod tests;
