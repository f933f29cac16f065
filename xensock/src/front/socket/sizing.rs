//! The size of a connection's ring: it grows under load, and shrinks again.
//!
//! A direction is under pressure when a writer finds its buffer full, or a reader finds it at least
//! half full. One observation in each half of a buffer counts. After [`OBSERVATIONS`] the ring
//! grows. A ring that has grown shrinks when little passes through it in
//! [`Config::shrink_after`](super::super::Config), and when memory is wanted.
//!
//! All of this happens in jobs of the driver. A size that cannot be had changes nothing.

use super::super::rings::{Ends, RingPages};
use super::super::state::Core;
use super::{Kind, Socket};
use crate::wire::{Call, Extensions};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use embassy_time::{Duration, Instant, with_timeout};
use xen::{Errno, Machine, Side, WaitList};

/// After so many observations of pressure a ring grows.
const OBSERVATIONS: u32 = 2;

/// How long a ring stays as it is after it could not grow, or had to shrink.
const REST: Duration = Duration::from_secs(10);

/// The longest pause between two looks at rings that cannot shrink.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The traffic of a connection.
#[derive(Default)]
pub(super) struct Load {
    input: Flow,
    output: Flow,
    /// Bytes that had passed each way at the last look of the driver.
    looked: Cell<[u64; 2]>,
    /// The ring does not grow before this time.
    rests_until: Cell<Option<Instant>>,
}

/// The traffic of one direction.
#[derive(Default)]
struct Flow {
    /// Bytes that have passed.
    moved: Cell<u64>,
    /// How many bytes must have passed before pressure counts again.
    counts_from: Cell<u64>,
    observed: Cell<u32>,
}

impl Load {
    fn flow(&self, side: Side) -> &Flow {
        match side {
            Side::Rx => &self.input,
            Side::Tx => &self.output,
        }
    }

    /// Counts bytes that have passed.
    pub(super) fn add(&self, side: Side, count: usize) {
        let moved = &self.flow(side).moved;
        moved.set(moved.get().wrapping_add(count as u64));
    }

    /// Notes pressure on a buffer of `size` bytes.
    pub(super) fn observe(&self, side: Side, size: u32) {
        let flow = self.flow(side);
        if flow.moved.get() >= flow.counts_from.get() {
            flow.counts_from.set(flow.moved.get() + u64::from(size / 2));
            flow.observed.set(flow.observed.get() + 1);
        }
    }

    /// Whether a direction was often under pressure.
    pub(super) fn is_high(&self, side: Side) -> bool {
        self.flow(side).observed.get() >= OBSERVATIONS
    }

    fn forget(&self) {
        self.input.observed.set(0);
        self.output.observed.set(0);
    }

    fn rest(&self) {
        self.rests_until.set(Some(Instant::now() + REST));
    }

    fn rests(&self) -> bool {
        self.rests_until.get().is_some_and(|until| until > Instant::now())
    }

    /// The bytes that have passed each way since the last call.
    fn since_last_look(&self) -> [u64; 2] {
        let moved = [self.input.moved.get(), self.output.moved.get()];
        let looked = self.looked.replace(moved);
        [moved[0].wrapping_sub(looked[0]), moved[1].wrapping_sub(looked[1])]
    }
}

/// The connections whose rings have grown and may shrink.
pub(in super::super) struct Elastic<M: Machine + 'static> {
    /// Sorted by id.
    sockets: RefCell<Vec<(u64, Weak<Socket<M>>)>>,
    /// Woken when there are none.
    emptied: WaitList,
    /// Whether a job watches them.
    watched: Cell<bool>,
}

impl<M: Machine> Default for Elastic<M> {
    fn default() -> Self {
        Elastic {
            sockets: RefCell::default(),
            emptied: WaitList::default(),
            watched: Cell::default(),
        }
    }
}

impl<M: Machine> Elastic<M> {
    pub(in super::super) fn is_empty(&self) -> bool {
        self.sockets.borrow().is_empty()
    }

    /// Starts to shrink rings: all of them if memory is wanted, otherwise those with little
    /// traffic. Returns whether one is busy or shrinks.
    pub(in super::super) fn shrink(&self, is_wanted: bool) -> bool {
        let sockets: Vec<_> =
            self.sockets.borrow().iter().filter_map(|(_, socket)| socket.upgrade()).collect();
        let busy = sockets.iter().filter(|socket| socket.look(is_wanted));
        busy.count() > 0
    }

    fn insert(&self, socket: &Rc<Socket<M>>) {
        let mut sockets = self.sockets.borrow_mut();
        if let Err(at) = sockets.binary_search_by_key(&socket.id, |(id, _)| *id) {
            sockets.insert(at, (socket.id, Rc::downgrade(socket)));
        }
        drop(sockets);
        if !self.watched.replace(true) {
            socket.core.link.spawn(watch(socket.core.clone()));
        }
    }

    pub(super) fn remove(&self, id: u64) {
        let mut sockets = self.sockets.borrow_mut();
        let found = sockets.binary_search_by_key(&id, |(other, _)| *other);
        if found.map(|at| sockets.remove(at)).is_ok() && sockets.is_empty() {
            self.emptied.wake_all();
        }
    }
}

/// Shrinks rings that have grown, until none is left: a job.
async fn watch<M: Machine>(core: Rc<Core<M>>) {
    let Elastic { emptied, watched, .. } = &core.elastic;
    let mut pause = core.config.shrink_after;
    loop {
        let none_left = emptied.until(|| core.elastic.is_empty().then_some(()));
        if with_timeout(pause, none_left).await.is_ok() {
            watched.set(false);
            core.rings.close_spare();
            return;
        }
        let is_busy = core.elastic.shrink(core.rings.is_short());
        pause = if is_busy { core.config.shrink_after } else { (pause * 2).min(LONGEST_PAUSE) };
    }
}

impl<M: Machine> Socket<M> {
    /// Whether the ring's size is free to change.
    fn is_elastic(&self) -> bool {
        let session = &self.session;
        self.kind == Kind::Stream
            && session.ring_order < session.max_ring_order
            && self.sizes.get() == [None; 2]
            && !self.ending.get()
    }

    /// The order of the ring, while it is open.
    pub(super) fn order(&self) -> Result<u32, Errno> {
        self.ring.borrow().as_ref().map(|ring| ring.pages.order).ok_or_else(|| self.failure())
    }

    /// Lets the driver watch the ring if it has grown.
    pub(super) fn watch_size(self: &Rc<Self>) {
        let has_grown = self.order().is_ok_and(|order| order > self.session.ring_order);
        if has_grown && self.is_elastic() {
            self.core.elastic.insert(self);
        } else {
            self.core.elastic.remove(self.id);
        }
    }

    /// Starts to enlarge the ring after pressure.
    pub(super) fn grow(self: &Rc<Self>) {
        self.load.forget();
        let may_grow = self.order().is_ok_and(|order| order < self.session.max_ring_order);
        if may_grow && self.is_elastic() && !self.load.rests() {
            self.core.link.spawn(self.clone().enlarge());
        }
    }

    async fn enlarge(self: Rc<Self>) {
        let Ok(present) = self.order() else { return };
        let mut next = self.core.rings.larger(&self.session, present);
        while let Some(order) = next.filter(|_| self.is_elastic()) {
            match self.resize(order).await {
                Ok(()) => return self.core.rings.set_spare(&self.session),
                // The next observation tries again.
                Err(Errno::EBUSY) => return,
                Err(Errno::ENOMEM | Errno::ENOSPC) => {
                    next = (order > present + 1).then_some(order - 1);
                }
                Err(error) => {
                    log::debug!("socket {}: a larger ring: {error}", self.id);
                    break;
                }
            }
        }
        self.load.rest();
    }

    /// Starts to shrink the ring if memory is wanted, or if little passed since the last look.
    /// Returns whether the connection is busy or the ring shrinks.
    fn look(self: &Rc<Self>, is_wanted: bool) -> bool {
        self.leave_former();
        let moved = self.load.since_last_look();
        let mut ring = self.ring.borrow_mut();
        let Some(ring) = ring.as_mut() else { return false };
        let RingPages { layout, order, .. } = &ring.pages;
        let least = self.session.ring_order;
        let order = if is_wanted {
            self.load.rest();
            least
        } else if moved == [0; 2] {
            least
        } else if moved[0] < layout.input.size.into() && moved[1] < layout.output.size.into() {
            self.core.rings.smaller(&self.session, *order)
        } else {
            return true;
        };
        // The pages of a ring with bytes in it would not become free soon.
        let shrinks = (is_wanted || ring.is_empty()) && self.former.borrow().is_none();
        if shrinks {
            let socket = self.clone();
            self.core.link.spawn(async move {
                if socket.is_elastic()
                    && let Err(error) = socket.resize(order).await
                {
                    log::debug!("socket {}: a smaller ring: {error}", socket.id);
                }
            });
        }
        shrinks || moved != [0; 2]
    }

    /// Waits until no RESIZE is in progress.
    pub(super) async fn resized(&self) {
        self.core.rings.changed.until(|| (!self.resizing.get()).then_some(())).await;
    }

    /// Switches to a ring of another size. Nothing in the present ring is lost: this end reads the
    /// rest of its `in`, and the backend the rest of its `out`.
    pub(super) async fn resize(self: &Rc<Self>, order: u32) -> Result<(), Errno> {
        self.needs(Extensions::RESIZE)?;
        self.leave_former();
        if self.resizing.get() || self.former.borrow().is_some() {
            return Err(Errno::EBUSY);
        }
        if self.ending.get() || !self.is_open() {
            return Err(self.failure());
        }
        let rings = &self.core.rings;
        let (pages, grants) = if order == self.session.ring_order {
            rings.open_least(&self.session)?
        } else {
            rings.open_pages(&self.session, order)?
        };
        self.resizing.set(true);
        let answer = self.call(Call::Resize { grants }).await;
        self.resizing.set(false);
        let result = match answer {
            Ok(_) if self.is_open() => {
                let before = self.ring.replace(Some(Ends::new(pages)));
                self.former.replace(before);
                self.leave_former();
                self.watch_size();
                self.core.statistics.borrow_mut().rings_resized += 1;
                Ok(())
            }
            answer => {
                self.core.rings.close_pages(pages);
                // It is unknown which ring the backend uses now.
                if let Err(Errno::ETIMEDOUT) = answer {
                    self.failed.set(Some(Errno::ETIMEDOUT));
                }
                answer.and_then(|_| Err(self.failure()))
            }
        };
        // Writers have waited for the answer.
        self.signal.raise();
        self.core.rings.changed.wake_all();
        result
    }
}
