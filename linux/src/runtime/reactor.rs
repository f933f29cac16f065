//! Waits for files with epoll, and wakes the tasks that wait for them.
//!
//! A turn of the loop is one `epoll_wait`. Whoever finds that a file is no longer ready says so by
//! [`Watched::clear`], so no system call is made only to learn that.

use super::timers::{Key, Timers};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use xen::{Side, Signal};

pub use epoll::EventFlags;

/// The most events that one turn takes from the kernel.
const EVENTS: usize = 256;

/// The numbers of the timers' file and of the interrupt among the events. All others are those of a
/// slab.
const TIMER: u64 = u64::MAX;
const INTERRUPT: u64 = u64::MAX - 1;

/// What makes a file ready that is only read. Edge-triggered: reported once for each change.
pub const READABLE: EventFlags = EventFlags::IN.union(EventFlags::ET);

/// What makes a connected socket ready, edge-triggered.
pub const SOCKET: EventFlags =
    READABLE.union(EventFlags::OUT).union(EventFlags::PRI).union(EventFlags::RDHUP);

/// A thread's files and timers. Clones are handles to the same reactor.
#[derive(Clone)]
pub struct Reactor(Rc<Inner>);

struct Inner {
    epoll: OwnedFd,
    sources: RefCell<Slab<Rc<Source>>>,
    events: RefCell<Vec<epoll::Event>>,
    timers: RefCell<Timers>,
    interrupt: Arc<Interrupt>,
}

/// Ends a turn that waits, from another thread.
pub(super) struct Interrupt(OwnedFd);

impl Interrupt {
    pub(super) fn send(&self) {
        // Each write is an event; nobody reads the number.
        if let Err(error) = rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
            log::error!("cannot wake a thread: {error}");
        }
    }
}

/// What epoll has reported about a file.
#[derive(Default)]
struct Source {
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// Whether urgent data or the end of the stream has come.
    special: Cell<bool>,
    signal: Signal,
}

impl Reactor {
    /// A reactor without files.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timers = Timers::new()?;
        epoll::add(&epoll, timers.file(), epoll::EventData::new_u64(TIMER), READABLE)?;
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &interrupt, epoll::EventData::new_u64(INTERRUPT), READABLE)?;
        Ok(Reactor(Rc::new(Inner {
            epoll,
            sources: RefCell::default(),
            events: RefCell::new(Vec::with_capacity(EVENTS)),
            timers: RefCell::new(timers),
            interrupt: Arc::new(Interrupt(interrupt)),
        })))
    }

    /// Ends a turn of this reactor.
    pub(super) fn interrupt(&self) -> Arc<Interrupt> {
        self.0.interrupt.clone()
    }

    /// Watches a file, which must not block, until the result is dropped.
    pub fn watch(&self, file: Rc<OwnedFd>, flags: EventFlags) -> io::Result<Watched> {
        let source = Rc::new(Source::default());
        let key = self.0.sources.borrow_mut().insert(source.clone());
        let data = epoll::EventData::new_u64(key as u64);
        match epoll::add(&self.0.epoll, &file, data, flags) {
            Ok(()) => Ok(Watched { file, source, key, reactor: self.clone() }),
            Err(error) => {
                self.0.sources.borrow_mut().remove(key);
                Err(error.into())
            }
        }
    }

    /// Takes events from the kernel, after waiting for one if `wait` is true.
    pub(super) fn take_events(&self, wait: bool) -> io::Result<()> {
        let mut events = self.0.events.borrow_mut();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let limit = (!wait).then_some(&now);
        match epoll::wait(&self.0.epoll, spare_capacity(&mut *events), limit) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Wakes the tasks that waited for the events that were taken.
    pub(super) fn report_events(&self) -> io::Result<()> {
        let mut events = self.0.events.borrow_mut();
        for event in events.drain(..) {
            let (key, flags) = (event.data.u64(), event.flags);
            if key == TIMER {
                let expired = self.0.timers.borrow_mut().expire(Instant::now())?;
                expired.into_iter().for_each(|waker| waker.wake());
                continue;
            }
            let source = self.0.sources.borrow().get(key as usize).cloned();
            if let Some(source) = source {
                source.report(flags);
            }
        }
        Ok(())
    }

    /// Waits for this long.
    pub async fn sleep(&self, time: Duration) {
        let timers = &self.0.timers;
        let added = timers.borrow_mut().add(Instant::now() + time);
        let key = match added {
            Ok(key) => key,
            Err(error) => return log::error!("cannot set a timer: {error}"),
        };
        let timer = Timer { timers, key };
        poll_fn(|cx| match timers.borrow_mut().is_pending(timer.key, cx.waker()) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
    }
}

/// A timer, until it is dropped.
struct Timer<'t> {
    timers: &'t RefCell<Timers>,
    key: Key,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.timers.borrow_mut().remove(self.key);
    }
}

impl Source {
    fn report(&self, flags: EventFlags) {
        let failed = EventFlags::ERR | EventFlags::HUP;
        if flags.intersects(EventFlags::PRI | EventFlags::RDHUP | failed) {
            self.special.set(true);
        }
        if flags.intersects(EventFlags::IN | EventFlags::PRI | EventFlags::RDHUP | failed) {
            self.readable.set(true);
        }
        if flags.intersects(EventFlags::OUT | failed) {
            self.writable.set(true);
        }
        self.signal.raise();
    }

    fn is_ready(&self, side: Side) -> &Cell<bool> {
        match side {
            Side::Rx => &self.readable,
            Side::Tx => &self.writable,
        }
    }
}

/// A file that the reactor watches until this is dropped.
pub struct Watched {
    file: Rc<OwnedFd>,
    source: Rc<Source>,
    key: usize,
    reactor: Reactor,
}

impl Watched {
    /// Waits until the file can be read from (`Rx`) or written to (`Tx`). At most one task may wait
    /// for each.
    pub fn poll_ready(&self, cx: &mut Context<'_>, side: Side) -> Poll<()> {
        if self.source.is_ready(side).get() {
            return Poll::Ready(());
        }
        self.source.signal.register(side, cx.waker());
        Poll::Pending
    }

    /// Notes that the file is no longer ready. The next change wakes the task that waits.
    pub fn clear(&self, side: Side) {
        self.source.is_ready(side).set(false);
    }

    /// Notes that a read returned fewer bytes than asked for, which usually means that the socket
    /// is empty. It does not mean that at urgent data or at the end of the stream.
    pub fn clear_after_short_read(&self) {
        if !self.source.special.get() {
            self.clear(Side::Rx);
        }
    }

    /// Carries out `io` when the file is ready, as often as needed. `io` must fail with
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if it is not ready after all.
    pub fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        side: Side,
        mut io: impl FnMut(&OwnedFd) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            std::task::ready!(self.poll_ready(cx, side));
            match io(&self.file) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.clear(side),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl Deref for Watched {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.file
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // The kernel forgets a file that is closed. This one stays open if another owner has it.
        if Rc::strong_count(&self.file) > 1 {
            let _ = epoll::delete(&self.reactor.0.epoll, &self.file);
        }
        // The events of a turn are all reported before a task runs, so none has this key any more.
        self.reactor.0.sources.borrow_mut().remove(self.key);
    }
}
