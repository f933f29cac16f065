//! Links: rings of bytes in pages that one end grants and the other end maps.
//!
//! The first page has the indexes of both directions, as PV Calls' indexes page has them, and the
//! grants of the data pages behind it. Event indexes are always in force. Two more words say which
//! ends are there. An end that leaves clears its own word, then sends an event.

use crate::transport;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec;
use core::future::poll_fn;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::task::Poll;
use xen::frontend::{Consumer, Direction, EventIndexes, NotifyPolicy, Producer, Region, len};
use xen::frontend::{GrantedPages, PagePool, ReservedPages};
use xen::{
    Channel, DomId, Errno, GrantRef, Machine, Mapping, Neighbour, PAGE_SIZE, Port, Shared, Side,
    Signal,
};

/// The largest order whose grants fit into the first page: 2 MiB.
pub const MAX_ORDER: u32 = 9;

/// The data's grants (`u32` each) in the first page.
const GRANTS: usize = 132;
const _: () = assert!(GRANTS + (4 << MAX_ORDER) <= PAGE_SIZE);

/// The most former links whose pages one domain may keep mapped before it gets no other link.
const KEPT: usize = 4;

/// After so many operations without waiting, a task lets other tasks run.
const BURST: u32 = 32;

/// The parts of the two ends.
#[derive(Clone, Copy)]
enum Part {
    Granter,
    Mapper,
}

impl Part {
    fn other(self) -> Part {
        match self {
            Part::Granter => Part::Mapper,
            Part::Mapper => Part::Granter,
        }
    }

    /// The word (`u32`) that is not 0 while this end is there. Each is beside the indexes of the
    /// direction towards this end.
    fn presence(self) -> usize {
        match self {
            Part::Granter => 24,
            Part::Mapper => 88,
        }
    }

    /// The direction towards this end.
    fn input(self, order: u32) -> Direction {
        let size = (PAGE_SIZE << order) / 2;
        let (at, start) = match self {
            Part::Granter => (0, 0),
            Part::Mapper => (64, size),
        };
        let events = Some(EventIndexes { prod: at + 12, cons: at + 16 });
        Direction { cons: at, prod: at + 4, error: at + 8, events, start, size: size as u32 }
    }
}

/// What the other end needs to attach to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// The first page.
    pub(super) page: GrantRef,
    pub(super) port: Port,
    /// There are two to this power of data pages.
    pub(super) order: u32,
}

/// The pages for one link, which an end that grants has from the start.
pub struct Reserve<M: Machine>(Option<Stock<M>>);

struct Stock<M: Machine> {
    pool: Rc<PagePool<M>>,
    order: u32,
    /// `None` if they are lent, or if the peer of the latest link kept them.
    free: Option<ReservedPages>,
    /// Those of the latest link, which the peer may still map.
    lent: Option<Rc<Lent<M>>>,
}

/// Pages that are granted to one domain, and the port that it may bind.
struct Lent<M: Machine> {
    pool: Rc<PagePool<M>>,
    pages: Option<GrantedPages>,
    port: Port,
}

impl<M: Machine> Reserve<M> {
    /// Takes the pages, unless there is no pool, which means that this end only maps.
    pub(super) fn new(pool: Option<&Rc<PagePool<M>>>, order: u32) -> Result<Self, Errno> {
        let stock = |pool: &Rc<PagePool<M>>| {
            let free = Some(pool.reserve(1 + (1 << order))?);
            Ok(Stock { pool: pool.clone(), order, free, lent: None })
        };
        pool.map(stock).transpose().map(Reserve)
    }

    /// Makes a link for `peer`, which can attach to it. [`Errno::ENOMEM`] or [`Errno::ENOSPC`] if
    /// something is short, and [`Errno::EBUSY`] if `peer` keeps too many pages of former links:
    /// then another attempt may succeed later.
    pub(super) fn offer<N: Neighbour>(
        &mut self,
        peer: DomId,
    ) -> Result<(Link<M, N>, Offer), Errno> {
        self.withdraw();
        let Stock { pool, order, free, lent } = self.0.as_mut().ok_or(Errno::EOPNOTSUPP)?;
        let (count, order) = (1 + (1 << *order), *order);
        let pages = match free.take() {
            Some(pages) => pages,
            None if pool.quarantined(peer) < KEPT * count => pool.reserve(count)?,
            None => return Err(Errno::EBUSY),
        };
        let pages = pool.share_reserved(peer, pages).map_err(|(error, pages)| {
            *free = pages;
            error
        })?;
        let signal = Arc::new(Signal::new());
        let port = match pool.machine().open_port(peer, signal.clone()) {
            Ok(port) => port,
            Err(error) => {
                *free = pool.reclaim(pages);
                return Err(error);
            }
        };
        let (list, first) = (pages.shared(), pages.grants()[0]);
        for (at, grant) in (GRANTS..).step_by(4).zip(&pages.grants()[1..]) {
            list.store_u32(at, grant.0, Relaxed);
        }
        for part in [Part::Granter, Part::Mapper] {
            list.store_u32(part.presence(), 1, Relaxed);
        }
        let pages = Some(pages);
        let now = Rc::new(Lent { pool: pool.clone(), pages, port });
        *lent = Some(now.clone());
        let link = Link::new(Memory::Granted(now), signal, order);
        Ok((link, Offer { page: first, port, order }))
    }

    /// Ends the grants of the latest link. If the peer still maps pages, the next one takes others.
    pub(super) fn withdraw(&mut self) {
        // The pages of a link that is still there are withdrawn with it.
        if let Some(Stock { free, lent, .. }) = &mut self.0
            && let Some(lent) = lent.take()
        {
            *free = Rc::into_inner(lent).and_then(Lent::end);
        }
    }
}

impl<M: Machine> Drop for Reserve<M> {
    fn drop(&mut self) {
        let Some(Stock { pool, free, lent, .. }) = &mut self.0 else { return };
        lent.take();
        if let Some(pages) = free.take() {
            pool.release(pages);
        }
    }
}

impl<M: Machine> Lent<M> {
    /// Ends the grants, and returns the pages unless the peer still maps them.
    fn end(mut self) -> Option<ReservedPages> {
        self.pages.take().and_then(|pages| self.pool.reclaim(pages))
    }
}

impl<M: Machine> Drop for Lent<M> {
    fn drop(&mut self) {
        self.pool.machine().close_port(self.port);
        if let Some(pages) = self.pages.take() {
            self.pool.withdraw(pages);
        }
    }
}

/// One end of a pair of rings. Dropping it leaves it.
pub struct Link<M: Machine, N: Neighbour> {
    memory: Memory<M, N>,
    signal: Arc<Signal>,
    order: u32,
    consumer: Consumer,
    producer: Producer,
    /// Whether the other end waits for bytes that were written.
    due: bool,
    /// For as long as the pages are mapped.
    pub(super) counted: Rc<()>,
}

/// The pages and the event channel, at either end.
enum Memory<M: Machine, N: Neighbour> {
    Granted(Rc<Lent<M>>),
    Mapped { pages: N::Mapping, channel: N::Channel },
}

impl<M: Machine, N: Neighbour> Link<M, N> {
    fn new(memory: Memory<M, N>, signal: Arc<Signal>, order: u32) -> Self {
        let (input, output) = (memory.part().input(order), memory.part().other().input(order));
        let consumer = Consumer::new(input, NotifyPolicy::HalfFull);
        let (producer, counted) = (Producer::new(output), Rc::default());
        Link { memory, signal, order, consumer, producer, due: false, counted }
    }

    /// Attaches to a link that `owner` offers.
    pub(super) fn attach(neighbour: &N, owner: DomId, offer: Offer) -> Result<Self, Errno> {
        let mut grants = vec![offer.page; 1 + (1 << offer.order)];
        let list = neighbour.map(owner, &grants[..1])?;
        for (at, grant) in (GRANTS..).step_by(4).zip(&mut grants[1..]) {
            *grant = GrantRef(list.shared().load_u32(at, Relaxed));
        }
        drop(list);
        let (pages, signal) = (neighbour.map(owner, &grants)?, Arc::new(Signal::new()));
        let channel = neighbour.bind_port(owner, offer.port, signal.clone())?;
        // A process that is killed does not leave by itself.
        neighbour.set_unmap_notify(&pages, Part::Mapper.presence(), &channel)?;
        Ok(Link::new(Memory::Mapped { pages, channel }, signal, offer.order))
    }
}

impl<M: Machine, N: Neighbour> Drop for Link<M, N> {
    fn drop(&mut self) {
        let presence = self.memory.part().presence();
        self.memory.shared().store_u32(presence, 0, Release);
        self.memory.notify();
    }
}

impl<M: Machine, N: Neighbour> Memory<M, N> {
    fn part(&self) -> Part {
        match self {
            Memory::Granted(_) => Part::Granter,
            Memory::Mapped { .. } => Part::Mapper,
        }
    }

    fn shared(&self) -> Shared<'_> {
        match self {
            Memory::Granted(lent) => lent.pages.as_ref().expect("they are lent").shared(),
            Memory::Mapped { pages, .. } => pages.shared(),
        }
    }

    fn region(&self, order: u32) -> Region<'_> {
        let pages = self.shared();
        Region {
            indexes: pages.slice(0, PAGE_SIZE),
            data: pages.slice(PAGE_SIZE, PAGE_SIZE << order),
        }
    }

    fn notify(&self) {
        match self {
            Memory::Granted(lent) => lent.pool.machine().notify(lent.port),
            Memory::Mapped { channel, .. } => channel.notify(),
        }
    }

    /// Whether the other end has left. All that it wrote before can be seen after this.
    fn is_left(&self) -> bool {
        self.shared().load_u32(self.part().other().presence(), Acquire) == 0
    }
}

impl<M: Machine, N: Neighbour> transport::Link for Link<M, N> {
    type Reader<'a>
        = Reader<'a, M, N>
    where
        Self: 'a;
    type Writer<'a>
        = Writer<'a, M, N>
    where
        Self: 'a;

    fn split(&mut self) -> (Reader<'_, M, N>, Writer<'_, M, N>) {
        let Link { memory, signal, order, consumer, producer, due, .. } = self;
        let end = End { memory, signal, order: *order, burst: 0 };
        (Reader { consumer, end: End { ..end } }, Writer { producer, due, end })
    }
}

/// What both streams of a link share, for one of them.
struct End<'a, M: Machine, N: Neighbour> {
    memory: &'a Memory<M, N>,
    signal: &'a Signal,
    order: u32,
    /// Operations since the task last waited.
    burst: u32,
}

impl<M: Machine, N: Neighbour> End<'_, M, N> {
    /// Waits until `attempt` gives a value or an error. Before it sleeps, it tries again with
    /// `true`: then the attempt first asks the other end for an event.
    async fn until<T>(
        &mut self,
        side: Side,
        mut attempt: impl FnMut(&Memory<M, N>, Region<'_>, bool) -> Result<Option<T>, Errno>,
    ) -> Result<T, Errno> {
        let region = self.memory.region(self.order);
        poll_fn(|cx| {
            // An end that is always ready must not keep other tasks from running.
            if self.burst == BURST {
                self.burst = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.burst += 1;
            let mut result = attempt(self.memory, region, false).transpose();
            if result.is_none() {
                self.burst = 0;
                self.signal.register(side, cx.waker());
                // An event before this has woken nobody. The second attempt sees its cause.
                result = attempt(self.memory, region, true).transpose();
            }
            result.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// The stream from the other end.
pub struct Reader<'a, M: Machine, N: Neighbour> {
    end: End<'a, M, N>,
    consumer: &'a mut Consumer,
}

impl<M: Machine, N: Neighbour> transport::LinkReader for Reader<'_, M, N> {
    async fn read(&mut self, to: Shared<'_>) -> Result<usize, Errno> {
        let consumer = &mut *self.consumer;
        let attempt = |memory: &Memory<M, N>, region: Region<'_>, sleeps: bool| {
            if sleeps {
                consumer.arm(region);
            }
            // In this order, as the bytes that the other end wrote before it left are valid.
            let is_left = memory.is_left();
            let data = consumer.data(region)?;
            if len(&data) == 0 {
                return if is_left { Err(Errno::EPIPE) } else { Ok(None) };
            }
            let first = to.copy_from(data[0]);
            let count = first + to.slice(first, to.len() - first).copy_from(data[1]);
            if consumer.advance(region, count).is_due() {
                memory.notify();
            }
            Ok(Some(count))
        };
        self.end.until(Side::Rx, attempt).await
    }
}

/// The stream to the other end.
pub struct Writer<'a, M: Machine, N: Neighbour> {
    end: End<'a, M, N>,
    producer: &'a mut Producer,
    due: &'a mut bool,
}

impl<M: Machine, N: Neighbour> transport::LinkWriter for Writer<'_, M, N> {
    /// If there is no room, it waits until half of the ring is free: one event for many bytes.
    async fn write(&mut self, from: Shared<'_>) -> Result<usize, Errno> {
        let Writer { producer, due, end } = self;
        let half = (PAGE_SIZE << end.order) as u32 / 4;
        let attempt = |memory: &Memory<M, N>, region: Region<'_>, sleeps: bool| {
            if sleeps {
                if core::mem::take(*due) {
                    memory.notify();
                }
                producer.arm(region, half);
            }
            if memory.is_left() {
                return Err(Errno::EPIPE);
            }
            let room = producer.room(region)?;
            if len(&room) == 0 {
                return Ok(None);
            }
            let first = room[0].copy_from(from);
            let count = first + room[1].copy_from(from.slice(first, from.len() - first));
            **due |= producer.advance(region, count).is_due();
            Ok(Some(count))
        };
        end.until(Side::Tx, attempt).await
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        if core::mem::take(self.due) {
            self.end.memory.notify();
        }
        Ok(())
    }
}
