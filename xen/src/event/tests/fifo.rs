use super::*;
use crate::event::fifo::{LINKED, MASKED, PER_PAGE};

/// The frames that a fake gives: first the control block's, then the event array's.
const CONTROL: u64 = 100;
const ARRAY: u64 = 101;

#[test]
fn fifo_is_chosen_if_xen_offers_it() {
    let xen = FakeXen::new();
    let channels = EventChannels::new(&xen, xen.shared_info, &xen, None).unwrap();
    assert_eq!(channels.abi(), Abi::Fifo);
    assert_eq!(xen.take_done(), [Done::ControlGiven(CONTROL), Done::ArrayGiven(ARRAY)]);
    let xen = FakeXen::new();
    let channels = EventChannels::new(&xen, xen.shared_info, &xen, Some(Abi::TwoLevel)).unwrap();
    assert_eq!(channels.abi(), Abi::TwoLevel);
    assert_eq!(xen.take_done(), []);
}

#[test]
fn without_fifo_in_xen_the_2_level_abi_is_used_unless_fifo_is_wanted() {
    let xen = FakeXen::new();
    xen.has_fifo.set(false);
    let channels = EventChannels::new(&xen, xen.shared_info, &xen, None).unwrap();
    assert_eq!(channels.abi(), Abi::TwoLevel);
    let counter = count(&channels, [4000]);
    xen.events.set_pending(Port(4000));
    channels.dispatch();
    assert_eq!(counter.take(), 1);
    channels.set_priority(Port(4000), Priority::HIGHEST).unwrap();
    assert_eq!(xen.take_done(), []);
    let forced = EventChannels::new(&xen, xen.shared_info, &xen, Some(Abi::Fifo)).map(drop);
    assert_eq!(forced, Err(Errno::ENOSYS));
}

#[test]
fn the_array_grows_with_the_ports_and_its_new_words_are_masked() {
    let xen = FakeXen::new();
    // The former content of a page is ignored.
    let dirty = crate::testing::page();
    dirty.write(0, &[0xff; 4096]);
    let xen = FakeXen::over(xen.shared_info, vec![crate::testing::page(), dirty]);
    let channels = channels(&xen, Abi::Fifo);
    assert!((0..PER_PAGE).all(|port| dirty.load_u32(4 * port, SeqCst) == MASKED));
    count(&channels, [2 * PER_PAGE as u32]);
    assert_eq!(xen.take_done(), [Done::ArrayGiven(ARRAY + 1), Done::ArrayGiven(ARRAY + 2)]);
}

#[test]
fn a_page_is_offered_again_when_xen_was_out_of_memory() {
    let xen = FakeXen::new();
    let channels = channels(&xen, Abi::Fifo);
    xen.lowest_port.set(PER_PAGE as u32);
    xen.out_of_memory.set(true);
    let handler = Arc::new(Counter::default());
    for _ in 0..3 {
        assert_eq!(channels.alloc_unbound(DomId(0), handler.clone()), Err(Errno::ENOMEM));
    }
    assert!(xen.open_ports().is_empty());
    xen.out_of_memory.set(false);
    xen.take_done();
    let port = channels.alloc_unbound(DomId(0), handler).unwrap();
    assert_eq!(xen.take_done(), [Done::Opened(port.0), Done::ArrayGiven(ARRAY + 1)]);
}

#[test]
fn an_event_from_before_its_word_is_not_lost() {
    let xen = FakeXen::new();
    let channels = channels(&xen, Abi::Fifo);
    xen.events.set_pending(Port(3000));
    let counter = count(&channels, [3000]);
    channels.dispatch();
    assert_eq!(counter.take(), 1);
}

#[test]
fn xen_is_called_to_unmask_only_a_port_with_an_event() {
    let xen = FakeXen::new();
    let channels = channels(&xen, Abi::Fifo);
    count(&channels, [5]);
    channels.mask(Port(5));
    channels.unmask(Port(5));
    channels.unmask(Port(5));
    assert_eq!(xen.take_done(), []);
    channels.mask(Port(5));
    xen.events.set_pending(Port(5));
    channels.unmask(Port(5));
    assert_eq!(xen.take_done(), [Done::Unmasked(5)]);
}

#[test]
fn ports_are_handled_by_priority_and_then_in_order() {
    struct Order(u32, Arc<std::sync::Mutex<Vec<u32>>>);
    impl EventHandler for Order {
        fn raise(&self) {
            self.1.lock().unwrap().push(self.0);
        }
    }
    let xen = FakeXen::new();
    let channels = channels(&xen, Abi::Fifo);
    let order = Arc::new(std::sync::Mutex::default());
    for port in 1..6 {
        channels.register(Port(port), Arc::new(Order(port, Arc::clone(&order)))).unwrap();
    }
    channels.set_priority(Port(2), Priority::HIGHEST).unwrap();
    channels.set_priority(Port(4), Priority::LOWEST).unwrap();
    [4, 3, 5, 2, 1].iter().for_each(|port| xen.events.set_pending(Port(*port)));
    channels.dispatch();
    assert_eq!(*order.lock().unwrap(), [2, 3, 5, 1, 4]);
}

#[test]
fn a_storm_of_the_highest_priority_does_not_starve_the_lowest() {
    struct Again(Arc<FakeEvents>, u32);
    impl EventHandler for Again {
        fn raise(&self) {
            self.0.set_pending(Port(self.1));
        }
    }
    let xen = FakeXen::new();
    let channels = channels(&xen, Abi::Fifo);
    for (port, priority) in (1..).zip(0..15) {
        channels.register(Port(port), Arc::new(Again(xen.events.clone(), port))).unwrap();
        channels.set_priority(Port(port), Priority(priority)).unwrap();
        xen.events.set_pending(Port(port));
    }
    let quiet = count(&channels, [20]);
    channels.set_priority(Port(20), Priority::LOWEST).unwrap();
    xen.events.set_pending(Port(20));
    assert!(channels.dispatch());
    assert_eq!(quiet.take(), 1);
}

#[test]
fn the_number_of_a_port_closed_in_its_queue_is_not_allocated_until_it_leaves_the_queue() {
    let xen = FakeXen::new();
    let channels = channels(&xen, Abi::Fifo);
    let handler = Arc::new(Counter::default());
    let port = channels.alloc_unbound(DomId(0), handler.clone()).unwrap();
    let behind = channels.alloc_unbound(DomId(0), handler.clone()).unwrap();
    xen.events.set_pending(port);
    xen.events.set_pending(behind);
    channels.close(port).unwrap();
    let next = channels.alloc_unbound(DomId(0), handler.clone()).unwrap();
    assert_ne!(next, port);
    channels.dispatch();
    assert_eq!(handler.take(), 1, "only the port behind is handled");
    assert_eq!(channels.alloc_unbound(DomId(0), handler.clone()), Ok(port));
}

#[test]
fn an_invalid_head_ends_its_queue() {
    let xen = FakeXen::new();
    let (control, array) = (crate::testing::page(), crate::testing::page());
    let xen = FakeXen::over(xen.shared_info, vec![control, array]);
    let channels = channels(&xen, Abi::Fifo);
    let counter = count(&channels, [1]);
    for head in [0, PER_PAGE as u32, u32::MAX] {
        control.store_u32(8 + 4 * 7, head, SeqCst);
        control.store_u32(0, 1 << 7, SeqCst);
        assert!(!channels.dispatch());
    }
    xen.events.set_pending(Port(1));
    channels.dispatch();
    assert_eq!((counter.take(), array.load_u32(4, SeqCst) & LINKED), (1, 0));
}
