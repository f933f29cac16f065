//! Ports: Xen sets events while the guest handles, masks and unmasks.

use crate::check;
use crate::memory::Pages;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use xen::abi::xen::{SharedInfo, VcpuInfo};
use xen::event::{Abi, EventChannels, EventHandler};
use xen::testing::model::loom::model::Builder;
use xen::testing::model::loom::sync::{Condvar, Mutex};
use xen::testing::model::loom::thread;
use xen::testing::{FakeEvents, FakeXen};
use xen::{PAGE_SIZE, Port, Shared};

const UPCALL_PENDING: usize = offset_of!(VcpuInfo, evtchn_upcall_pending);
const FIRST: Port = Port(1);
const SECOND: Port = Port(2);

/// The virtual CPU's sleep.
struct Cpu {
    shared_info: Shared<'static>,
    halted: Mutex<()>,
    interrupted: Condvar,
}

impl Cpu {
    /// Sleeps, unless an upcall is pending, and takes the upcall, as `cpu/exceptions.S` does.
    fn halt(&self) {
        let mut halted = self.halted.lock().unwrap();
        while self.shared_info.load_u8(UPCALL_PENDING, SeqCst) == 0 {
            halted = self.interrupted.wait(halted).unwrap();
        }
        drop(halted);
        self.shared_info.store_u8(UPCALL_PENDING, 0, SeqCst);
    }

    /// Wakes the CPU: Xen has set the flag.
    fn interrupt(&self) {
        drop(self.halted.lock().unwrap());
        self.interrupted.notify_one();
    }
}

/// The handler of a port. It has no loom types, so loom does not interrupt between an event and its
/// count.
struct Handler {
    port: Port,
    events: Arc<FakeEvents>,
    /// The number of events when the handler was called.
    count: AtomicU64,
    is_masked: AtomicBool,
}

impl EventHandler for Handler {
    fn raise(&self) {
        assert!(!self.is_masked.load(SeqCst), "port {} is masked", self.port.0);
        self.count.store(self.events.sent(self.port), SeqCst);
    }
}

struct Guest<'m> {
    channels: EventChannels<&'m FakeXen, &'m FakeXen>,
    cpu: Arc<Cpu>,
    handlers: [Arc<Handler>; 2],
}

impl Guest<'_> {
    fn mask(&self, port: Port) {
        self.channels.mask(port);
        self.handler(port).is_masked.store(true, SeqCst);
    }

    fn unmask(&self, port: Port) {
        self.handler(port).is_masked.store(false, SeqCst);
        self.channels.unmask(port);
    }

    fn handler(&self, port: Port) -> &Handler {
        &self.handlers[port.0 as usize - 1]
    }

    /// Handles events and sleeps, like the kernel's executor, until all were handled.
    fn serve(&self, count: u64) {
        loop {
            while self.channels.dispatch() {}
            if self.handlers.iter().map(|handler| handler.count.load(SeqCst)).sum::<u64>() == count
            {
                return;
            }
            if !self.channels.is_pending() {
                self.cpu.halt();
            }
        }
    }
}

/// A guest with two ports, and CPUs of Xen that send events to them.
fn run<const N: usize>(abi: Abi, senders: [&'static [Port]; N], guest: impl FnOnce(&Guest<'_>)) {
    let pages = Pages::default();
    let words = |start: usize| (0..64).map(move |word| start + 8 * word);
    let mut used = vec![UPCALL_PENDING, offset_of!(VcpuInfo, evtchn_pending_sel)];
    used.extend(words(offset_of!(SharedInfo, evtchn_pending)));
    used.extend(words(offset_of!(SharedInfo, evtchn_mask)));
    let shared_info = pages.page(PAGE_SIZE, &used, None);
    let control = [0].into_iter().chain((8..72).step_by(4)).collect::<Vec<_>>();
    let control = pages.page(72, &control, None);
    // The beginning of the event array.
    let array = pages.page(12, &[0, 4, 8], None);

    let xen = FakeXen::over(shared_info, vec![control, array]);
    let cpu = Arc::new(Cpu { shared_info, halted: Mutex::new(()), interrupted: Condvar::new() });
    let target = cpu.clone();
    xen.events.on_interrupt(move || target.interrupt());
    let channels = EventChannels::new(&xen, shared_info, &xen, Some(abi)).unwrap();
    let handlers = [FIRST, SECOND].map(|port| {
        let handler = Arc::new(Handler {
            port,
            events: xen.events.clone(),
            count: AtomicU64::new(0),
            is_masked: AtomicBool::new(false),
        });
        channels.register(port, handler.clone()).unwrap();
        handler
    });
    let senders = senders.map(|ports| {
        let events = xen.events.clone();
        thread::spawn(move || ports.iter().for_each(|port| events.set_pending(*port)))
    });
    let this = Guest { channels, cpu, handlers };
    guest(&this);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

/// Two events of one port, and between them one of another.
fn sent(abi: Abi) {
    run(abi, [&[FIRST, SECOND, FIRST]], |guest| guest.serve(3));
}

/// A port is masked and unmasked while it gets its event.
fn masked(abi: Abi) {
    run(abi, [&[FIRST, SECOND]], |guest| {
        guest.mask(FIRST);
        guest.channels.dispatch();
        guest.unmask(FIRST);
        guest.serve(2);
    });
}

/// The last port of a queue is masked and unmasked while Xen appends another.
fn masked_at_the_tail(abi: Abi) {
    run(abi, [&[FIRST, SECOND]], |guest| {
        guest.mask(FIRST);
        guest.unmask(FIRST);
        guest.serve(2);
    });
}

pub fn fifo_sent() {
    sent(Abi::Fifo);
}

/// Two CPUs send at the same time: one may have written the queue's head, but not its ready bit.
fn fifo_sent_by_two() {
    run(Abi::Fifo, [&[FIRST], &[SECOND]], |guest| guest.serve(2));
}

pub fn fifo_masked() {
    masked(Abi::Fifo);
}

pub fn fifo_masked_at_the_tail() {
    masked_at_the_tail(Abi::Fifo);
}

pub fn two_level_sent() {
    sent(Abi::TwoLevel);
}

pub fn two_level_masked() {
    masked(Abi::TwoLevel);
}

#[test]
fn no_event_in_a_queue_is_lost() {
    check(fifo_sent);
}

#[test]
fn no_event_in_a_queue_is_lost_that_two_cpus_append_to() {
    // A third thread takes long. Where a thread waits for another, loom tries all orders anyway.
    let mut builder = Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(2).min(2) - 1);
    builder.check(fifo_sent_by_two);
}

#[test]
fn a_queued_port_is_handled_only_after_it_is_unmasked() {
    check(fifo_masked);
}

#[test]
fn a_port_is_unmasked_while_xen_appends_another_to_it() {
    check(fifo_masked_at_the_tail);
}

#[test]
fn no_bit_is_lost() {
    check(two_level_sent);
}

#[test]
fn a_pending_bit_is_handled_only_after_it_is_unmasked() {
    check(two_level_masked);
}
