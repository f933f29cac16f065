//! What other ends may do to a node, over a network in memory.

mod net;
mod patience;
#[allow(dead_code, reason = "each test crate uses its own part")]
mod suite;

use edge_nal::{TcpAccept, TcpBind, TcpConnect};
use embedded_io_async::{ErrorKind, Read, Write};
use futures_executor::LocalSpawner;
use futures_util::FutureExt;
use futures_util::future::{Either, join, select};
use futures_util::task::LocalSpawnExt;
use idc::buffer::Key;
use idc::life::{Epoch, NodeId, Phase, Publication};
use idc::testing::{FakeNet, FakeSocket};
use idc::wire::{HEADER_LEN, Header, Hello, Kind, Transfer};
use idc::{Address, Event, LocalBuffer, Node, Place, Quota, RemoteBuffer, Rights, Service};
use net::{CAPACITY, SERVER, Transport, address, host, node};
use patience::within;
use proptest::prelude::*;
use std::future::Future;
use std::pin::pin;
use suite::{Couriers, End, create};
use xen::yield_now;

/// A node, and others that do to it what they want.
struct Stage {
    net: FakeNet,
    node: Node<Transport>,
    spawner: LocalSpawner,
}

fn stage<F: Future<Output = ()>>(test: impl FnOnce(Stage) -> F) {
    stage_with(CAPACITY, test);
}

/// A stage whose connections buffer so many bytes.
fn stage_with<F: Future<Output = ()>>(capacity: usize, test: impl FnOnce(Stage) -> F) {
    suite::run(|spawner| async move {
        let net = FakeNet::new(capacity);
        let node = node(&net, &spawner, SERVER).await;
        test(Stage { net, node, spawner }).await;
    });
}

impl Stage {
    /// An endpoint of the node that waits for anybody.
    fn serve(&self, service: &str, quota: Quota) -> End<Transport> {
        let service = Service::new(service, 0).unwrap();
        let address = Address { place: Place::Anyone, service };
        create(&self.spawner, self.node.resource(quota).unwrap(), &address)
    }

    /// An honest client of another host, which meets the node's service `test`.
    async fn visit(&self) -> End<Transport> {
        let user = node(&self.net, &self.spawner, [10, 0, 0, 2]).await;
        let at = "tcp:10.0.0.1:900/test".parse().unwrap();
        create(&self.spawner, user.resource(suite::QUOTA).unwrap(), &at)
    }

    /// Somebody who has dialled the node.
    async fn hostile(&self, ip: [u8; 4]) -> Hostile {
        Hostile::new(host(&self.net, ip).connect(address(SERVER)).await.unwrap(), ip[3])
    }
}

/// The other end of a connection, which need not keep to the protocol.
struct Hostile {
    socket: FakeSocket,
    mine: Publication,
}

impl Hostile {
    fn new(socket: FakeSocket, node: u8) -> Hostile {
        let (node, epoch) = (NodeId([node; 16]), Epoch(1));
        let (phase, met, quota) = (Phase::Idle, Epoch(0), Quota::default());
        Hostile { socket, mine: Publication { node, epoch, phase, met, quota } }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), ErrorKind> {
        self.socket.write_all(bytes).await
    }

    async fn frame(
        &mut self,
        kind: Kind,
        slot: u16,
        code: u32,
        body: &[u8],
    ) -> Result<(), ErrorKind> {
        let header = Header { kind, slot, len: body.len() as u32, code };
        self.send(&[&header.to_bytes()[..], body].concat()).await
    }

    /// Says HELLO.
    async fn hello(&mut self, service: &Service, phase: Phase) -> Result<(), ErrorKind> {
        self.mine.phase = phase;
        let hello = Hello { service: service.clone(), publication: self.mine }.to_string();
        self.frame(Kind::Hello, 0, 0, hello.as_bytes()).await
    }

    /// Receives a frame. `None` at the end of the stream.
    async fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        self.socket.read_exact(&mut head).await.ok()?;
        let header = Header::from_bytes(&head).unwrap();
        let mut body = vec![0; header.len as usize];
        self.socket.read_exact(&mut body).await.ok()?;
        Some((header, body))
    }

    /// Waits until the node's end is in this phase.
    async fn sees(&mut self, phase: Phase) -> Publication {
        loop {
            let (header, body) = self.receive().await.expect("the other end has left");
            assert_eq!(header.kind, Kind::Hello);
            let hello = Hello::from_bytes(&body).unwrap();
            if hello.publication.phase == phase {
                return hello.publication;
            }
        }
    }

    /// Lets a visitor of any service connect, as an end that keeps to the protocol would.
    async fn let_in(&mut self) {
        let (_, hello) = self.receive().await.unwrap();
        let service = Hello::from_bytes(&hello).unwrap().service;
        self.hello(&service, Phase::Idle).await.unwrap();
        let other = self.sees(Phase::Offered(self.mine.epoch)).await;
        self.hello(&service, Phase::Ready(other.epoch)).await.unwrap();
    }

    /// Connects with the service, as an end that keeps to the protocol would.
    async fn connect(&mut self, service: &Service) -> Publication {
        self.hello(service, Phase::Idle).await.unwrap();
        let other = self.sees(Phase::Idle).await;
        self.hello(service, Phase::Offered(other.epoch)).await.unwrap();
        self.sees(Phase::Ready(self.mine.epoch)).await
    }
}

#[test]
fn answers_do_not_pile_up_for_an_end_that_does_not_read_them() {
    stage(async |stage| {
        let quota = Quota { messages: 2, transactions: 2, ..Quota::default() };
        let mut server = stage.serve("test", quota);
        let mut hostile = stage.hostile([10, 0, 0, 9]).await;
        hostile.connect(&Service::new("test", 0).unwrap()).await;
        server.connected().await;
        for number in 0..10_000 {
            // The slot may be free as far as this end knows. It was not told.
            for kind in [Kind::Message, Kind::Request] {
                if hostile.frame(kind, 1, 0, &[]).await.is_err() {
                    return;
                }
                match server.event().await {
                    Event::Message(_) | Event::Transaction(_) => {}
                    Event::Disconnect(_) => return,
                    other => panic!("{other:?} after {number} frames"),
                }
            }
        }
        panic!("the node keeps an answer to each frame");
    });
}

#[test]
fn an_end_that_answers_what_was_not_sent_yet_loses_the_connection() {
    stage(async |stage| {
        let mut server = stage.serve("test", suite::QUOTA);
        let mut hostile = stage.hostile([10, 0, 0, 9]).await;
        // More than there is room for on the way.
        hostile.mine.quota = Quota { messages: 100, message: 1000, ..suite::QUOTA };
        hostile.connect(&Service::new("test", 0).unwrap()).await;
        server.connected().await;
        let message = || server.endpoint.try_message(LocalBuffer::new(1000)).unwrap();
        let mut sent: Vec<_> = (0..100).map(|_| message()).collect();
        embassy_time::Timer::after_millis(50).await;
        hostile.frame(Kind::Done, 99, 0, &[]).await.unwrap();
        assert!(sent.pop().unwrap().await.is_err(), "it is complete without being sent");
        drop(server.disconnect().await);
    });
}

#[test]
fn however_many_slots_an_end_offers_the_other_end_uses_few_of_them() {
    stage(async |stage| {
        let quota = Quota { messages: 2, transactions: 2, ..Quota::default() };
        let mut server = stage.serve("test", quota);
        let mut hostile = stage.hostile([10, 0, 0, 9]).await;
        hostile.mine.quota = Quota { messages: u16::MAX, transactions: u16::MAX, ..quota };
        hostile.connect(&Service::new("test", 0).unwrap()).await;
        server.connected().await;
        let send = |_: &u32| server.endpoint.try_message(LocalBuffer::new(0)).is_some();
        assert_eq!((0..u32::MAX).take_while(send).count(), 1024);
    });
}

#[test]
fn a_transfer_with_a_silent_owner_can_be_given_up_for_one_with_another_owner() {
    stage(async |stage| {
        suite::serve_buffers(&stage.spawner, &stage.node);
        let registration = stage.node.register(&suite::pattern(100), Rights::READ).unwrap();
        let reference = registration.reference();
        // The hostile owner's node is in bytes 16 to 32, its address in 48 to 64.
        let mut bytes = reference.to_bytes();
        bytes[16..32].fill(9);
        bytes[63] = 9;
        let of_hostile = RemoteBuffer::from_bytes(&bytes).unwrap();
        let at = address([10, 0, 0, 9]);
        let acceptor = host(&stage.net, [10, 0, 0, 9]).bind(at).await.unwrap();

        let user = node(&stage.net, &stage.spawner, [10, 0, 0, 2]).await;
        let Couriers { mut courier, driver: _driver } = suite::courier(&stage.spawner, &user);
        let copy = LocalBuffer::new(100);
        let mut hostile = None;
        let silent = async {
            let (_, socket) = acceptor.accept().await.unwrap();
            let mut end = Hostile::new(socket, 9);
            end.let_in().await;
            let (asked, _) = end.receive().await.unwrap();
            assert_eq!(asked.kind, Kind::Read);
            hostile = Some(end);
        };
        let transfer = Box::pin(courier.receive(&of_hostile, 0, &copy));
        let Either::Right(((), transfer)) = select(transfer, pin!(silent)).await else {
            panic!("nobody has answered");
        };
        drop(transfer);
        courier.receive(&reference, 0, &copy).await.unwrap();
        assert_eq!(copy.to_vec(), suite::pattern(100).to_vec());
    });
}

/// Reads the first bytes of a buffer as a courier would.
async fn read(end: &mut Hostile, from: &RemoteBuffer) -> Option<Vec<u8>> {
    // The entry is in bytes 4 to 8, the key in 32 to 48.
    let bytes = from.to_bytes();
    let key = Key(bytes[32..48].try_into().unwrap());
    let id = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
    let transfer = Transfer { id, key, offset: 0, length: 10 };
    end.frame(Kind::Read, 7, 0, &transfer.to_bytes()).await.ok()?;
    let (header, data) = end.receive().await?;
    assert_eq!((header.kind, header.slot), (Kind::Data, 7));
    let (header, _) = end.receive().await?;
    assert_eq!((header.kind, header.slot, header.code), (Kind::End, 7, 0));
    Some(data)
}

#[test]
fn visitors_of_one_host_do_not_keep_others_from_the_buffers() {
    for has_connected in [false, true] {
        stage(async |stage| {
            suite::serve_buffers(&stage.spawner, &stage.node);
            let owned = suite::pattern(10);
            let registration = stage.node.register(&owned, Rights::READ).unwrap();
            let mut visitors = Vec::new();
            // As many as are served at a time, and more.
            for number in 0..6 {
                let mut hostile = stage.hostile([10, 0, 0, 9]).await;
                let service = Service::buffers(number);
                if has_connected && number < 4 {
                    hostile.connect(&service).await;
                    assert!(read(&mut hostile, &registration.reference()).await.is_some());
                } else {
                    hostile.hello(&service, Phase::Idle).await.unwrap();
                }
                visitors.push(hostile);
            }
            let user = node(&stage.net, &stage.spawner, [10, 0, 0, 2]).await;
            let Couriers { mut courier, driver: _driver } = suite::courier(&stage.spawner, &user);
            let copy = LocalBuffer::new(10);
            let reference = registration.reference();
            // The others would have to go after ten seconds.
            let received = within(5000, courier.receive(&reference, 0, &copy)).await;
            received.expect("it waits for others").unwrap();
            assert_eq!(copy.to_vec(), owned.to_vec());
        });
    }
}

#[test]
fn a_courier_replaces_itself_and_none_of_another_host() {
    stage(async |stage| {
        suite::serve_buffers(&stage.spawner, &stage.node);
        let registration = stage.node.register(&suite::pattern(10), Rights::READ).unwrap();
        let reference = registration.reference();
        let service = Service::buffers(1);
        let mut courier = stage.hostile([10, 0, 0, 2]).await;
        courier.connect(&service).await;
        let mut hostile = stage.hostile([10, 0, 0, 9]).await;
        hostile.mine.node = courier.mine.node;
        hostile.connect(&service).await;
        assert!(read(&mut courier, &reference).await.is_some());
        let mut again = stage.hostile([10, 0, 0, 2]).await;
        again.connect(&service).await;
        assert!(read(&mut again, &reference).await.is_some());
        assert!(read(&mut hostile, &reference).await.is_some());
        assert!(read(&mut courier, &reference).await.is_none());
    });
}

#[test]
fn a_visitor_that_does_not_connect_makes_room_for_the_next_one() {
    stage(async |stage| {
        let mut server = stage.serve("test", suite::QUOTA);
        let mut visitors = Vec::new();
        for _ in 0..3 {
            let mut hostile = stage.hostile([10, 0, 0, 9]).await;
            hostile.hello(&Service::new("test", 0).unwrap(), Phase::Idle).await.unwrap();
            visitors.push(hostile);
        }
        server.expect("Appear").await;
        let mut client = stage.visit().await;
        server.expect("Disappear").await;
        server.connected().await;
        client.connected().await;
    });
}

/// How many visitors of one host knock, and how many of all hosts a node lets wait.
const VISITORS: usize = 200;
const LET_IN: usize = 64;

#[test]
fn however_many_visitors_one_host_sends_those_of_others_are_let_in() {
    for says_hello in [false, true] {
        stage(async |stage| {
            let (mut busy, mut client) = (stage.serve("test", suite::QUOTA), stage.visit().await);
            join(busy.connected(), client.connected()).await;
            let mut visitors = Vec::new();
            for _ in 0..VISITORS {
                let mut hostile = stage.hostile([10, 0, 0, 9]).await;
                if says_hello {
                    hostile.hello(&Service::new("test", 0).unwrap(), Phase::Idle).await.unwrap();
                }
                visitors.push(hostile);
            }
            let mut honest = stage.hostile([10, 0, 0, 3]).await;
            honest.hello(&Service::new("test", 0).unwrap(), Phase::Idle).await.unwrap();
            // All have been let in, the honest one as the last, when so many have been sent away.
            while visitors[VISITORS - LET_IN].receive().await.is_some() {}
            yield_now().await;
            let _next = stage.serve("test", suite::QUOTA);
            // The others would have to go after ten seconds.
            let seen = within(5000, honest.sees(Phase::Idle)).await;
            seen.expect("it waits for others");
        });
    }
}

#[test]
fn visitors_are_let_in_after_one_that_could_not_be_accepted() {
    stage(async |stage| {
        let mut server = stage.serve("test", suite::QUOTA);
        for error in [ErrorKind::ConnectionAborted, ErrorKind::OutOfMemory, ErrorKind::Other] {
            stage.net.fail_accept(address(SERVER), error);
        }
        let mut client = stage.visit().await;
        join(server.connected(), client.connected()).await;
    });
}

#[test]
fn an_end_is_destroyed_though_the_other_end_reads_nothing() {
    stage_with(64, async |stage| {
        let server = stage.serve("test", suite::QUOTA);
        let mut hostile = stage.hostile([10, 0, 0, 9]).await;
        let service = Service::new("test", 0).unwrap();
        hostile.hello(&service, Phase::Idle).await.unwrap();
        let other = hostile.sees(Phase::Idle).await;
        hostile.hello(&service, Phase::Offered(other.epoch)).await.unwrap();
        embassy_time::Timer::after_millis(50).await;
        server.destroy().await;
    });
}

/// What a hostile end does in a connection.
#[derive(Clone, Debug)]
enum Act {
    /// Sends a frame: kind, slot, code, body, and what is added to its length.
    Frame(Kind, u16, u32, Vec<u8>, u32),
    Bytes(Vec<u8>),
    Receive,
    /// Answers what the node has sent.
    Answer,
    Close,
}

/// All kinds of frames, first those of endpoints.
const KINDS: [Kind; 9] = [
    Kind::Message,
    Kind::Done,
    Kind::Request,
    Kind::Response,
    Kind::Read,
    Kind::Write,
    Kind::Data,
    Kind::End,
    Kind::Hello,
];

fn acts() -> impl Strategy<Value = Act> {
    let kind =
        prop_oneof![4 => prop::sample::select(&KINDS[..4]), 1 => prop::sample::select(&KINDS)];
    let (slot, code) =
        (prop_oneof![9 => 0..4u16, 1 => any::<u16>()], prop_oneof![Just(0), 0..9u32]);
    let body = prop::collection::vec(any::<u8>(), 0..50);
    let more = prop_oneof![9 => Just(0), 1 => any::<u32>()];
    let frame = (kind, slot, code, body, more)
        .prop_map(|(kind, slot, code, body, more)| Act::Frame(kind, slot, code, body, more));
    prop_oneof![
        9 => frame,
        1 => prop::collection::vec(any::<u8>(), 0..50).prop_map(Act::Bytes),
        4 => Just(Act::Receive),
        4 => Just(Act::Answer),
        1 => Just(Act::Close),
    ]
}

/// An application that keeps some of what it receives, submits now and then, and checks that its
/// events are in the order that is promised. It ends when the other end is gone.
async fn application(mut end: End<Transport>, spawner: LocalSpawner) {
    let (mut kept, mut count, mut outstanding) = (Vec::new(), 0, Vec::new());
    end.connected().await;
    loop {
        let event = end.event().await;
        count += 1;
        match event {
            Event::Message(_) | Event::Transaction(_) if count % 3 == 0 => kept.push(event),
            Event::Transaction(asked) => asked.complete(count, vec![7; 20]).unwrap(),
            Event::Message(_) => kept.clear(),
            Event::Disconnect(_) => break,
            other => panic!("{other:?} in a connection"),
        }
        let endpoint = end.endpoint.clone();
        let submit = async move {
            if count % 2 == 0 {
                endpoint.message(&[1; 9]).await.is_ok()
            } else {
                endpoint.transaction(&[1; 9]).await.is_ok_and(|answer| answer.status().len() <= 300)
            }
        };
        outstanding.push(spawner.spawn_local_with_handle(submit).unwrap());
    }
    kept.clear();
    end.expect("Disappear").await;
    for submission in outstanding {
        submission.await;
    }
    end.destroy().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_frames_come_an_honest_connection_goes_on(
        acts in prop::collection::vec(acts(), 1..60),
    ) {
        stage(async |stage| {
            let (mut server, mut client) = (stage.serve("test", suite::QUOTA), stage.visit().await);
            join(server.connected(), client.connected()).await;
            let other = stage.serve("hostile", suite::QUOTA);
            let application = application(other, stage.spawner.clone());
            let application = stage.spawner.spawn_local_with_handle(application).unwrap();
            let mut hostile = stage.hostile([10, 0, 0, 9]).await;
            hostile.mine.quota = suite::QUOTA;
            hostile.connect(&Service::new("hostile", 0).unwrap()).await;
            for act in acts {
                // The end may be gone already.
                match act {
                    Act::Frame(kind, slot, code, body, more) => {
                        let len = (body.len() as u32).wrapping_add(more);
                        let header = Header { kind, slot, len, code }.to_bytes();
                        let bytes = [&header[..], &body].concat();
                        let _ = hostile.send(&bytes).now_or_never();
                    }
                    Act::Bytes(bytes) => drop(hostile.send(&bytes).now_or_never()),
                    Act::Receive => drop(hostile.socket.read(&mut [0; 100]).now_or_never()),
                    Act::Answer => {
                        let mut head = [0; HEADER_LEN];
                        let received = hostile.socket.read_exact(&mut head).now_or_never();
                        if let (Some(Ok(())), Ok(header)) = (received, Header::from_bytes(&head)) {
                            let kind = match header.kind {
                                Kind::Message => Kind::Done,
                                Kind::Request => Kind::Response,
                                _ => continue,
                            };
                            let mut body = vec![0; header.len as usize];
                            let _ = hostile.socket.read_exact(&mut body).now_or_never();
                            let _ = hostile.frame(kind, header.slot, 0, &[]).now_or_never();
                        }
                    }
                    Act::Close => break,
                }
                let receive = async { drop(server.message().await) };
                let (sent, ()) = join(client.endpoint.message(&[5]), receive).await;
                assert_eq!(sent, Ok(()));
            }
            drop(hostile);
            application.await;
        });
    }
}
