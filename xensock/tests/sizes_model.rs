//! Rings grow and shrink at every moment of the protocol, and no byte is lost.
//!
//! Random steps at both ends of connections, with tasks that run in between for a while or not at
//! all. Each byte depends on its position in the stream, so the model only counts.

mod rig;

use edge_nal::{Close, TcpShutdown};
use embassy_time::{Duration, Timer};
use embedded_io_async::{Read, Write};
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::join;
use proptest::prelude::*;
use proptest::test_runner::Config as Cases;
use rig::{Rig, address, config, limits, with_frontend};
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use xen::testing::FakeMachine;
use xensock::back::Limits;
use xensock::front::{Config, Stream};
use xensock::testing::{FakeListener, FakeStream};
use xensock::wire::{Dialect, Extensions, Protocol, SocketOption};

/// What happens next on a connection. Reads and writes are tried once and dropped.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(usize),
    Read(usize),
    PeerWrite(usize),
    PeerRead(usize),
    /// Lets the other tasks run so many times.
    Turns(u8),
    /// Lets time pass: idle rings shrink.
    Wait,
    /// Shrinks all rings that have grown.
    Trim,
    /// Requests a size, which stays.
    Size(u32),
    CloseWriting,
    Short(bool),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Drop,
    Abort,
    PeerReset,
    BackendKilled,
}

#[derive(Clone, Debug)]
struct Case {
    protocol: Protocol,
    budget: usize,
    backend_pages: usize,
    connections: Vec<(Vec<Step>, End)>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = || prop_oneof![1..5000usize, 1..200_000usize];
    let step = prop_oneof![
        6 => size().prop_map(Step::Write),
        6 => size().prop_map(Step::Read),
        5 => size().prop_map(Step::PeerWrite),
        5 => size().prop_map(Step::PeerRead),
        8 => prop_oneof![0..5u8, 0..40u8].prop_map(Step::Turns),
        1 => Just(Step::Wait),
        2 => Just(Step::Trim),
        1 => (0..300_000u32).prop_map(Step::Size),
        1 => Just(Step::CloseWriting),
        1 => any::<bool>().prop_map(Step::Short),
    ];
    prop::collection::vec(step, 1..120)
}

fn case() -> impl Strategy<Value = Case> {
    let end = prop_oneof![
        4 => Just(End::Close),
        4 => Just(End::Drop),
        1 => Just(End::Abort),
        1 => Just(End::PeerReset),
        1 => Just(End::BackendKilled),
    ];
    let dialect = prop_oneof![3 => Just(Dialect::PvCalls), 1 => Just(Dialect::Draft1)];
    let extensions = prop_oneof![
        3 => Just(Extensions::all()),
        1 => Just(Extensions::all() - Extensions::EVENT_INDEX),
    ];
    let budget = prop_oneof![0..100usize, 0..3000usize];
    let backend_pages = prop_oneof![3 => Just(32768usize), 1 => 20..600usize];
    let connections = prop::collection::vec((steps(), end), 1..4);
    (dialect, extensions, budget, backend_pages, connections).prop_map(
        |(dialect, extensions, budget, backend_pages, connections)| Case {
            protocol: Protocol { dialect, extensions },
            budget,
            backend_pages,
            connections,
        },
    )
}

/// The bytes of a stream from a position on.
fn bytes(at: usize, count: usize) -> Vec<u8> {
    (at..at + count).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// How many bytes of one direction were sent and received.
#[derive(Default)]
struct Way {
    sent: usize,
    received: usize,
}

impl Way {
    fn receive(&mut self, got: &[u8]) {
        assert!(got == bytes(self.received, got.len()), "other bytes at {}", self.received);
        self.received += got.len();
        assert!(self.received <= self.sent);
    }
}

async fn turns(count: u8) {
    let mut left = count;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn play(
    rig: &Rig,
    stream: &mut Stream<FakeMachine>,
    socket: &FakeStream,
    steps: Vec<Step>,
) -> [Way; 2] {
    let [mut out, mut input] = <[Way; 2]>::default();
    let mut closed = false;
    for step in steps {
        match step {
            Step::Write(count) if !closed => {
                let data = bytes(out.sent, count);
                out.sent += stream.write(&data).now_or_never().map_or(0, |sent| sent.unwrap());
            }
            Step::Read(count) => {
                let mut some = vec![0; count];
                if let Some(count) = stream.read(&mut some).now_or_never() {
                    input.receive(&some[..count.unwrap()]);
                }
            }
            Step::PeerWrite(count) => {
                let data = bytes(input.sent, count);
                input.sent += socket.write(&data).now_or_never().map_or(0, |sent| sent.unwrap());
            }
            Step::PeerRead(count) => {
                let mut some = vec![0; count];
                if let Some(count) = socket.read(&mut some).now_or_never() {
                    out.receive(&some[..count.unwrap()]);
                }
            }
            Step::Turns(count) => turns(count).await,
            Step::Wait => Timer::after_millis(3).await,
            Step::Trim => rig.frontend.trim(),
            Step::Size(bytes) => {
                let _ = stream.set_option(SocketOption::SendBuffer, bytes).now_or_never();
            }
            Step::CloseWriting => {
                let _ = stream.close(Close::Write).now_or_never();
                closed = true;
            }
            Step::Short(is_short) => rig.guest.set_short(is_short),
            Step::Write(_) => {}
        }
    }
    rig.guest.set_short(false);
    [out, input]
}

/// Receives what is left, up to the end of the stream.
async fn rest(socket: &FakeStream, way: &mut Way) {
    way.receive(&socket.read_to_end().await.unwrap());
}

async fn connection(
    rig: &Rig,
    server: &FakeListener,
    steps: Vec<Step>,
    end: End,
    restart: impl AsyncFn(),
) {
    let mut stream = rig.frontend.connect(address(80)).await.unwrap();
    let socket = server.accept().await;
    let [mut out, mut input] = play(rig, &mut stream, &socket, steps).await;
    let mut some = vec![0; 10_000];
    match end {
        End::Close => {
            // First all that the peer wrote.
            socket.finish();
            let reading = async {
                loop {
                    match stream.read(&mut some).await.unwrap() {
                        0 => break,
                        count => input.receive(&some[..count]),
                    }
                }
                assert_eq!(input.received, input.sent);
                stream.close(Close::Both).await.unwrap();
            };
            join(rest(&socket, &mut out), reading).await;
            assert_eq!(out.received, out.sent);
        }
        End::Drop => {
            drop(stream);
            rest(&socket, &mut out).await;
            assert_eq!(out.received, out.sent);
        }
        End::Abort => {
            stream.abort().await.unwrap();
            while let Ok(count @ 1..) = socket.read(&mut some).await {
                out.receive(&some[..count]);
            }
        }
        End::PeerReset => {
            socket.reset();
            while let Ok(count @ 1..) = stream.read(&mut some).await {
                input.receive(&some[..count]);
            }
        }
        End::BackendKilled => {
            restart().await;
            while let Ok(count @ 1..) = stream.read(&mut some).await {
                input.receive(&some[..count]);
            }
            while let Ok(count @ 1..) = socket.read(&mut some).await {
                out.receive(&some[..count]);
            }
        }
    }
}

fn run(case: Case) {
    let long = Duration::from_secs(30);
    let config = Config {
        dialect: case.protocol.dialect,
        ring_budget: case.budget,
        shrink_after: Duration::from_millis(2),
        linger: long,
        ..config()
    };
    with_frontend(config, |rig: Rc<Rig>| async move {
        // A task takes turns with each other task. The future of the test would only run when all
        // of them wait.
        let (done, ended) = oneshot::channel();
        let player = rig.clone();
        rig.spawn(async move {
            connections(&player, case).await;
            let _ = done.send(());
        });
        ended.await.unwrap();
    });
}

async fn connections(rig: &Rig, case: Case) {
    let linger = core::time::Duration::from_secs(30);
    let limits = Limits { pages: case.backend_pages, linger, ..limits() };
    let backend = RefCell::new(rig.start_backend(case.protocol, limits));
    let restart = async || {
        backend.replace_with(|_| rig.start_backend(case.protocol, limits)).kill();
    };
    let server = rig.net.listen(address(80)).unwrap();
    for (steps, end) in case.connections {
        connection(rig, &server, steps, end, restart).await;
        rig.until(|| rig.frontend.statistics().streams_open == 0).await;
    }
}

proptest! {
    #![proptest_config(Cases { cases: 64, max_shrink_iters: 200, ..Cases::default() })]

    #[test]
    fn no_byte_is_lost_whenever_a_ring_changes_its_size(case in case()) {
        run(case);
    }
}
