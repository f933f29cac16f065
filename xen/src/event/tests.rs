use super::*;
use crate::hypercall::double::{Done, FakeXen};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;

#[derive(Default)]
struct Counter(AtomicUsize);

impl EventHandler for Counter {
    fn raise(&self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Counter {
    fn take(&self) -> usize {
        self.0.swap(0, SeqCst)
    }
}

/// A shared info page of plain memory, and what Xen does to it.
fn page() -> Shared<'static> {
    let memory = Box::leak(Box::new([0u64; 512]));
    // SAFETY: the memory is leaked and used by nothing else.
    unsafe { Shared::new(memory.as_mut_ptr().cast(), 4096) }
}

/// What Xen does for an event.
fn set_pending(page: Shared<'_>, port: u32) {
    let (word, bit) = Bits::place(Port(port));
    let was = page.atomic_u64(PENDING + word).fetch_or(bit, SeqCst);
    if was & bit == 0 && page.load_u64(MASK + word, SeqCst) & bit == 0 {
        page.atomic_u64(SELECTOR).fetch_or(1 << (port / 64), SeqCst);
        page.store_u8(UPCALL_PENDING, 1, SeqCst);
    }
}

#[test]
fn an_event_reaches_the_handler_of_its_port_once() {
    let (xen, page) = (FakeXen::new(), page());
    let channels = EventChannels::new(&xen, page);
    let counters = [Arc::new(Counter::default()), Arc::new(Counter::default())];
    let first = channels.alloc_unbound(DomId(0), counters[0].clone()).unwrap();
    let second = channels.bind_virq(0, counters[1].clone()).unwrap();
    set_pending(page, first.0);
    set_pending(page, first.0);
    assert!(channels.is_pending());
    assert!(!channels.dispatch());
    assert_eq!((counters[0].take(), counters[1].take()), (1, 0));
    assert!(!channels.dispatch());
    assert_eq!(counters[0].take(), 0);
    assert_eq!(page.load_u8(UPCALL_PENDING, SeqCst), 0);
    channels.send(second).unwrap();
    assert_eq!(xen.take_done(), [Done::Opened(1), Done::Opened(2), Done::Sent(2)]);
}

#[test]
fn an_event_that_came_before_the_handler_is_not_lost() {
    let (xen, page) = (FakeXen::new(), page());
    let channels = EventChannels::new(&xen, page);
    set_pending(page, 70);
    assert!(!channels.dispatch(), "the port is masked");
    let counter = Arc::new(Counter::default());
    channels.register(Port(70), counter.clone()).unwrap();
    assert_eq!(page.load_u8(UPCALL_PENDING, SeqCst), 1, "a halt now would wake at once");
    channels.dispatch();
    assert_eq!(counter.take(), 1);
}

#[test]
fn a_masked_port_keeps_its_event_until_it_is_unmasked() {
    let (xen, page) = (FakeXen::new(), page());
    let channels = EventChannels::new(&xen, page);
    let counter = Arc::new(Counter::default());
    channels.register(Port(5), counter.clone()).unwrap();
    channels.mask(Port(5));
    set_pending(page, 5);
    channels.dispatch();
    assert_eq!(counter.take(), 0);
    channels.unmask(Port(5));
    channels.dispatch();
    assert_eq!(counter.take(), 1);
}

#[test]
fn a_storm_is_handled_in_portions_and_starves_nobody() {
    let (xen, page) = (FakeXen::new(), page());
    let channels = EventChannels::new(&xen, page);
    let stormy = Arc::new(Counter::default());
    (64..64 + 2 * BUDGET as u32)
        .for_each(|port| channels.register(Port(port), stormy.clone()).unwrap());
    let quiet = Arc::new(Counter::default());
    channels.register(Port(4095), quiet.clone()).unwrap();
    set_pending(page, 4095);
    let mut calls = 0;
    while quiet.take() == 0 {
        (64..64 + 2 * BUDGET as u32).for_each(|port| set_pending(page, port));
        let more = channels.dispatch();
        assert!(stormy.take() <= BUDGET);
        calls += 1;
        assert!(calls < 5, "the quiet port starves");
        assert!(more || quiet.0.load(SeqCst) == 1);
    }
}

#[test]
fn a_closed_port_is_silent() {
    let (xen, page) = (FakeXen::new(), page());
    let channels = EventChannels::new(&xen, page);
    let counter = Arc::new(Counter::default());
    let port = channels.alloc_unbound(DomId(3), counter.clone()).unwrap();
    set_pending(page, port.0);
    channels.close(port).unwrap();
    channels.dispatch();
    assert_eq!(counter.take(), 0);
    assert_eq!(Arc::strong_count(&counter), 1, "the handler was let go");
    assert_eq!(xen.take_done(), [Done::Opened(1), Done::Closed(1)]);
    // Xen gives numbers out again: the next owner does not inherit the event.
    channels.register(port, counter.clone()).unwrap();
    channels.dispatch();
    assert_eq!(counter.take(), 0);
}

#[test]
fn an_event_without_a_handler_masks_its_port() {
    let (xen, page) = (FakeXen::new(), page());
    let channels = EventChannels::new(&xen, page);
    channels.unmask(Port(9));
    set_pending(page, 9);
    channels.dispatch();
    set_pending(page, 9);
    assert!(!channels.is_pending());
}

#[test]
fn a_port_beyond_the_table_is_closed_again() {
    let (xen, page) = (FakeXen::new(), page());
    *xen.next_port.borrow_mut() = 4096;
    let channels = EventChannels::new(&xen, page);
    let handler = Arc::new(AtomicWaker::new());
    assert_eq!(channels.alloc_unbound(DomId(0), handler.clone()), Err(Errno::EINVAL));
    assert_eq!(xen.take_done(), [Done::Opened(4096), Done::Closed(4096)]);
    assert_eq!(channels.close(Port(70_000)), Err(Errno::EINVAL));
}

#[test]
fn no_event_is_lost_while_another_cpu_sends() {
    let (xen, page) = (FakeXen::new(), page());
    let channels = EventChannels::new(&xen, page);
    let ports = [1u32, 63, 64, 4095];
    let counters = ports.map(|port| {
        let counter = Arc::new(Counter::default());
        channels.register(Port(port), counter.clone()).unwrap();
        counter
    });
    let seen = counters.clone();
    // Each event is sent after the one before was heard: one that is lost stops the test.
    let sender = std::thread::spawn(move || {
        for round in 1..=500 {
            for (port, counter) in ports.iter().zip(&seen) {
                set_pending(page, *port);
                let start = std::time::Instant::now();
                while counter.0.load(SeqCst) < round {
                    assert!(start.elapsed().as_secs() < 60, "event {round} of port {port} is lost");
                    std::thread::yield_now();
                }
            }
        }
    });
    while !sender.is_finished() {
        channels.mask(Port(64));
        channels.dispatch();
        channels.unmask(Port(64));
        channels.dispatch();
        std::thread::yield_now();
    }
    sender.join().unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Event(u32),
    Mask(u32),
    Unmask(u32),
    Dispatch(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = prop_oneof![1u32..5, 60u32..70, 4090u32..4096];
    let step = (0..6, port, 1usize..20).prop_map(|(kind, port, budget)| match kind {
        0..=2 => Step::Event(port),
        3 => Step::Mask(port),
        4 => Step::Unmask(port),
        _ => Step::Dispatch(budget),
    });
    proptest::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn every_event_of_an_unmasked_port_is_raised_once_and_none_of_a_masked_one(steps in steps()) {
        let bits = Bits { shared: page(), next_word: Cell::new(0) };
        bits.mask_all();
        let (mut pending, mut open) = (BTreeSet::new(), BTreeSet::new());
        let check = |bits: &Bits, budget, pending: &mut BTreeSet<u32>, open: &BTreeSet<u32>| {
            let mut raised = Vec::new();
            let more = bits.dispatch(budget, |port| raised.push(port.0));
            let due = pending.intersection(open).count();
            assert_eq!(raised.len(), due.min(budget));
            assert_eq!(more, due > budget);
            for port in raised {
                assert!(open.contains(&port) && pending.remove(&port), "port {port} had no event");
            }
        };
        for step in steps {
            match step {
                Step::Event(port) => {
                    set_pending(bits.shared, port);
                    pending.insert(port);
                }
                Step::Mask(port) => {
                    bits.mask(Port(port));
                    open.remove(&port);
                }
                Step::Unmask(port) => {
                    bits.unmask(Port(port));
                    open.insert(port);
                }
                Step::Dispatch(budget) => check(&bits, budget, &mut pending, &open),
            }
        }
        check(&bits, usize::MAX, &mut pending, &open);
    }
}
