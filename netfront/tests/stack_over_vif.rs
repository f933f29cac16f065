//! The stack over the interface, with a backend and another stack behind it.

mod testing;

use edge_nal::Close;
use edge_nal::TcpShutdown;
use embedded_io_async::{Read, Write};
use futures_util::future::join;
use futures_util::task::LocalSpawnExt;
use netfront::stack::{self, Ipv4, Ipv4Cidr, Stack, Stream};
use netfront::{Nic, vif};
use smoltcp::phy::{
    Device, FaultInjector, PcapMode, PcapSink, PcapWriter, Tracer, TracerDirection,
};
use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use testing::backend::{ALL, Features, NONE};
use testing::network::FakeNetwork;
use testing::{FRONT, Fixture, config, with_interface};

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Starts a stack.
fn start(
    fixture: &Fixture,
    device: impl Device + 'static,
    nic: impl Nic + 'static,
    address: Ipv4Addr,
) -> Stack {
    let ipv4 = Ipv4::Static { address: Ipv4Cidr::new(address, 24), gateway: None };
    let config = stack::Config {
        ipv4,
        receive_buffer: 256 << 10,
        transmit_buffer: 256 << 10,
        seed: u64::from(u32::from(address)),
        ..stack::Config::default()
    };
    let (stack, runner) = Stack::new(device, nic, config);
    let running = async move {
        runner.run().await;
    };
    fixture.spawner.spawn_local(running).unwrap();
    stack
}

fn bytes(len: usize) -> Vec<u8> {
    let mut word = 1u32;
    let mut next = || {
        word = word.wrapping_mul(1664525).wrapping_add(1013904223);
        (word >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Sends all bytes and the end of the stream.
async fn send(stream: &mut Stream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.close(Close::Write).await.unwrap();
}

/// Receives everything up to the end of the stream.
async fn receive(stream: &mut Stream) -> Vec<u8> {
    let (mut all, mut some) = (Vec::new(), vec![0; 30_000]);
    loop {
        match stream.read(&mut some).await.unwrap() {
            0 => return all,
            count => all.extend(&some[..count]),
        }
    }
}

/// Moves `len` bytes in one direction, then in the other.
async fn exchange(near: &Stack, far: &Stack, len: usize) {
    let listener = far.bind(SocketAddr::from((FAR, 80))).await.unwrap();
    let connecting = near.connect(SocketAddr::from((FAR, 80)));
    let (client, server) = join(connecting, listener.accept()).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    let bytes = bytes(len);
    let ((), came) = join(send(&mut client, &bytes), receive(&mut server)).await;
    assert!(came == bytes, "other bytes arrived: {} of {len}", came.len());
    let ((), came) = join(send(&mut server, &bytes), receive(&mut client)).await;
    assert!(came == bytes, "other bytes came back: {} of {len}", came.len());
}

#[test]
fn streams_are_the_same_whatever_is_offloaded_to_the_backend() {
    const LEN: usize = 1_500_000;
    for (features, mtu) in [
        (ALL, 1500),
        (Features { segmentation: false, ..ALL }, 1500),
        (Features { no_checksums: true, ..ALL }, 1500),
        (Features { split_events: false, ..ALL }, 9000),
        (Features { segmentation: false, ..ALL }, 9000),
        (NONE, 1500),
    ] {
        println!("{features:?}, MTU {mtu}");
        with_interface(config(), |fixture| async move {
            fixture.store.write(&format!("{FRONT}/mtu"), mtu.to_string());
            let backend = fixture.backend(features).await;
            let wire = FakeNetwork::new(backend, features, mtu);
            let near = start(&fixture, fixture.take_device(), fixture.handle.clone(), NEAR);
            let far = start(&fixture, wire.clone(), wire.clone(), FAR);
            exchange(&near, &far, LEN).await;
            let counted = fixture.handle.statistics();
            println!("{counted:?}, {} cut", wire.cut());
            assert_eq!((counted.receive_dropped, counted.transmit_dropped), (0, 0));
            let segments = (2 * LEN / (mtu - 40)) as u64;
            if features.segmentation {
                assert!(wire.cut() > 0 && counted.transmitted + counted.received < segments / 2);
            } else {
                assert!(wire.cut() == 0 && counted.transmitted + counted.received > segments);
            }
            assert!(counted.notifications_sent <= counted.transmitted + counted.received);
            wire.hang_up();
        });
    }
}

/// The number of received frames that the tracer has seen.
static TRACED: AtomicUsize = AtomicUsize::new(0);

/// A capture in memory.
#[derive(Clone, Default)]
struct Capture(Rc<RefCell<Vec<u8>>>);

impl PcapSink for Capture {
    fn write(&mut self, data: &[u8]) {
        self.0.borrow_mut().extend(data);
    }
}

#[test]
fn a_tracer_a_capture_and_a_fault_injector_wrap_the_device() {
    let config = vif::Config { segmentation: false, ..config() };
    with_interface(config, |fixture| async move {
        let features = Features { segmentation: false, ..ALL };
        let wire = FakeNetwork::new(fixture.backend(features).await, features, 1500);
        let (capture, device) = (Capture::default(), fixture.take_device());
        let mut faulty = FaultInjector::new(device, 7);
        faulty.set_drop_chance(5);
        let traced = Tracer::new(faulty, |_, frame| {
            let came = frame.direction == TracerDirection::RX;
            TRACED.fetch_add(usize::from(came), Relaxed);
        });
        let device = PcapWriter::new(traced, capture.clone(), PcapMode::Both);
        let near = start(&fixture, device, fixture.handle.clone(), NEAR);
        let far = start(&fixture, wire.clone(), wire.clone(), FAR);
        exchange(&near, &far, 100_000).await;
        let counted = fixture.handle.statistics();
        let traced = TRACED.load(Relaxed) as u64;
        // The tracer does not see what the fault injector has dropped.
        assert!(traced > 100 && traced < counted.received, "{traced} of {}", counted.received);
        let capture = capture.0.borrow();
        assert_eq!(capture[..4], 0xa1b2_c3d4u32.to_ne_bytes());
        assert!(capture.len() > 200_000, "both ways are captured: {} bytes", capture.len());
        wire.hang_up();
    });
}
