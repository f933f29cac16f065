//! A guest's device: the loop over its command ring, and who does what each command asks.

use super::connection::{self, Origin};
use super::data_ring::DataRing;
use super::passive::{self, Passive};
use super::socket::{Control, Plan, Socket};
use super::{Channel, Host, Limits, Mapping, Socket as _};
use crate::ring::CommandBack;
use crate::wire::{Call, Family, Options, Protocol, Request, Response, RingOffer, SocketOption};
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
use core::net::SocketAddr;
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

/// How many rings stay mapped for the guest to use again.
const PARKED: usize = 16;

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
    pub(super) protocol: Protocol,
    pub(super) limits: Limits,
    pub(super) sockets: RefCell<BTreeMap<u64, Socket<H>>>,
    answers: RefCell<VecDeque<Response>>,
    operations: Cell<u32>,
    /// Pages of data rings that are mapped.
    pages: Rc<Cell<usize>>,
    /// Rings that the guest said it would use again, the latest one last.
    parked: RefCell<VecDeque<(RingOffer, DataRing<H>)>>,
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

/// Serves a guest's device by the protocol that the two have agreed on, until the guest breaks it, which
/// is the only end this comes to by itself.
pub async fn serve<H: Host>(
    host: &H,
    id: DomId,
    link: CommandLink<H>,
    protocol: impl Into<Protocol>,
    limits: Limits,
) -> Violation {
    let protocol = protocol.into();
    let slots = protocol.slots().count as usize;
    let guest = Guest {
        host,
        id,
        protocol,
        limits,
        sockets: RefCell::default(),
        // Each answer has a slot of its own, so this never grows.
        answers: RefCell::new(VecDeque::with_capacity(slots)),
        operations: Cell::new(0),
        pages: Rc::default(),
        parked: RefCell::default(),
    };
    let mut commands = CommandBack::new(protocol);
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
        let mut all = self.pages.get().saturating_add(count);
        while all > self.limits.pages {
            // What the guest only may use again gives way to what it uses now.
            let parked = self.parked.borrow_mut().pop_front();
            drop(parked.ok_or(Errno::ENOMEM)?);
            all = self.pages.get().saturating_add(count);
        }
        self.pages.set(all);
        Ok(PageShare { all: self.pages.clone(), count })
    }

    /// Keeps a ring whose connection is released mapped, as the guest will use it again.
    pub(super) fn park(&self, offer: RingOffer, ring: DataRing<H>) {
        let mut parked = self.parked.borrow_mut();
        parked.push_back((offer, ring));
        if parked.len() > PARKED {
            parked.pop_front();
        }
    }

    /// The parked ring of this offer. One that has only its pages or only its channel is dropped: the
    /// guest uses them otherwise now.
    pub(super) fn parked(&self, offer: &RingOffer) -> Option<DataRing<H>> {
        let mut parked = self.parked.borrow_mut();
        let mut found = None;
        while let Some(at) = parked
            .iter()
            .position(|(other, _)| other.port == offer.port || other.grants == offer.grants)
        {
            let (other, ring) = parked.remove(at)?;
            if other == *offer {
                found = Some(ring);
            }
        }
        found
    }

    /// Answers a request whose answer may have a name.
    pub(super) fn answer_with(&self, response: Response, name: Option<SocketAddr>) {
        self.answer(Response { name, ..response });
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
            Call::Socket { family } => self.socket(&request, *family),
            Call::Bind { .. } => self.bind(&request),
            Call::Listen { .. } => self.listen(&request),
            Call::Connect { .. } => self.connect(&request).map(Some),
            Call::Accept { .. } => self.accept(&request).map(Some),
            Call::Poll => self.poll(&request).map(Some),
            Call::Release { .. } => self.release(&request),
            Call::SetOption { option, value } => self.set_option(&request, *option, *value),
            Call::GetOption { option } => self.option(&request, *option),
            Call::LocalName => self.local_name(&request),
            Call::PeerName | Call::Shutdown { .. } | Call::Resize { .. } => {
                self.of_connection(&request)
            }
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
        if self.protocol.dialect.has_socket_command() {
            return Ok(());
        }
        match self.claim(id, Socket::Fresh(Plan::default())) {
            Err(Errno::EEXIST) => Ok(()),
            result => result,
        }
    }

    fn socket(&self, request: &Request, family: Family) -> Result<Option<Task<'_>>, Errno> {
        let plan = Plan { family: Some(family), options: Options::new() };
        self.claim(request.socket, Socket::Fresh(plan))?;
        self.done(request)
    }

    fn bind(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        let Call::Bind { addr } = request.call else { return Err(Errno::EINVAL) };
        self.ensure(request.socket)?;
        let mut sockets = self.sockets.borrow_mut();
        let Some(Socket::Fresh(plan)) = sockets.get(&request.socket) else {
            return Err(Errno::EINVAL);
        };
        let plan = *plan;
        let bound = plan.suits(addr).and_then(|()| self.host.bind(self.id, addr, &plan.options));
        let name = match bound {
            Ok(bound) => {
                let name = bound.local_name().ok();
                let passive = Rc::new(Passive::new(bound, plan.options));
                sockets.insert(request.socket, Socket::Passive(passive));
                name
            }
            Err(error) => {
                self.back_to_fresh(&mut sockets, request.socket, plan);
                return Err(error);
            }
        };
        drop(sockets);
        self.answer_with(request.answer(Ok(0)), name);
        Ok(None)
    }

    fn set_option(
        &self,
        request: &Request,
        option: SocketOption,
        value: u32,
    ) -> Result<Option<Task<'_>>, Errno> {
        self.ensure(request.socket)?;
        match self.sockets.borrow_mut().get_mut(&request.socket) {
            Some(Socket::Fresh(plan)) => plan.options.set(option, value),
            Some(Socket::Passive(passive)) => passive.set_option(option, value)?,
            Some(Socket::Active(control)) => return Self::hand_over(control, request),
            Some(Socket::Leaving) | None => return Err(Errno::EINVAL),
        }
        self.done(request)
    }

    fn option(&self, request: &Request, option: SocketOption) -> Result<Option<Task<'_>>, Errno> {
        let value = match self.sockets.borrow().get(&request.socket) {
            // The operating system's own values are not known before there is a socket of its.
            Some(Socket::Fresh(plan)) => plan.options.get(option).ok_or(Errno::ENOTCONN)?,
            Some(Socket::Passive(passive)) => passive.option(option)?,
            Some(Socket::Active(control)) => return Self::hand_over(control, request),
            Some(Socket::Leaving) | None => return Err(Errno::EINVAL),
        };
        self.answer(request.answer(Ok(value)));
        Ok(None)
    }

    fn local_name(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        let passive = match self.sockets.borrow().get(&request.socket) {
            Some(Socket::Passive(passive)) => passive.clone(),
            _ => return self.of_connection(request),
        };
        self.answer_with(request.answer(Ok(0)), Some(passive.local_name()?));
        Ok(None)
    }

    /// A request that only a connection can carry out.
    fn of_connection(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        match self.sockets.borrow().get(&request.socket) {
            Some(Socket::Active(control)) => Self::hand_over(control, request),
            Some(Socket::Fresh(_) | Socket::Passive(_)) => Err(Errno::ENOTCONN),
            Some(Socket::Leaving) | None => Err(Errno::EINVAL),
        }
    }

    /// Gives a request to a connection's own task.
    fn hand_over<'g>(control: &Control, request: &Request) -> Result<Option<Task<'g>>, Errno> {
        if !control.is_open() {
            return Err(Errno::ENOTCONN);
        }
        control.ask(request.clone());
        Ok(None)
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
        let control = Rc::new(Control::default());
        let plan = {
            let mut sockets = self.sockets.borrow_mut();
            match sockets.get_mut(&request.socket) {
                Some(Socket::Fresh(plan)) => {
                    let plan = *plan;
                    if let Err(error) = plan.suits(addr) {
                        self.back_to_fresh(&mut sockets, request.socket, plan);
                        return Err(error);
                    }
                    sockets.insert(request.socket, Socket::Active(control.clone()));
                    plan
                }
                Some(Socket::Active(_)) => return Err(Errno::EISCONN),
                Some(Socket::Passive(_)) => return Err(Errno::EOPNOTSUPP),
                Some(Socket::Leaving) | None => return Err(Errno::EINVAL),
            }
        };
        let origin = Origin::Connect(addr, plan);
        let id = request.socket;
        Ok(Box::pin(connection::run(self, id, control, origin, ring.clone(), request.clone())))
    }

    fn accept(&self, request: &Request) -> Result<Task<'_>, Errno> {
        let Call::Accept { new, ref ring } = request.call else { return Err(Errno::EINVAL) };
        let passive = self.passive(request.socket)?;
        let turn = passive.queue()?;
        let control = Rc::new(Control::default());
        self.claim(new, Socket::Active(control.clone()))?;
        let origin = Origin::Accept(turn);
        Ok(Box::pin(connection::run(self, new, control, origin, ring.clone(), request.clone())))
    }

    fn poll(&self, request: &Request) -> Result<Task<'_>, Errno> {
        let turn = self.passive(request.socket)?.queue()?;
        Ok(Box::pin(passive::poll(self, turn, request.clone())))
    }

    fn release(&self, request: &Request) -> Result<Option<Task<'_>>, Errno> {
        let mut sockets = self.sockets.borrow_mut();
        let socket = sockets.get_mut(&request.socket).ok_or(Errno::EINVAL)?;
        match core::mem::replace(socket, Socket::Leaving) {
            Socket::Fresh(_) => {
                sockets.remove(&request.socket);
                drop(sockets);
                self.done(request)
            }
            Socket::Active(control) => {
                // The connection's own task answers when it is through.
                control.ask(request.clone());
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

    /// Undoes what a CONNECT that failed made of a socket.
    pub(super) fn reset(&self, id: u64, plan: Plan) {
        self.back_to_fresh(&mut self.sockets.borrow_mut(), id, plan);
    }

    fn back_to_fresh(&self, sockets: &mut BTreeMap<u64, Socket<H>>, id: u64, plan: Plan) {
        if self.protocol.dialect.has_socket_command() {
            sockets.insert(id, Socket::Fresh(plan));
        } else {
            sockets.remove(&id);
        }
    }
}

impl Plan {
    /// Whether a socket of this plan can have an address: [`Errno::EAFNOSUPPORT`] if not.
    fn suits(&self, addr: SocketAddr) -> Result<(), Errno> {
        match self.family {
            Some(family) if family != Family::of(addr) => Err(Errno::EAFNOSUPPORT),
            _ => Ok(()),
        }
    }
}
