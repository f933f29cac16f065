use super::*;

/// Restores the domain, with the shared info page of a new one.
fn restore(xen: &FakeXen, channels: &Channels<'_>) {
    xen.restore();
    xen.shared_info.zero();
    channels.resume().unwrap();
}

fn open(channels: &Channels<'_>) -> (Port, Arc<Counter>) {
    let counter = Arc::new(Counter::default());
    (channels.alloc_unbound(DomId(0), counter.clone()).unwrap(), counter)
}

#[test]
fn a_restored_domain_has_the_same_abi_at_the_same_pages_and_no_handlers() {
    in_both(|xen, channels| {
        let (port, counter) = open(channels);
        count(channels, [2000]);
        // In a queue of the former domain.
        xen.events.set_pending(port);
        xen.take_done();
        let abi = channels.abi();
        restore(xen, channels);
        assert_eq!(channels.abi(), abi);
        assert_eq!(Arc::strong_count(&counter), 1, "the handler was dropped");
        let given = [Done::ControlGiven(100), Done::ArrayGiven(101), Done::ArrayGiven(102)];
        let expected = if abi == Abi::Fifo { given.to_vec() } else { Vec::new() };
        assert_eq!(xen.take_done(), expected);
        assert!(!channels.is_pending() && !channels.dispatch());
        // The toolstack's port has a new number.
        xen.make_port(Port(1));
        xen.events.set_pending(Port(1));
        assert!(!channels.dispatch(), "all ports are masked");
        let counter = count(channels, [1]);
        channels.dispatch();
        assert_eq!(counter.take(), 1);
    });
}

#[test]
fn a_former_owner_cannot_close_anothers_port() {
    in_both(|xen, channels| {
        xen.make_port(Port(1));
        count(channels, [1]);
        let former = [open(channels).0, open(channels).0];
        assert_eq!(former, [Port(2), Port(3)]);
        restore(xen, channels);
        xen.make_port(Port(1));
        count(channels, [1]);
        // No new port has the number of a port that its owner may still close.
        let (new, counter) = open(channels);
        assert_eq!(new, Port(4));
        channels.close(Port(2)).unwrap();
        channels.close(Port(3)).unwrap();
        assert_eq!(xen.open_ports(), [1, 4]);
        xen.events.set_pending(new);
        channels.dispatch();
        assert_eq!(counter.take(), 1);
        // The numbers are free again.
        assert_eq!(open(channels).0, Port(2));
        assert_eq!(channels.close(Port(3)), Err(Errno::EINVAL));
    });
}

#[test]
fn a_former_number_that_was_not_allocated_again_is_freed() {
    in_both(|xen, channels| {
        let (port, _) = open(channels);
        restore(xen, channels);
        xen.take_done();
        channels.close(port).unwrap();
        assert_eq!(xen.take_done(), []);
        assert_eq!(open(channels).0, port);
    });
}

#[test]
fn a_bound_port_does_not_get_the_number_of_a_former_port() {
    in_both(|xen, channels| {
        let former = [open(channels).0, open(channels).0];
        restore(xen, channels);
        let counter = Arc::new(Counter::default());
        let bound = channels.bind_interdomain(DomId(0), Port(77), counter.clone()).unwrap();
        assert_eq!(bound, Port(3));
        let timer = channels.bind_virq(0, counter.clone()).unwrap();
        assert_eq!(timer, Port(4));
        former.iter().for_each(|port| channels.close(*port).unwrap());
        assert_eq!(xen.open_ports(), [3, 4]);
    });
}

#[test]
fn the_toolstacks_new_port_may_have_a_former_owners_number() {
    in_both(|xen, channels| {
        let (former, _) = open(channels);
        restore(xen, channels);
        xen.make_port(former);
        let counter = count(channels, [former.0]);
        channels.close(former).unwrap();
        assert_eq!(xen.open_ports(), [former.0], "the port was not closed");
        xen.events.set_pending(former);
        channels.dispatch();
        assert_eq!(counter.take(), 1);
    });
}

#[test]
fn a_domain_can_be_restored_repeatedly() {
    in_both(|xen, channels| {
        let mut kept = vec![open(channels).0];
        for _ in 0..5 {
            restore(xen, channels);
            let (port, counter) = open(channels);
            assert!(!kept.contains(&port), "{port:?} is among {kept:?}");
            xen.events.set_pending(port);
            channels.dispatch();
            assert_eq!(counter.take(), 1);
            kept.push(port);
        }
        kept.iter().for_each(|port| channels.close(*port).unwrap());
        assert_eq!(xen.open_ports(), []);
        assert_eq!(open(channels).0, Port(1));
    });
}

#[test]
fn a_restored_domain_whose_xen_lacks_the_fifo_abi_uses_2_level() {
    let xen = FakeXen::new();
    let channels = EventChannels::new(&xen, xen.shared_info, &xen, None).unwrap();
    assert_eq!(channels.abi(), Abi::Fifo);
    xen.has_fifo.set(false);
    restore(&xen, &channels);
    assert_eq!(channels.abi(), Abi::TwoLevel);
    let (port, counter) = open(&channels);
    xen.events.set_pending(port);
    channels.dispatch();
    assert_eq!(counter.take(), 1);
}
