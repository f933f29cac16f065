//! The engine of one device: the loop over its command ring, and the state that its tasks share.

use super::account::{Account, Flow};
use super::data_ring::Rings;
use super::gate::Gate;
use super::host::{Host, Limit};
use super::socket::Sockets;
use crate::ring::CommandBack;
use crate::wire::{Header, Protocol, Response};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use futures_util::stream::{FuturesUnordered, StreamExt};
use xen::{Channel, DomId, Errno, Mapping, Side, Signal};

/// The most rounds over requests and tasks in one poll.
const ROUNDS: usize = 4;

/// The work of one poll, in bytes that are moved, if no other guest works, and if others do. Then a
/// guest waits no longer than this takes for each of the others.
const ALONE: usize = 4 << 20;
const CROWDED: usize = 128 << 10;

/// The work of an operation of a socket besides the bytes that it moves.
const OPERATION: usize = 32 << 10;

/// The work of a request, without what its task does.
const REQUEST: usize = 8 << 10;

/// The work of mapping a ring, or of opening or closing a socket.
pub(super) const OPENING: usize = 96 << 10;

/// The command ring of a device, mapped, and its event channel, bound.
pub struct CommandLink<H: Host> {
    /// The ring's page.
    pub ring: H::Mapping,
    /// The event channel by which the two ends wake each other.
    pub channel: H::Channel,
    /// The signal that the channel's events raise.
    pub signal: Arc<Signal>,
}

/// Impossible indexes on the command ring, which end the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation;

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the indexes of its command ring are impossible")
    }
}

impl core::error::Error for Violation {}

/// The rest of a request that cannot be carried out at once.
pub(super) type Task<'e> = Pin<Box<dyn Future<Output = ()> + 'e>>;

/// What a successful request returns. Most return neither.
#[derive(Default)]
pub(super) struct Reply {
    pub(super) value: u32,
    pub(super) addr: Option<SocketAddr>,
}

/// One device's state, shared by its tasks.
pub(super) struct Engine<'h, H: Host> {
    pub(super) host: &'h H,
    pub(super) rings: Rings<'h, H>,
    pub(super) guest: DomId,
    pub(super) protocol: Protocol,
    pub(super) account: Rc<Account>,
    pub(super) sockets: RefCell<Sockets<H>>,
    pub(super) gates: [Gate; 3],
    responses: RefCell<VecDeque<Response>>,
    /// What is left of the budget of this poll.
    budget: Cell<usize>,
    /// The last task that got some of it.
    served: RefCell<Waker>,
    /// Tasks to wake at the end of the poll: those that got none of it, and then those that want
    /// more.
    later: RefCell<VecDeque<Waker>>,
    /// The state of [`toss`](Engine::toss).
    coin: Cell<u32>,
}

/// Serves a guest's device with the protocol that both ends agreed on. `account` is the guest's,
/// or its limits if the device is its only one. Returns only if the guest writes impossible indexes
/// to the command ring.
pub async fn serve<H: Host>(
    host: &H,
    guest: DomId,
    link: CommandLink<H>,
    protocol: impl Into<Protocol>,
    account: impl Into<Rc<Account>>,
) -> Violation {
    let (protocol, account) = (protocol.into(), account.into());
    let slots = protocol.slots().count as usize;
    let engine = Engine {
        host,
        rings: Rings::new(host, guest, protocol, account.clone()),
        guest,
        protocol,
        account,
        sockets: RefCell::default(),
        gates: Default::default(),
        // Each response has a slot, so this never grows.
        responses: RefCell::new(VecDeque::with_capacity(slots)),
        budget: Cell::new(0),
        served: RefCell::new(Waker::noop().clone()),
        later: RefCell::default(),
        coin: Cell::new(1),
    };
    let mut commands = CommandBack::new(protocol);
    let mut tasks = FuturesUnordered::<Task<'_>>::new();
    for flow in [Flow::In, Flow::Out, Flow::Connections] {
        tasks.push(Box::pin(engine.keep_gate(flow)));
    }
    poll_fn(|cx| {
        link.signal.register(Side::Rx, cx.waker());
        engine.budget.set(if engine.account.turn().is_crowded() { CROWDED } else { ALONE });
        for _ in 0..ROUNDS {
            if engine.budget.get() == 0 {
                break;
            }
            match engine.turn(cx, &link, &mut commands, &mut tasks) {
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

impl<H: Host> Engine<'_, H> {
    /// Runs all tasks and requests once. Returns whether to sleep until the next event.
    fn turn<'e>(
        &'e self,
        cx: &mut Context<'_>,
        link: &CommandLink<H>,
        commands: &mut CommandBack,
        tasks: &mut FuturesUnordered<Task<'e>>,
    ) -> Result<bool, Errno> {
        while let Poll::Ready(Some(())) = tasks.poll_next_unpin(cx) {}
        self.later.borrow_mut().drain(..).for_each(Waker::wake);
        let page = link.ring.shared();
        let mut idle = true;
        // At most one full ring: slots become free only when responses are pushed, below. At least
        // one, whatever the tasks have left of the budget.
        while (idle || self.budget.get() > 0)
            && let Some(request) = commands.pop(page)?
        {
            idle = false;
            match request {
                Ok(request) => {
                    self.charge(REQUEST);
                    tasks.extend(self.begin(request));
                }
                Err(malformed) => {
                    self.charge(REQUEST);
                    self.answer(malformed.header, Err(malformed.error));
                }
            }
        }
        for response in self.responses.borrow_mut().drain(..) {
            commands.push(page, &response);
        }
        if commands.publish(page).is_due() {
            link.channel.notify();
        }
        Ok(idle && self.budget.get() > 0 && !commands.final_check(page))
    }

    /// Answers a request. Each request must be answered exactly once.
    pub(super) fn answer(&self, header: Header, result: Result<Reply, Errno>) {
        let response = match result {
            Ok(Reply { value, addr }) => Response { addr, ..header.answer(Ok(value)) },
            Err(error) => {
                let (guest, Header { command, socket, .. }) = (self.guest, header);
                log::debug!("domain {guest}: {command:?} of socket {socket:#x}: {error}");
                header.answer(Err(error))
            }
        };
        self.responses.borrow_mut().push_back(response);
    }

    /// Permits a socket operation if some of the budget is left. If not, the task runs again in the
    /// next poll: sooner than others if it got nothing in this one.
    ///
    /// A task that is woken at once loses its place in the queue, and two of them end the poll of
    /// the queue. Chance decides which do: by a rule, the same tasks could come too late each time.
    pub(super) fn poll_budget(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut served = self.served.borrow_mut();
        if self.budget.get() > 0 {
            served.clone_from(cx.waker());
            return Poll::Ready(());
        }
        if cx.waker().will_wake(&served) {
            self.later.borrow_mut().push_back(served.clone());
        } else if self.toss() {
            self.later.borrow_mut().push_front(cx.waker().clone());
        } else {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// A toss of a coin (xorshift).
    fn toss(&self) -> bool {
        let mut state = self.coin.get();
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        self.coin.set(state);
        state & 1 == 0
    }

    /// Counts a connection that the guest opens. [`Errno::ENOBUFS`] beyond its limit by the second.
    pub(super) fn count_connection(&self) -> Result<(), Errno> {
        if self.account.permitted(Flow::Connections, || self.host.now()).is_err() {
            self.host.limited(self.guest, Limit::Connections);
            return Err(Errno::ENOBUFS);
        }
        self.account.take(Flow::Connections, 1);
        Ok(())
    }

    /// Waits until some of the budget is left, and takes this work from it.
    pub(super) async fn work(&self, work: usize) {
        poll_fn(|cx| self.poll_budget(cx)).await;
        self.charge(work);
    }

    /// The most bytes for a socket operation. What is left of the budget may be very little.
    pub(super) fn budget(&self) -> usize {
        self.budget.get().max(OPERATION)
    }

    /// Takes a socket operation that moved `count` bytes from the budget and from the flow.
    pub(super) fn spend(&self, flow: Flow, count: usize) {
        self.account.take(flow, count);
        self.charge(OPERATION + count);
    }

    /// Takes work from the budget, of which too little may be left.
    pub(super) fn charge(&self, work: usize) {
        self.account.turn().charge(work);
        self.budget.set(self.budget.get().saturating_sub(work));
    }
}
