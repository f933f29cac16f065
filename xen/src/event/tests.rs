use super::*;
use crate::testing::{Done, FakeEvents, FakeXen};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;

mod fifo;
mod resume;

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

type Channels<'x> = EventChannels<&'x FakeXen, &'x FakeXen>;

/// The event channels of a new domain.
fn channels(xen: &FakeXen, abi: Abi) -> Channels<'_> {
    let channels = EventChannels::new(xen, xen.shared_info, xen, Some(abi)).unwrap();
    assert_eq!(channels.abi(), abi);
    xen.take_done();
    channels
}

/// Runs a test in both ABIs.
fn in_both(test: impl Fn(&FakeXen, &Channels<'_>)) {
    for abi in [Abi::TwoLevel, Abi::Fifo] {
        let xen = FakeXen::new();
        let channels = channels(&xen, abi);
        test(&xen, &channels);
    }
}

/// A counter that handles the events of these ports.
fn count(channels: &Channels<'_>, ports: impl IntoIterator<Item = u32>) -> Arc<Counter> {
    let counter = Arc::new(Counter::default());
    for port in ports {
        channels.register(Port(port), counter.clone()).unwrap();
    }
    counter
}

#[test]
fn an_event_reaches_the_handler_of_its_port_once() {
    in_both(|xen, channels| {
        let counters = [Arc::new(Counter::default()), Arc::new(Counter::default())];
        let first = channels.alloc_unbound(DomId(0), counters[0].clone()).unwrap();
        let second = channels.bind_virq(0, counters[1].clone()).unwrap();
        xen.events.set_pending(first);
        xen.events.set_pending(first);
        assert!(channels.is_pending());
        assert!(!channels.dispatch());
        assert_eq!((counters[0].take(), counters[1].take()), (1, 0));
        assert!(!channels.dispatch());
        assert_eq!(counters[0].take(), 0);
        assert_eq!(xen.shared_info.load_u8(UPCALL_PENDING, SeqCst), 0);
        channels.send(second).unwrap();
        assert_eq!(xen.take_done(), [Done::Opened(1), Done::Opened(2), Done::Sent(2)]);
    });
}

#[test]
fn an_event_from_before_the_handler_is_not_lost() {
    in_both(|xen, channels| {
        xen.events.set_pending(Port(70));
        assert!(!channels.dispatch(), "the port is masked");
        let counter = count(channels, [70]);
        let flag = xen.shared_info.load_u8(UPCALL_PENDING, SeqCst);
        assert_eq!(flag, 1, "a halt would end at once");
        assert!(channels.is_pending());
        channels.dispatch();
        assert_eq!(counter.take(), 1);
    });
}

#[test]
fn a_masked_port_keeps_its_event_until_it_is_unmasked() {
    in_both(|xen, channels| {
        let counter = count(channels, [5]);
        channels.mask(Port(5));
        xen.events.set_pending(Port(5));
        channels.dispatch();
        assert_eq!(counter.take(), 0);
        channels.unmask(Port(5));
        channels.dispatch();
        assert_eq!(counter.take(), 1);
        // Masked after the event.
        xen.events.set_pending(Port(5));
        channels.mask(Port(5));
        channels.dispatch();
        assert_eq!(counter.take(), 0);
        channels.unmask(Port(5));
        channels.dispatch();
        assert_eq!(counter.take(), 1);
    });
}

#[test]
fn a_storm_of_events_is_handled_in_portions_and_starves_no_port() {
    in_both(|xen, channels| {
        let storm = 64..64 + 2 * BUDGET as u32;
        let stormy = count(channels, storm.clone());
        let quiet = count(channels, [4095]);
        xen.events.set_pending(Port(4095));
        let mut calls = 0;
        while quiet.take() == 0 {
            storm.clone().for_each(|port| xen.events.set_pending(Port(port)));
            let more = channels.dispatch();
            assert!(stormy.take() <= BUDGET);
            calls += 1;
            assert!(calls < 5, "the quiet port starves");
            assert!(more || quiet.0.load(SeqCst) == 1);
        }
    });
}

#[test]
fn a_port_with_endless_events_does_not_keep_dispatch_from_returning() {
    struct Again(Arc<FakeEvents>, AtomicUsize);
    impl EventHandler for Again {
        fn raise(&self) {
            self.1.fetch_add(1, SeqCst);
            self.0.set_pending(Port(3));
        }
    }
    in_both(|xen, channels| {
        let again = Arc::new(Again(xen.events.clone(), AtomicUsize::new(0)));
        channels.register(Port(3), again.clone()).unwrap();
        let other = count(channels, [4]);
        xen.events.set_pending(Port(3));
        for round in 1..4 {
            xen.events.set_pending(Port(4));
            assert!(channels.dispatch(), "more is pending");
            assert!((1..=BUDGET).contains(&again.1.swap(0, SeqCst)));
            assert_eq!(other.take(), 1, "round {round}");
        }
    });
}

#[test]
fn a_closed_port_raises_no_handler() {
    in_both(|xen, channels| {
        let counter = Arc::new(Counter::default());
        let port = channels.alloc_unbound(DomId(3), counter.clone()).unwrap();
        xen.events.set_pending(port);
        channels.close(port).unwrap();
        channels.dispatch();
        assert_eq!(counter.take(), 0);
        assert_eq!(Arc::strong_count(&counter), 1, "the handler was dropped");
        assert_eq!(xen.take_done(), [Done::Opened(1), Done::Closed(1)]);
        // Xen allocates the number again. The next owner does not get the event.
        assert_eq!(channels.alloc_unbound(DomId(3), counter.clone()), Ok(port));
        channels.dispatch();
        assert_eq!(counter.take(), 0);
    });
}

#[test]
fn an_event_without_a_handler_masks_its_port() {
    in_both(|xen, channels| {
        channels.unmask(Port(9));
        xen.events.set_pending(Port(9));
        channels.dispatch();
        xen.events.set_pending(Port(9));
        assert!(!channels.is_pending());
    });
}

#[test]
fn ports_beyond_4096_carry_events_in_the_fifo_abi_and_are_an_error_in_the_other() {
    in_both(|xen, channels| {
        xen.lowest_port.set(4096);
        let counter = Arc::new(Counter::default());
        let opened = channels.alloc_unbound(DomId(0), counter.clone());
        if channels.abi() == Abi::TwoLevel {
            assert_eq!(opened, Err(Errno::EINVAL));
            assert_eq!(xen.take_done(), [Done::Opened(4096), Done::Closed(4096)]);
        } else {
            assert_eq!(opened, Ok(Port(4096)));
            xen.events.set_pending(Port(4096));
            assert!(channels.is_pending());
            channels.dispatch();
            assert_eq!(counter.take(), 1);
        }
        assert_eq!(channels.register(Port(1 << 17), counter), Err(Errno::EINVAL));
        assert_eq!(channels.close(Port(1 << 17)), Err(Errno::EINVAL));
        // No port has these numbers.
        channels.mask(Port(1 << 17));
        channels.unmask(Port(u32::MAX));
    });
}

#[test]
fn no_event_is_lost_while_another_cpu_sends() {
    in_both(|xen, channels| {
        let ports = [1u32, 63, 64, 4095];
        let counters = ports.map(|port| count(channels, [port]));
        let (events, seen) = (xen.events.clone(), counters.clone());
        // Each event is sent after the former one was handled, so a lost one stops the test.
        let sender = std::thread::spawn(move || {
            for round in 1..=500 {
                for (port, counter) in ports.iter().zip(&seen) {
                    events.set_pending(Port(*port));
                    let start = std::time::Instant::now();
                    while counter.0.load(SeqCst) < round {
                        let waited = start.elapsed().as_secs();
                        assert!(waited < 60, "event {round} of port {port} is lost");
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
    });
}

#[derive(Clone, Debug)]
enum Step {
    Event(u32),
    Mask(u32),
    Unmask(u32),
    Prefer(u32, u8),
    Dispatch(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = prop_oneof![1u32..5, 60u32..70, 4090u32..4096];
    let step =
        (0..8, port, 1usize..20, 0u8..16).prop_map(|(kind, port, budget, priority)| match kind {
            0..=2 => Step::Event(port),
            3 => Step::Mask(port),
            4 => Step::Unmask(port),
            5 => Step::Prefer(port, priority),
            _ => Step::Dispatch(budget),
        });
    proptest::collection::vec(step, 0..200)
}

/// Dispatches once. Each raised port had an event, and no event is left unless `dispatch` says so.
fn check(
    channels: &Channels<'_>,
    budget: usize,
    pending: &mut BTreeSet<u32>,
    open: &BTreeSet<u32>,
) -> bool {
    let mut raised = Vec::new();
    let raise = |port: Port| raised.push(port.0);
    let more = match channels.abi() {
        Abi::TwoLevel => channels.two_level.dispatch(budget, raise),
        Abi::Fifo => channels.fifo.dispatch(budget, raise),
    };
    assert!(raised.len() <= budget);
    for port in raised {
        assert!(open.contains(&port) && pending.remove(&port), "port {port} had no event");
    }
    assert!(more || pending.is_disjoint(open), "{pending:?} of {open:?} are lost");
    more
}

proptest! {
    #[test]
    fn every_event_of_an_unmasked_port_is_raised_once_and_none_of_a_masked_one(steps in steps()) {
        in_both(|xen, channels| {
            // So that each port has a word.
            count(channels, [4095]);
            channels.mask(Port(4095));
            let (mut pending, mut open) = (BTreeSet::new(), BTreeSet::new());
            for step in &steps {
                match *step {
                    Step::Event(port) => {
                        xen.events.set_pending(Port(port));
                        pending.insert(port);
                    }
                    Step::Mask(port) => {
                        channels.mask(Port(port));
                        open.remove(&port);
                    }
                    Step::Unmask(port) => {
                        channels.unmask(Port(port));
                        open.insert(port);
                    }
                    Step::Prefer(port, priority) => {
                        channels.set_priority(Port(port), Priority(priority)).unwrap();
                    }
                    Step::Dispatch(budget) => {
                        check(channels, budget, &mut pending, &open);
                    }
                }
            }
            let mut calls = 0;
            while check(channels, 7, &mut pending, &open) {
                calls += 1;
                assert!(calls < 20, "dispatch never says that it is done");
            }
        });
    }
}
