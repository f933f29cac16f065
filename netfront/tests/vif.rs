//! The interface with a backend in the same process.

mod testing;

use embassy_time::Timer;
use netfront::{Link, Nic};
use smoltcp::phy::Device;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Wake, Waker};
use testing::backend::{ALL, FakeBackend, Features, NONE, Sent};
use testing::{BACK, FRONT, Fixture, config, frame, make_device, with_interface};
use xen::Mapping;
use xen::abi::netif::*;

/// Runs a test with a connected backend of each kind.
fn with_backends<F: Future<Output = ()>>(test: impl Fn(Rc<Fixture>, FakeBackend, Features) -> F) {
    for features in [ALL, NONE, Features { segmentation: false, ..ALL }] {
        println!("with {features:?}");
        with_interface(config(), |fixture| {
            let test = &test;
            async move {
                let backend = fixture.backend(features).await;
                test(fixture, backend, features).await;
            }
        });
    }
}

#[test]
fn frames_pass_whole_and_in_order_while_the_rings_wrap() {
    with_backends(|fixture, mut backend, _| async move {
        assert_eq!(fixture.link(), Link::Up(1));
        for number in 0..600 {
            let sent = frame(14 + number * 37 % 1500, number);
            fixture.send(&sent, None).await;
            // The backend takes several at once.
            if number % 7 == 6 {
                let taken = backend.take_sent();
                assert_eq!(taken.len(), 7);
                assert_eq!(taken[6], Sent { bytes: sent, flags: 0, gso: None });
            }
            let came = frame(60 + number * 53 % 1400, number + 1);
            backend.deliver(&came, 4096, 0, false);
            assert_eq!(fixture.receive().await, came, "frame {number}");
        }
        let counted = fixture.handle.statistics();
        assert_eq!((counted.received, counted.transmitted), (600, 600));
        assert_eq!((counted.receive_dropped, counted.transmit_dropped), (0, 0));
    });
}

#[test]
fn frames_of_several_parts_are_assembled() {
    with_interface(config(), |fixture| async move {
        let mut backend = fixture.backend(ALL).await;
        for (len, part, gso) in [(9014, 4096, false), (65535, 4096, true), (3000, 100, false)] {
            let came = frame(len, part);
            backend.deliver(&came, part, NETRXF_DATA_VALIDATED, gso);
            assert_eq!(fixture.receive().await, came);
        }
        assert_eq!(fixture.handle.statistics().receive_dropped, 0);
    });
}

#[test]
fn a_frame_beyond_the_mtu_is_sent_only_to_be_segmented() {
    with_interface(config(), |fixture| async move {
        let mut backend = fixture.backend(ALL).await;
        let large = frame(65535, 1);
        fixture.send(&large, None).await;
        assert_eq!(backend.take_sent(), []);
        assert_eq!(fixture.handle.statistics().transmit_dropped, 1);
        fixture.send(&large, Some(1460)).await;
        let gso = Some(Gso { size: 1460, kind: XEN_NETIF_GSO_TYPE_TCPV4 });
        let taken = backend.take_sent();
        assert_eq!((taken.len(), taken[0].gso, taken[0].bytes == large), (1, gso, true));
        // The extra info's slot is freed, too.
        for _ in 0..100 {
            fixture.send(&large, Some(1460)).await;
            assert_eq!(backend.take_sent().len(), 1);
        }
    });
}

#[test]
fn a_sender_waits_for_room_and_is_woken() {
    with_backends(|fixture, mut backend, _| async move {
        let sending = async {
            for number in 0..200 {
                fixture.send(&frame(1000, number), None).await;
            }
        };
        let taking = async {
            let mut taken = 0;
            while taken < 200 {
                Timer::after_millis(2).await;
                taken += backend.take_sent().len();
                backend.notify();
            }
        };
        futures_util::future::join(sending, taking).await;
        assert_eq!(fixture.handle.statistics().transmit_dropped, 0);
    });
}

#[test]
fn a_stack_that_waits_for_room_is_woken_when_a_long_frame_fits() {
    with_interface(config(), |fixture| async move {
        let mut backend = fixture.backend(ALL).await;
        // A long frame takes the last 16 of 64 pages.
        for number in 0..48 {
            fixture.send(&frame(100, number), None).await;
        }
        fixture.send(&frame(65535, 0), Some(1460)).await;
        assert_eq!(fill(&fixture), 0);
        // A frame cannot be received without room for a reply, so it must not wake the stack.
        backend.deliver(&frame(80, 8), 4096, 0, false);
        let woken = Woken::default();
        let waker = woken.waker();
        fixture.handle.register(&waker);
        assert_eq!(woken.count(), 0, "there is nothing to do");
        let mut events = 0;
        for taken in 1..=48 {
            let before = backend.tx_done;
            assert_eq!(backend.take_some(1).len(), 1);
            events += usize::from(backend.notify_of_answers(before));
            // The stack looks only when it is woken.
            if woken.count() > 0 {
                if fixture.device().transmit(smoltcp::time::Instant::ZERO).is_some() {
                    assert_eq!(taken, 16, "a frame of 64 KiB needs so many pages");
                    assert_eq!(fixture.receive().await, frame(80, 8));
                    return;
                }
                woken.reset();
                fixture.handle.register(&waker);
            }
        }
        panic!("the stack was never woken, after {events} events");
    });
}

#[test]
fn room_that_was_freed_before_the_wait_is_noticed() {
    with_interface(config(), |fixture| async move {
        let mut backend = fixture.backend(ALL).await;
        fill(&fixture);
        backend.take_sent();
        let woken = Woken::default();
        fixture.handle.register(&woken.waker());
        assert_eq!(woken.count(), 1);
        // A stack that did not wait for room is not woken.
        woken.reset();
        fixture.handle.register(&woken.waker());
        assert_eq!(woken.count(), 0);
    });
}

/// Sends frames until the ring is full; returns their number.
fn fill(fixture: &Fixture) -> usize {
    let mut device = fixture.device();
    for sent in 0.. {
        let Some(token) = device.transmit(smoltcp::time::Instant::ZERO) else {
            fixture.handle.flush();
            return sent;
        };
        smoltcp::phy::TxToken::consume(token, 100, |to| to.copy_from_slice(&frame(100, sent)));
    }
    unreachable!("the ring has an end")
}

/// Counts wake-ups.
#[derive(Default)]
struct Woken(Arc<AtomicUsize>);

impl Woken {
    fn waker(&self) -> Waker {
        struct Wakes(Arc<AtomicUsize>);
        impl Wake for Wakes {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Relaxed);
            }
        }
        Arc::new(Wakes(self.0.clone())).into()
    }

    fn count(&self) -> usize {
        self.0.load(Relaxed)
    }

    fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

#[test]
fn a_backend_that_is_awake_is_not_notified() {
    with_backends(|fixture, mut backend, _| async move {
        fixture.send(&frame(100, 0), None).await;
        backend.take_sent();
        let before = fixture.handle.statistics().notifications_sent;
        for number in 0..50 {
            fixture.send(&frame(100, number), None).await;
            backend.take_sent();
        }
        assert_eq!(fixture.handle.statistics().notifications_sent, before);
        backend.arm();
        fixture.send(&frame(100, 0), None).await;
        assert_eq!(fixture.handle.statistics().notifications_sent, before + 1);
    });
}

#[test]
fn capabilities_follow_from_the_negotiated_features() {
    with_backends(|fixture, _backend, features| async move {
        let capabilities = fixture.device().capabilities();
        assert_eq!(capabilities.max_transmission_unit, 1514);
        assert_eq!(capabilities.segmentation.tcpv4.is_some(), features.segmentation);
        assert!(!capabilities.checksum.tcp.tx());
    });
}

#[test]
fn the_toolstack_sets_the_mtu() {
    for (mtu, features, wanted) in
        [("9000", ALL, 9014), ("9000", NONE, 4096), ("many", ALL, 1514), ("100000", ALL, 1514)]
    {
        with_interface(config(), |fixture| async move {
            fixture.store.write(&format!("{FRONT}/mtu"), mtu);
            let _backend = fixture.backend(features).await;
            let capabilities = fixture.device().capabilities();
            assert_eq!(capabilities.max_transmission_unit, wanted, "mtu {mtu}");
        });
    }
}

#[test]
fn a_changed_mtu_makes_a_new_link() {
    with_interface(config(), |fixture| async move {
        let mut backend = fixture.backend(Features { segmentation: false, ..ALL }).await;
        fixture.store.write(&format!("{FRONT}/mtu"), "9000");
        fixture.until(|| fixture.link() == Link::Up(2)).await;
        assert_eq!(fixture.device().capabilities().max_transmission_unit, 9014);
        for number in 0..100 {
            let large = frame(9014, number);
            fixture.send(&large, None).await;
            assert_eq!(backend.take_sent()[0].bytes, large);
        }
        fixture.store.write(&format!("{FRONT}/mtu"), "1400");
        fixture.until(|| fixture.link() == Link::Up(3)).await;
        fixture.send(&frame(1415, 0), None).await;
        fixture.send(&frame(1414, 1), None).await;
        let taken = backend.take_sent();
        assert_eq!((taken.len(), taken[0].bytes.len()), (1, 1414));
        assert_eq!(fixture.handle.statistics().transmit_dropped, 1);
    });
}

#[test]
fn frames_made_for_a_former_backends_features_are_dropped() {
    with_interface(config(), |fixture| async move {
        let backend = fixture.backend(ALL).await;
        backend.close().await;
        remake_device(&fixture);
        let mut backend = fixture.backend(NONE).await;
        fixture.send(&frame(65535, 1), Some(1460)).await;
        fixture.send(&frame(1514, 2), Some(536)).await;
        fixture.send(&frame(70_000, 3), None).await;
        assert_eq!(fixture.handle.statistics().transmit_dropped, 3);
        fixture.send(&frame(1514, 4), None).await;
        assert_eq!(backend.take_sent(), [Sent { bytes: frame(1514, 4), flags: 0, gso: None }]);
    });
}

/// Removes the device and makes it again, as the toolstack does.
fn remake_device(fixture: &Fixture) {
    fixture.store.rm(FRONT);
    fixture.store.rm(BACK);
    make_device(&fixture.store);
}

#[test]
fn invalid_nodes_are_refused_and_a_correct_backend_is_served() {
    let too_old = ("feature-rx-copy", BACK, "0");
    for (name, folder, value) in [
        too_old,
        ("feature-rx-copy", BACK, "yes"),
        ("feature-sg", BACK, "-1"),
        ("feature-gso-tcpv4", BACK, "18446744073709551617"),
        ("feature-split-event-channels", BACK, ""),
        ("mac", FRONT, "ff:ff:ff:ff:ff:ff"),
        ("mac", FRONT, "\u{fffd}"),
    ] {
        println!("{name} = {value}");
        with_interface(config(), |fixture| async move {
            fixture.store.write(&format!("{BACK}/feature-rx-copy"), "1");
            fixture.store.write(&format!("{BACK}/feature-sg"), "1");
            fixture.store.write(&format!("{folder}/{name}"), value);
            fixture.store.write(&format!("{BACK}/state"), "2");
            fixture
                .until(|| fixture.store.read(&format!("{FRONT}/state")) == Some("6".into()))
                .await;
            assert!(fixture.ended.borrow().is_none(), "the device ended");
            assert_eq!((fixture.link(), fixture.handle.statistics().pages), (Link::Down, 0));
            remake_device(&fixture);
            let mut backend = fixture.backend(ALL).await;
            backend.deliver(&frame(300, 3), 4096, 0, false);
            assert_eq!(fixture.receive().await, frame(300, 3));
        });
    }
}

#[test]
fn a_carrier_that_returns_makes_a_new_link() {
    with_interface(config(), |fixture| async move {
        let _backend = fixture.backend(ALL).await;
        fixture.store.write(&format!("{BACK}/carrier"), "0");
        fixture.until(|| fixture.link() == Link::Down).await;
        fixture.store.write(&format!("{BACK}/carrier"), "1");
        fixture.until(|| fixture.link() == Link::Up(2)).await;
    });
}

#[test]
fn the_interface_reconnects_after_its_backend_closed() {
    with_interface(config(), |fixture| async move {
        let backend = fixture.backend(ALL).await;
        backend.close().await;
        fixture.until(|| fixture.link() == Link::Down).await;
        remake_device(&fixture);
        let mut backend = fixture.backend(NONE).await;
        backend.deliver(&frame(99, 9), 4096, 0, false);
        assert_eq!(fixture.receive().await, frame(99, 9));
    });
}

#[test]
fn pages_of_a_removed_device_are_freed_once_they_are_unmapped() {
    with_interface(config(), |fixture| async move {
        let backend = fixture.backend(ALL).await;
        fixture.store.rm(FRONT);
        fixture.store.rm(BACK);
        fixture.until(|| fixture.handle.statistics().quarantined_pages > 0).await;
        assert_eq!(fixture.link(), Link::Down);
        drop(backend);
        fixture.until(|| fixture.handle.statistics().pages == 0).await;
    });
}

#[test]
fn a_restored_domain_reconnects() {
    with_interface(config(), |fixture| async move {
        let backend = fixture.backend(ALL).await;
        fixture.guest_store.quiesce().await;
        drop(backend);
        remake_device(&fixture);
        fixture.handle.resume().await;
        assert_eq!(fixture.link(), Link::Down);
        fixture.guest_store.release();
        let mut backend = fixture.backend(ALL).await;
        backend.deliver(&frame(200, 1), 4096, 0, false);
        assert_eq!(fixture.receive().await, frame(200, 1));
    });
}

/// A violation of the protocol.
type Violation = fn(&mut FakeBackend);

const VIOLATIONS: [(&str, Violation); 12] = [
    ("more answers than requests", |backend| {
        backend.rx_done = backend.rx_done.wrapping_add(1000);
        backend.push_rx();
    }),
    ("withdrawn answers", |backend| {
        backend.rx_done = backend.rx_done.wrapping_sub(1);
        backend.push_rx();
    }),
    ("a wrong id", |backend| {
        let id = backend.next_offer().id ^ 1;
        backend.put_rx(RxResponse { id, offset: 0, flags: 0, status: 100 }.encode());
        backend.push_rx();
    }),
    ("an id out of range", |backend| {
        backend.put_rx(RxResponse { id: 9999, offset: 0, flags: 0, status: 100 }.encode());
        backend.push_rx();
    }),
    ("a part beyond its page", |backend| {
        let id = backend.next_offer().id;
        backend.put_rx(RxResponse { id, offset: 4000, flags: 0, status: 97 }.encode());
        backend.push_rx();
    }),
    ("the largest part", |backend| {
        let id = backend.next_offer().id;
        backend.put_rx(RxResponse { id, offset: 0xffff, flags: 0, status: i16::MAX }.encode());
        backend.push_rx();
    }),
    ("an endless frame", |backend| {
        for _ in 0..64 {
            let id = backend.next_offer().id;
            let flags = NETRXF_MORE_DATA;
            backend.put_rx(RxResponse { id, offset: 0, flags, status: 1 }.encode());
        }
        backend.push_rx();
    }),
    ("endless extra infos", |backend| {
        let id = backend.next_offer().id;
        let flags = NETRXF_EXTRA_INFO;
        backend.put_rx(RxResponse { id, offset: 0, flags, status: 1 }.encode());
        (1..64).for_each(|_| backend.put_rx([XEN_NETIF_EXTRA_TYPE_GSO, 1, 0, 0, 0, 0, 0, 0]));
        backend.push_rx();
    }),
    ("an answer to a frame that was not sent", |backend| {
        backend.take_sent();
        backend.tx_done = backend.tx_done.wrapping_add(7);
        backend.tx.shared().store_u32(
            RSP_PROD,
            backend.tx_done,
            std::sync::atomic::Ordering::Release,
        );
    }),
    ("an answer to another frame", |backend| {
        backend.answer_tx(TxResponse { id: 5000, status: NETIF_RSP_OKAY });
    }),
    ("an answer to a missing extra info", |backend| {
        backend.answer_tx(TxResponse { id: 0, status: NETIF_RSP_NULL });
    }),
    ("rings of arbitrary bytes", |backend| {
        for page in [backend.tx.shared(), backend.rx.shared()] {
            page.write(0, &[0xa7; 4096]);
        }
    }),
];

#[test]
fn a_hostile_backend_ends_its_session_only() {
    for (name, violate) in VIOLATIONS {
        println!("{name}");
        with_interface(config(), |fixture| async move {
            let mut backend = fixture.backend(ALL).await;
            fixture.send(&frame(500, 1), None).await;
            violate(&mut backend);
            backend.notify();
            // The stack continues as before.
            fixture
                .until(|| {
                    let mut device = fixture.device();
                    if let Some((token, _)) = device.receive(smoltcp::time::Instant::ZERO) {
                        smoltcp::phy::RxToken::consume(token, |_| ());
                    }
                    if let Some(token) = device.transmit(smoltcp::time::Instant::ZERO) {
                        smoltcp::phy::TxToken::consume(token, 60, |frame| frame.fill(1));
                    }
                    fixture.handle.register(futures_util::task::noop_waker_ref());
                    fixture.handle.flush();
                    fixture.handle.link() == Link::Down
                })
                .await;
            assert!(fixture.ended.borrow().is_none(), "{name}: the device ended");
            // A correct backend is served again.
            drop(backend);
            remake_device(&fixture);
            let mut backend = fixture.backend(ALL).await;
            backend.deliver(&frame(300, 3), 4096, 0, false);
            assert_eq!(fixture.receive().await, frame(300, 3), "{name}");
            fixture.send(&frame(301, 4), None).await;
            assert_eq!(backend.take_sent().len(), 1, "{name}");
        });
    }
}

#[test]
fn errors_and_invalid_frames_are_dropped_and_counted() {
    with_interface(config(), |fixture| async move {
        let mut backend = fixture.backend(ALL).await;
        let id = backend.next_offer().id;
        backend.put_rx(RxResponse { id, offset: 0, flags: 0, status: NETIF_RSP_DROPPED }.encode());
        let id = backend.next_offer().id;
        backend.put_rx(RxResponse { id, offset: 0, flags: 0, status: 0 }.encode());
        // TCP over IPv4 with a wrong checksum.
        let mut wrong = vec![0; 54];
        wrong[12..14].copy_from_slice(&[8, 0]);
        wrong[14..24].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6]);
        wrong[46] = 0x50;
        backend.deliver(&wrong, 4096, 0, false);
        backend.deliver(&frame(70, 7), 4096, 0, false);
        assert_eq!(fixture.receive().await, frame(70, 7));
        assert_eq!(fixture.handle.statistics().receive_dropped, 3);
        backend.deliver(&wrong, 4096, NETRXF_CSUM_BLANK, false);
        assert_eq!(fixture.receive().await, wrong);
    });
}
