//! A guest's device: the loop over its command ring, and who does what each command asks.

use super::connection::{self, Origin};
use super::passive::{self, Passive};
use super::socket::{Release, Socket};
use super::{Channel, Host, Limits, Mapping};
use crate::ring::CommandBack;
use crate::wire::{Call, Dialect, Request, Response};
use crate::{Side, Signal};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::VecDeque;
use alloc::collections::btree_map::Entry;
use alloc::rc::Rc;
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll};
use futures_util::stream::{FuturesUnordered, StreamExt};
use xen::{DomId, Errno};

/// How many rounds over commands and tasks are made before others get their turn.
const ROUNDS: usize = 4;

/// How many socket operations are made before others get their turn.
const OPERATIONS: u32 = 128;

/// The command ring of a device, mapped, and its channel, bound.
pub struct CommandLink<H: Host> {
    /// The ring's page.
    pub ring: H::Mapping,
    /// The channel by which the two ends wake each other.
    pub channel: H::Channel,
    /// What the channel's events raise.
    pub signal: Arc<Signal>,
}

/// What a guest did to its command ring that cannot be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation;

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the indexes of its command ring are impossible")
    }
}

impl core::error::Error for Violation {}

/// What a command leaves to be done later.
type Task<'g> = Pin<Box<dyn Future<Output = ()> + 'g>>;

/// One device's state, shared by its tasks.
pub(super) struct Guest<'h, H: Host> {
    pub(super) host: &'h H,
    pub(super) id: DomId,
    pub(super) dialect: &'static dyn Dialect,
    pub(super) limits: Limits,
    pub(super) sockets: RefCell<BTreeMap<u64, Socket<H>>>,
    answers: RefCell<VecDeque<Response>>,
    operations: Cell<u32>,
    /// Pages of data rings that are mapped.
    pages: Rc<Cell<usize>>,
}

/// A part of the pages that a guest may have mapped, given back when dropped.
pub(super) struct PageShare {
    all: Rc<Cell<usize>>,
    count: usize,
}

impl Drop for PageShare {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.count);
    }
}

/// Serves a guest's device until the guest breaks the protocol, which is the only end it comes to by
/// itself.
pub async fn serve<H: Host>(
    host: &H,
    id: DomId,
    link: CommandLink<H>,
    dialect: &'static dyn Dialect,
    limits: Limits,
) -> Violation {
    let slots = dialect.slots().count as usize;
    let guest = Guest {
        host,
        id,
        dialect,
        limits,
        sockets: RefCell::default(),
        // Each answer has a slot of its own, so this never grows.
        answers: RefCell::new(VecDeque::with_capacity(slots)),
        operations: Cell::new(0),
        pages: Rc::default(),
    };
    let mut commands = CommandBack::new(dialect);
    let mut tasks = FuturesUnordered::new();
    poll_fn(|cx| {
        link.signal.register(Side::Rx, cx.waker());
        guest.operations.set(OPERATIONS);
        for _ in 0..ROUNDS {
            let sleep = guest.turn(cx, &link, &mut commands, &mut tasks);
            match sleep {
                Ok(true) => return Poll::Pending,
                Ok(false) => {}
                Err(_) => return Poll::Ready(Violation),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

impl<H: Host> Guest<'_, H> {
    /// Does what there is to do, once. `true` when nothing more is to be done before the next event.
    fn turn<'g>(
        &'g self,
        cx: &mut Context<'_>,
        link: &CommandLink<H>,
        commands: &mut CommandBack,
        tasks: &mut FuturesUnordered<Task<'g>>,
    ) -> Result<bool, Errno> {
        while let Poll::Ready(Some(())) = tasks.poll_next_unpin(cx) {}
        let page = link.ring.shared();
        let mut idle = true;
        // At most one ring full of them: answered slots are given back only below.
        while let Some(request) = commands.pop(page)? {
            idle = false;
            match request {
                Ok(request) => tasks.extend(self.begin(request)),
                Err(malformed) => self.answer(malformed.answer()),
            }
        }
        for answer in self.answers.borrow_mut().drain(..) {
            commands.push(page, &answer);
        }
        if commands.publish(page).is_due() {
            link.channel.notify();
        }
        Ok(idle && !commands.final_check(page))
    }

    /// Takes room for pages that are about to be mapped.
    pub(super) fn take_pages(&self, count: usize) -> Result<PageShare, Errno> {
        let all = self.pages.get().saturating_add(count);
        if all > self.limits.pages {
            return Err(Errno::ENOMEM);
        }
        self.pages.set(all);
        Ok(PageShare { all: self.pages.clone(), count })
    }

    /// Answers a request, of which each must be answered exactly once.
    pub(super) fn answer(&self, response: Response) {
        if let Err(error) = response.result {
            let Response { command, socket, .. } = response;
            log::debug!("domain {}: {command:?} of socket {socket:#x}: {error}", self.id);
        }
        self.answers.borrow_mut().push_back(response);
    }

    /// Takes one of the socket operations that are left in this turn. When none is, the task is woken in
    /// the next turn.
    pub(super) fn poll_operation(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.operations.get().checked_sub(1) {
            Some(left) => {
                self.operations.set(left);
                Poll::Ready(())
            }
            None => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    /// Carries out a request at once, or returns the task that will.
    fn begin(&self, request: Request) -> Option<Task<'_>> {
        let done = match &request.call {
            Call::Socket => self.socket(&request),
            Call::Bind { .. } => self.bind(&request),
            Call::Listen { .. } => self.listen(&request),
            Call::Connect { .. } => self.connect(&request).map(Some),
            Call::Accept { .. } => self.accept(&request).map(Some),
            Call::Poll => self.poll(&request).map(Some),
            Call::Release { .. } => self.release(&request),
        };
        match done {
            Ok(Some(task)) => Some(task),
            Ok(None) => None,
            Err(error) => {
                self.answer(request.answer(Err(error)));
                None
            }
        }
    }

    fn done(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        self.answer(request.answer(Ok(0)));
        Ok(None)
    }

    /// Takes a name for a new socket.
    fn claim(&self, id: u64, socket: Socket<H>) -> Result<(), Errno> {
        let mut sockets = self.sockets.borrow_mut();
        let count = sockets.len();
        match sockets.entry(id) {
            Entry::Occupied(_) => Err(Errno::EEXIST),
            Entry::Vacant(_) if count >= self.limits.sockets => Err(Errno::EMFILE),
            Entry::Vacant(entry) => {
                entry.insert(socket);
                Ok(())
            }
        }
    }

    /// Makes the socket that a dialect without a command for it expects to be there.
    fn ensure(&self, id: u64) -> Result<(), Errno> {
        if self.dialect.has_socket_command() {
            return Ok(());
        }
        match self.claim(id, Socket::Fresh) {
            Err(Errno::EEXIST) => Ok(()),
            result => result,
        }
    }

    fn socket(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        self.claim(request.socket, Socket::Fresh)?;
        self.done(request)
    }

    fn bind(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        let Call::Bind { addr } = request.call else { return Err(Errno::EINVAL) };
        self.ensure(request.socket)?;
        let mut sockets = self.sockets.borrow_mut();
        let Some(socket @ Socket::Fresh) = sockets.get_mut(&request.socket) else {
            return Err(Errno::EINVAL);
        };
        match self.host.bind(self.id, addr) {
            Ok(bound) => *socket = Socket::Passive(Rc::new(Passive::new(bound))),
            Err(error) => {
                self.back_to_fresh(&mut sockets, request.socket);
                return Err(error);
            }
        }
        drop(sockets);
        self.done(request)
    }

    fn listen(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        let Call::Listen { backlog } = request.call else { return Err(Errno::EINVAL) };
        self.passive(request.socket)?.listen(self.host, backlog)?;
        self.done(request)
    }

    fn connect(&self, request: &Request) -> Result<Task<'_>, Errno> {
        let Call::Connect { addr, ref ring, .. } = request.call else {
            return Err(Errno::EINVAL);
        };
        self.ensure(request.socket)?;
        let release = Rc::new(Release::default());
        {
            let mut sockets = self.sockets.borrow_mut();
            match sockets.get_mut(&request.socket) {
                Some(socket @ Socket::Fresh) => *socket = Socket::Active(release.clone()),
                Some(Socket::Active(_)) => return Err(Errno::EISCONN),
                Some(Socket::Passive(_)) => return Err(Errno::EOPNOTSUPP),
                Some(Socket::Leaving) | None => return Err(Errno::EINVAL),
            }
        }
        let origin = Origin::Connect(addr);
        let id = request.socket;
        Ok(Box::pin(connection::run(self, id, release, origin, ring.clone(), request.clone())))
    }

    fn accept(&self, request: &Request) -> Result<Task<'_>, Errno> {
        let Call::Accept { new, ref ring } = request.call else { return Err(Errno::EINVAL) };
        let passive = self.passive(request.socket)?;
        let turn = passive.queue()?;
        let release = Rc::new(Release::default());
        self.claim(new, Socket::Active(release.clone()))?;
        let origin = Origin::Accept(turn);
        Ok(Box::pin(connection::run(self, new, release, origin, ring.clone(), request.clone())))
    }

    fn poll(&self, request: &Request) -> Result<Task<'_>, Errno> {
        let turn = self.passive(request.socket)?.queue()?;
        Ok(Box::pin(passive::poll(self, turn, request.clone())))
    }

    fn release(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        let mut sockets = self.sockets.borrow_mut();
        let socket = sockets.get_mut(&request.socket).ok_or(Errno::EINVAL)?;
        match core::mem::replace(socket, Socket::Leaving) {
            Socket::Fresh => {
                sockets.remove(&request.socket);
                drop(sockets);
                self.done(request)
            }
            Socket::Active(release) => {
                // The connection's own task answers when it is through.
                release.ask(request.clone());
                Ok(None)
            }
            Socket::Passive(passive) => {
                Ok(Some(Box::pin(passive::release(self, passive, request.clone()))))
            }
            Socket::Leaving => Err(Errno::EINVAL),
        }
    }

    fn passive(&self, id: u64) -> Result<Rc<Passive<H>>, Errno> {
        match self.sockets.borrow().get(&id) {
            Some(Socket::Passive(passive)) => Ok(passive.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Undoes what a command that failed made of a socket.
    pub(super) fn reset(&self, id: u64) {
        self.back_to_fresh(&mut self.sockets.borrow_mut(), id);
    }

    fn back_to_fresh(&self, sockets: &mut BTreeMap<u64, Socket<H>>, id: u64) {
        if self.dialect.has_socket_command() {
            sockets.insert(id, Socket::Fresh);
        } else {
            sockets.remove(&id);
        }
    }
}
