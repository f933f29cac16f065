//! A guest's device: the loop over its command ring, and what its tasks share.

use super::data_ring::DataRing;
use super::socket::Socket;
use super::{Channel, Host, Limits, Mapping};
use crate::ring::CommandBack;
use crate::wire::{Protocol, Response, RingOffer};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::VecDeque;
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
use xen::{Side, Signal};

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
pub(super) type Task<'g> = Pin<Box<dyn Future<Output = ()> + 'g>>;

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
    pub(super) fn answer_with(&self, response: Response, addr: Option<SocketAddr>) {
        self.answer(Response { addr, ..response });
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
}
