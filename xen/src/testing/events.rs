//! Xen's side of a domain's event channels: in the order and with the checks of its
//! `common/event_2l.c` and `common/event_fifo.c`, over the same memory as
//! [`EventChannels`](crate::event::EventChannels).

use crate::abi::event_channel::*;
use crate::event::fifo::{BUSY, HEAD, LINKED, MASKED, PENDING, PER_PAGE, READY};
use crate::event::two_level::{self, UPCALL_PENDING};
use crate::shared::fence;
use crate::{Port, Shared};
use core::fmt;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as Plain};

// The model checker must see that one of Xen's CPUs waits for another.
#[cfg(feature = "loom")]
use loom::sync::Mutex;
#[cfg(not(feature = "loom"))]
use std::sync::Mutex;

/// Interrupts the virtual CPU.
type Interrupt = Arc<dyn Fn() + Send + Sync>;

/// Xen's side of a domain's event channels.
pub struct FakeEvents {
    shared_info: Shared<'static>,
    is_fifo: AtomicBool,
    /// The event array's pages.
    array: Plain<Vec<Shared<'static>>>,
    /// One lock, where Xen has one per queue.
    queues: Mutex<Queues>,
    /// The number of events of each port.
    sent: Plain<BTreeMap<u32, u64>>,
    interrupt: Plain<Interrupt>,
}

struct Queues {
    control: Shared<'static>,
    tails: [u32; EVTCHN_FIFO_MAX_QUEUES],
    /// By port, if not the default.
    priorities: BTreeMap<u32, usize>,
    /// By port: its last queue.
    last: BTreeMap<u32, usize>,
    /// Ports with events whose words the array does not have yet.
    early: BTreeSet<u32>,
}

impl fmt::Debug for FakeEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeEvents").finish_non_exhaustive()
    }
}

impl Queues {
    fn new(control: Shared<'static>) -> Queues {
        Queues {
            control,
            tails: Default::default(),
            priorities: BTreeMap::new(),
            last: BTreeMap::new(),
            early: BTreeSet::new(),
        }
    }
}

impl FakeEvents {
    /// The 2-level ABI, without ports.
    pub fn new(shared_info: Shared<'static>) -> FakeEvents {
        FakeEvents {
            shared_info,
            is_fifo: AtomicBool::new(false),
            array: Plain::default(),
            queues: Mutex::new(Queues::new(shared_info)),
            sent: Plain::default(),
            interrupt: Plain::new(Arc::new(|| {})),
        }
    }

    /// Sets a function to call where Xen would interrupt the virtual CPU.
    pub fn on_interrupt(&self, interrupt: impl Fn() + Send + Sync + 'static) {
        *self.interrupt.lock().unwrap() = Arc::new(interrupt);
    }

    /// The number of events that a port got.
    pub fn sent(&self, port: Port) -> u64 {
        self.sent.lock().unwrap().get(&port.0).copied().unwrap_or(0)
    }

    /// Whether the FIFO ABI is in use.
    pub fn is_fifo(&self) -> bool {
        self.is_fifo.load(Relaxed)
    }

    /// Resets to the state of a restored domain: no FIFO ABI.
    pub fn forget(&self) {
        self.is_fifo.store(false, Relaxed);
        self.array.lock().unwrap().clear();
    }

    /// `EVTCHNOP_init_control`.
    pub fn init_control(&self, control: Shared<'static>) {
        *self.queues.lock().unwrap() = Queues::new(control);
        self.is_fifo.store(true, Relaxed);
    }

    /// `EVTCHNOP_expand_array`.
    pub fn expand_array(&self, page: Shared<'static>) {
        let mut array = self.array.lock().unwrap();
        array.push(page);
        let words = array.len() * PER_PAGE;
        drop(array);
        let mut queues = self.queues.lock().unwrap();
        let early = queues.early.split_off(&(words as u32));
        let now = std::mem::replace(&mut queues.early, early);
        drop(queues);
        now.into_iter().for_each(|port| self.enqueue(port, false));
    }

    /// `EVTCHNOP_set_priority`.
    pub fn set_priority(&self, port: Port, priority: u32) {
        self.queues.lock().unwrap().priorities.insert(port.0, priority as usize);
    }

    /// Whether a closed port's number cannot be allocated because the port is still in a queue.
    pub fn is_busy(&self, port: Port) -> bool {
        let word = self.word(port.0).filter(|_| self.is_fifo());
        word.is_some_and(|(page, at)| page.load_u32(at, SeqCst) & LINKED != 0)
    }

    /// Sends an event to a port.
    pub fn set_pending(&self, port: Port) {
        if self.is_fifo() {
            self.enqueue(port.0, true);
        } else {
            self.set_bit(port);
        }
    }

    /// `EVTCHNOP_unmask`.
    pub fn unmask(&self, port: Port) {
        if self.is_fifo() {
            let Some((page, at)) = self.word(port.0) else { return };
            page.fetch_and_u32(at, !MASKED, AcqRel);
            if page.load_u32(at, Acquire) & PENDING != 0 {
                self.enqueue(port.0, false);
            }
        } else if let Some((word, bit)) = two_level::place(port) {
            self.shared_info.fetch_and_u64(two_level::MASK + word, !bit, AcqRel);
            fence(SeqCst);
            if self.shared_info.load_u64(two_level::PENDING + word, Acquire) & bit != 0 {
                self.select(port);
            }
        }
    }

    fn word(&self, port: u32) -> Option<(Shared<'static>, usize)> {
        let page = *self.array.lock().unwrap().get(port as usize / PER_PAGE)?;
        Some((page, port as usize % PER_PAGE * 4))
    }

    fn count(&self, port: Port) {
        *self.sent.lock().unwrap().entry(port.0).or_default() += 1;
    }

    fn set_bit(&self, port: Port) {
        let Some((word, bit)) = two_level::place(port) else { return };
        let was = self.shared_info.fetch_or_u64(two_level::PENDING + word, bit, AcqRel);
        self.count(port);
        if was & bit != 0 {
            return;
        }
        // On x86 each update of a word is such a fence, too.
        fence(SeqCst);
        if self.shared_info.load_u64(two_level::MASK + word, Acquire) & bit == 0 {
            self.select(port);
        }
    }

    fn select(&self, port: Port) {
        let bit = 1 << (port.0 / 64);
        if self.shared_info.fetch_or_u64(two_level::SELECTOR, bit, AcqRel) & bit == 0 {
            self.mark_events_pending();
        }
    }

    fn mark_events_pending(&self) {
        fence(SeqCst);
        self.shared_info.store_u8(UPCALL_PENDING, 1, SeqCst);
        let interrupt = self.interrupt.lock().unwrap().clone();
        interrupt();
    }

    /// Records an event, which is new or was pending before, and puts the port into its queue
    /// unless it is masked or queued already.
    fn enqueue(&self, port: u32, is_new: bool) {
        let mut queues = self.queues.lock().unwrap();
        let Some((page, at)) = self.word(port) else {
            queues.early.insert(port);
            return;
        };
        let queue = *queues.priorities.get(&port).unwrap_or(&7);
        let last = *queues.last.get(&port).unwrap_or(&7);
        page.fetch_or_u32(at, PENDING, AcqRel);
        if is_new {
            self.count(Port(port));
        }
        if page.load_u32(at, Acquire) & MASKED != 0
            || page.fetch_or_u32(at, LINKED, AcqRel) & LINKED != 0
        {
            return;
        }
        // If it was the tail, the guest has taken it, and that queue is empty.
        if queues.tails[last] == port {
            queues.tails[last] = 0;
        }
        queues.last.insert(port, queue);
        let tail = queues.tails[queue];
        let is_appended = tail != 0 && {
            let (page, at) = self.word(tail).expect("it was queued");
            set_link(page, at, port)
        };
        let control = queues.control;
        if !is_appended {
            control.store_u32(HEAD + 4 * queue, port, Relaxed);
        }
        queues.tails[queue] = port;
        drop(queues);
        if !is_appended && control.fetch_or_u32(READY, 1 << queue, AcqRel) & (1 << queue) == 0 {
            self.mark_events_pending();
        }
    }
}

/// Appends a port to the one with this word, if that is still in the queue.
fn set_link(page: Shared<'_>, at: usize, link: u32) -> bool {
    let try_once = |word: u32| {
        let new = (word & !(BUSY | EVTCHN_FIFO_LINK_MASK)) | link;
        page.compare_exchange_u32(at, word, new, AcqRel)
    };
    let word = page.load_u32(at, Acquire);
    if word & LINKED == 0 {
        return false;
    }
    if try_once(word).is_ok() {
        return true;
    }
    // Keeps the guest from unmasking it.
    page.fetch_or_u32(at, BUSY, AcqRel);
    let mut word = page.load_u32(at, Acquire);
    for _ in 0..4 {
        if word & LINKED == 0 {
            page.fetch_and_u32(at, !BUSY, AcqRel);
            return false;
        }
        match try_once(word) {
            Ok(_) => return true,
            Err(now) => word = now,
        }
    }
    panic!("the guest changes a linked word more often than it may");
}
