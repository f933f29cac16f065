//! What two ends may expect of each other, whatever the transport: the same tests for each.

use futures_executor::{LocalPool, LocalSpawner};
use futures_util::future::{Either, RemoteHandle, select};
use futures_util::task::LocalSpawnExt;
use idc::transport::Transport;
use idc::{
    Address, Courier, Disconnect, Endpoint, Event, Events, Incoming, LocalBuffer, Node, Place,
    Quota, Received, RemoteBuffer, Resource, Rights, TransferError, TransportError,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(60);

pub const QUOTA: Quota =
    Quota { messages: 4, message: 1000, transactions: 3, parameters: 500, status: 300 };

/// Two nodes that can meet.
pub struct Rig<S: Transport, C: Transport> {
    pub server: Node<S>,
    pub client: Node<C>,
    /// Where the server's endpoints meet clients, and clients' endpoints the server.
    pub at: (Address, Address),
    pub spawner: LocalSpawner,
}

/// An endpoint whose driver runs. Dropping it kills the driver, as if its process had died.
pub struct End<T: Transport> {
    pub endpoint: Endpoint,
    pub events: Events,
    driver: RemoteHandle<Resource<T>>,
}

/// Numbers that are as good as random for a test.
pub fn random(seed: u64) -> impl FnMut() -> [u8; 16] {
    let mut state = seed;
    move || {
        std::array::from_fn(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
    }
}

/// The rounds of `make soak`, if it runs this.
pub fn soak_rounds() -> Option<usize> {
    std::env::var("SOAK_ROUNDS").ok().map(|rounds| rounds.parse().unwrap())
}

/// Runs a test until it ends.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce(LocalSpawner) -> F) {
    let _ = env_logger::builder().is_test(true).try_init();
    let mut pool = LocalPool::new();
    let test = test(pool.spawner());
    let patience = if soak_rounds().is_some() { 10 * PATIENCE } else { PATIENCE };
    let patience = embassy_time::Timer::after(patience.try_into().unwrap());
    let test = async {
        match select(pin!(test), pin!(patience)).await {
            Either::Left(_) => {}
            Either::Right(_) => panic!("the test takes too long"),
        }
    };
    pool.run_until(test);
}

pub fn create<T: Transport + 'static>(
    spawner: &LocalSpawner,
    resource: Resource<T>,
    at: &Address,
) -> End<T> {
    let (endpoint, events, drive) = Endpoint::create(resource, at.clone());
    let driver = spawner.spawn_local_with_handle(drive).unwrap();
    End { endpoint, events, driver }
}

impl<T: Transport + 'static> End<T> {
    pub async fn event(&mut self) -> Event {
        self.events.next().await.expect("the endpoint has ended")
    }

    pub async fn expect(&mut self, wanted: &str) {
        let event = self.event().await;
        assert_eq!(format!("{event:?}").split('(').next(), Some(wanted));
    }

    pub async fn connected(&mut self) {
        self.expect("Appear").await;
        self.expect("Connect").await;
    }

    pub async fn message(&mut self) -> Received {
        match self.event().await {
            Event::Message(message) => message,
            other => panic!("{other:?} instead of a message"),
        }
    }

    pub async fn transaction(&mut self) -> Incoming {
        match self.event().await {
            Event::Transaction(transaction) => transaction,
            other => panic!("{other:?} instead of a transaction"),
        }
    }

    pub async fn disconnect(&mut self) -> Disconnect {
        loop {
            match self.event().await {
                Event::Disconnect(disconnect) => return disconnect,
                Event::Message(_) | Event::Transaction(_) => {}
                other => panic!("{other:?} instead of the end of the connection"),
            }
        }
    }

    /// Destroys the endpoint and returns its resource.
    pub async fn destroy(mut self) -> Resource<T> {
        self.endpoint.destroy();
        while self.events.next().await.is_some() {}
        self.driver.await
    }
}

impl<S: Transport + 'static, C: Transport + 'static> Rig<S, C> {
    pub fn serve(&self) -> End<S> {
        create(&self.spawner, self.server.resource(QUOTA).unwrap(), &self.at.0)
    }

    pub fn visit(&self) -> End<C> {
        create(&self.spawner, self.client.resource(QUOTA).unwrap(), &self.at.1)
    }

    /// A server and a client that are connected.
    pub async fn connect(&self) -> (End<S>, End<C>) {
        let (mut server, mut client) = (self.serve(), self.visit());
        server.connected().await;
        client.connected().await;
        (server, client)
    }
}

pub async fn an_endpoint_is_created_at_once_and_connects_when_the_other_end_is_there(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    let mut client = rig.visit();
    let early = client.endpoint.message(b"too early").await;
    assert_eq!(early, Err(TransportError::Disconnected));
    embassy_time::Timer::after_millis(50).await;
    let mut server = rig.serve();
    server.connected().await;
    client.connected().await;
    assert_eq!(client.endpoint.peer_place(), Some(rig.at.1.place));
    let visitor = server.endpoint.peer_place();
    assert!(visitor.is_some_and(|place| place != Place::Anyone), "{visitor:?} is no place");
}

pub async fn messages_arrive_in_order_and_are_complete_when_the_receiver_is_done(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    let (mut server, client) = rig.connect().await;
    let received = async {
        for number in 0..100u32 {
            let message = server.message().await;
            assert_eq!(message.body().to_vec(), number.to_le_bytes());
        }
    };
    let sent = async {
        for number in 0..100u32 {
            client.endpoint.message(&number.to_le_bytes()).await.unwrap();
        }
    };
    futures_util::future::join(received, sent).await;

    let done = Rc::new(Cell::new(false));
    let (endpoint, flag) = (client.endpoint.clone(), done.clone());
    rig.spawner
        .spawn_local(async move {
            endpoint.message(b"held").await.unwrap();
            flag.set(true);
        })
        .unwrap();
    let held = server.message().await;
    embassy_time::Timer::after_millis(20).await;
    assert!(!done.get(), "the receiver still has the message");
    drop(held);
    while !done.get() {
        embassy_time::Timer::after_millis(1).await;
    }
}

pub async fn a_receiver_gets_no_more_messages_than_its_quota(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    let (mut server, client) = rig.connect().await;
    // The futures need not be polled.
    let send = |number: &u8| client.endpoint.try_message([*number][..].into()).is_some();
    assert_eq!((0..6).take_while(send).count(), usize::from(QUOTA.messages));
    let mut held = Vec::new();
    for number in 0..4u8 {
        let message = server.message().await;
        assert_eq!(message.body().to_vec(), [number]);
        held.push(message);
    }
    drop(held.remove(2));
    let (sent, ()) = futures_util::future::join(client.endpoint.message(&[9]), async {
        assert_eq!(server.message().await.body().to_vec(), [9]);
    })
    .await;
    assert_eq!(sent, Ok(()));
}

pub async fn transactions_are_answered_in_any_order_with_error_and_status(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    let (mut server, client) = rig.connect().await;
    let ask = |number: u8| client.endpoint.transaction(vec![number; 400]);
    let serve = async {
        let mut asked = Vec::new();
        for _ in 0..3 {
            asked.push(server.transaction().await);
        }
        for transaction in asked.into_iter().rev() {
            let number = transaction.parameters().to_vec()[399];
            assert_eq!(transaction.status_limit(), 300);
            transaction.complete(number.into(), vec![number; usize::from(number)]).unwrap();
        }
        drop(server.transaction().await);
        server
    };
    let answers = async {
        let answers = futures_util::future::join3(ask(0), ask(1), ask(2)).await;
        for (number, answer) in [answers.0, answers.1, answers.2].into_iter().enumerate() {
            let answer = answer.unwrap();
            assert_eq!(answer.error(), number as u32);
            assert_eq!(answer.status().to_vec(), vec![number as u8; number]);
        }
        assert_eq!(ask(3).await.unwrap().error(), idc::wire::ABANDONED);
    };
    futures_util::future::join(serve, answers).await;
}

pub async fn a_status_stays_when_the_connection_is_over(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    let (mut server, mut client) = rig.connect().await;
    let serve = async { server.transaction().await.complete(7, &[5; 300]).unwrap() };
    let (answer, ()) =
        futures_util::future::join(client.endpoint.transaction(&[0; 0]), serve).await;
    let answer = answer.unwrap();
    server.destroy().await;
    drop(client.disconnect().await);
    client.expect("Disappear").await;
    assert_eq!((answer.error(), answer.status().to_vec()), (7, vec![5; 300]));
}

pub async fn what_exceeds_the_other_ends_quota_is_refused_before_it_is_sent(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    let (mut server, client) = rig.connect().await;
    let quota = client.endpoint.peer_quota().unwrap();
    assert_eq!(quota, QUOTA);
    let long = LocalBuffer::new(quota.message as usize + 1);
    assert_eq!(client.endpoint.message(long).await, Err(TransportError::TooLong));
    let long = LocalBuffer::new(quota.parameters as usize + 1);
    assert_eq!(client.endpoint.transaction(long).await.err(), Some(TransportError::TooLong));
    let (asked, answer) = futures_util::future::join(
        async {
            let transaction = server.transaction().await;
            transaction.complete(0, LocalBuffer::new(QUOTA.status as usize + 1))
        },
        client.endpoint.transaction(b"x"),
    )
    .await;
    assert_eq!(asked, Err(TransportError::TooLong));
    assert_eq!(answer.unwrap().error(), idc::wire::ABANDONED);
}

pub async fn a_disconnect_completes_everything_and_waits_for_the_client(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    let (mut server, mut client) = rig.connect().await;
    let outstanding = futures_util::future::join(
        client.endpoint.message(b"never finished"),
        client.endpoint.transaction(b"never answered"),
    );
    let server_ends = async {
        let held = (server.message().await, server.transaction().await);
        server.endpoint.destroy();
        let disconnect = server.disconnect().await;
        embassy_time::Timer::after_millis(20).await;
        drop(disconnect);
        // Answers to what belongs to the past are allowed, and have no effect.
        held.1.complete(0, b"late").unwrap();
        drop(held.0);
    };
    let ((message, transaction), ()) = futures_util::future::join(outstanding, server_ends).await;
    assert_eq!(message, Err(TransportError::Disconnected));
    assert_eq!(transaction.err(), Some(TransportError::Disconnected));
    let disconnect = client.disconnect().await;
    assert_eq!(client.endpoint.message(b"late").await, Err(TransportError::Disconnected));
    drop(disconnect);
    client.expect("Disappear").await;
    while server.events.next().await.is_some() {}

    // A new endpoint at the same address appears, and connects with this end.
    let mut next = rig.serve();
    next.connected().await;
    client.connected().await;
}

pub async fn a_connection_does_not_begin_before_the_client_has_finished_the_former_one(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    let (server, mut client) = rig.connect().await;
    drop(server.endpoint.try_message(b"kept".into()).unwrap());
    let kept = client.message().await;
    server.destroy().await;
    let mut server = rig.serve();
    drop(client.disconnect().await);
    embassy_time::Timer::after_millis(100).await;
    assert_eq!(kept.body().to_vec(), b"kept");
    let waits = futures_util::future::FutureExt::now_or_never(client.events.next());
    assert!(waits.is_none(), "a message of the former connection is not finished");
    drop(kept);
    client.expect("Disappear").await;
    client.connected().await;
    server.connected().await;
}

pub async fn a_destroyed_endpoint_gives_its_resource_to_another_one(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    let (mut server, client) = rig.connect().await;
    let mut resource = client.destroy().await;
    for number in 0..5u8 {
        drop(server.disconnect().await);
        server.expect("Disappear").await;
        let mut client = create(&rig.spawner, resource, &rig.at.1);
        client.connected().await;
        server.connected().await;
        let (message, sent) = futures_util::future::join(
            async { server.message().await.body().to_vec() },
            client.endpoint.message(&[number]),
        )
        .await;
        assert_eq!((message, sent), (vec![number], Ok(())));
        resource = client.destroy().await;
    }
}

/// A courier whose driver runs.
pub struct Couriers<C: Transport> {
    pub courier: Courier,
    pub driver: RemoteHandle<Resource<C>>,
}

pub fn courier<T: Transport + 'static>(spawner: &LocalSpawner, node: &Node<T>) -> Couriers<T> {
    let (courier, drive) = Courier::create(node.resource(Quota::default()).unwrap());
    Couriers { courier, driver: spawner.spawn_local_with_handle(drive).unwrap() }
}

/// Serves a node's buffers.
pub fn serve_buffers<T: Transport + 'static>(spawner: &LocalSpawner, node: &Node<T>) {
    let node = node.clone();
    let serve = async move { panic!("buffers are not served: {}", node.serve_buffers(4).await) };
    spawner.spawn_local(serve).unwrap();
}

impl<S: Transport + 'static, C: Transport + 'static> Rig<S, C> {
    /// Serves the server's buffers.
    pub fn serve_buffers(&self) {
        serve_buffers(&self.spawner, &self.server);
    }

    pub fn courier(&self) -> Couriers<C> {
        courier(&self.spawner, &self.client)
    }
}

pub fn pattern(len: usize) -> LocalBuffer {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect::<Vec<_>>().into()
}

pub async fn a_remote_buffer_is_read_and_written_at_any_place(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    rig.serve_buffers();
    let owned = pattern(3 << 20);
    let registration = rig.server.register(&owned, Rights::READ | Rights::WRITE).unwrap();
    // Through bytes, as in a message.
    let reference = RemoteBuffer::from_bytes(&registration.reference().to_bytes()).unwrap();
    assert_eq!(reference, registration.reference());
    let Couriers { mut courier, driver } = rig.courier();
    for (at, len) in [(0, 0), (0, 1), (5, 100_000), (0, 3 << 20), ((3 << 20) - 1, 1)] {
        let copy = LocalBuffer::new(len);
        courier.receive(&reference, at as u64, &copy).await.unwrap();
        assert!(copy.to_vec() == owned.slice(at..at + len).to_vec(), "{len} bytes at {at}");
    }
    let (before, after) = (owned.slice(0..1000).to_vec(), owned.slice(2_000_000..3 << 20).to_vec());
    let written: LocalBuffer = vec![0xee; 1_999_000].into();
    courier.send(&reference, 1000, &written).await.unwrap();
    assert!(owned.slice(1000..2_000_000).to_vec() == written.to_vec());
    assert!(owned.slice(0..1000).to_vec() == before, "bytes before the place were written");
    assert!(owned.slice(2_000_000..3 << 20).to_vec() == after, "bytes after it were written");
    drop(courier);
    drop(driver.await);
}

pub async fn transfers_that_are_not_allowed_fail_and_touch_nothing(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    rig.serve_buffers();
    let owned = pattern(1000);
    let readable = rig.server.register(&owned, Rights::READ).unwrap();
    let writable = rig.server.register(&owned, Rights::WRITE).unwrap();
    let Couriers { mut courier, driver: _driver } = rig.courier();
    let some = LocalBuffer::new(100);
    let forbidden = Err(TransferError::Forbidden);
    assert_eq!(courier.send(&readable.reference(), 0, &some).await, forbidden);
    assert_eq!(courier.receive(&writable.reference(), 0, &some).await, forbidden);
    let beyond = Err(TransferError::OutOfRange);
    assert_eq!(courier.receive(&readable.reference(), 901, &some).await, beyond);
    assert_eq!(courier.send(&writable.reference(), u64::MAX, &some).await, beyond);
    // The next request is on its way when the first one fails.
    let long = LocalBuffer::new(3 << 20);
    assert_eq!(courier.send(&readable.reference(), 0, &long).await, forbidden);
    assert_eq!(courier.receive(&readable.reference(), 0, &long).await, beyond);
    let bytes = readable.reference().to_bytes();
    for forged in [32, 40, 47] {
        // The key is in bytes 32 to 48.
        let mut bytes = bytes;
        bytes[forged] ^= 1;
        let forged = RemoteBuffer::from_bytes(&bytes).unwrap();
        assert_eq!(courier.receive(&forged, 0, &some).await, Err(TransferError::Revoked));
    }
    let reference = readable.reference();
    drop(readable);
    assert_eq!(courier.receive(&reference, 0, &some).await, Err(TransferError::Revoked));
    assert_eq!(owned.to_vec(), pattern(1000).to_vec());
    assert_eq!(some.to_vec(), [0; 100]);
    courier.send(&writable.reference(), 0, &some).await.unwrap();
    assert_eq!(owned.slice(0..101).to_vec()[99..], [0, pattern(101).to_vec()[100]]);
}

pub async fn a_buffer_of_another_run_of_its_owner_cannot_be_reached(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    rig.serve_buffers();
    let registration = rig.server.register(&pattern(10), Rights::READ).unwrap();
    let mut bytes = registration.reference().to_bytes();
    // The node's identity is in bytes 16 to 32.
    bytes[20] ^= 1;
    let former = RemoteBuffer::from_bytes(&bytes).unwrap();
    let Couriers { mut courier, driver: _driver } = rig.courier();
    let copy = LocalBuffer::new(10);
    assert_eq!(courier.receive(&former, 0, &copy).await, Err(TransferError::Unreachable));
    courier.receive(&registration.reference(), 0, &copy).await.unwrap();
}

pub async fn an_unregistered_buffer_is_not_accessed_again_in_the_middle_of_a_transfer(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    rig.serve_buffers();
    for right in [Rights::READ, Rights::WRITE] {
        let owned = LocalBuffer::new(8 << 20);
        let registration = rig.server.register(&owned, right).unwrap();
        let reference = registration.reference();
        let Couriers { mut courier, driver: _driver } = rig.courier();
        let local: LocalBuffer = vec![1; 8 << 20].into();
        let transfer = async {
            if right == Rights::READ {
                courier.receive(&reference, 0, &local).await
            } else {
                courier.send(&reference, 0, &local).await
            }
        };
        let revoke = async {
            let begun = || {
                if right == Rights::READ {
                    local.slice(0..1).to_vec() == [0]
                } else {
                    owned.slice(0..1).to_vec() == [1]
                }
            };
            while !begun() {
                embassy_time::Timer::after_ticks(1).await;
            }
            drop(registration);
            // What the owner writes now is no other end's.
            owned.write(0, &vec![0xa5; 8 << 20]);
        };
        let (result, ()) = futures_util::future::join(transfer, revoke).await;
        assert_eq!(result, Err(TransferError::Revoked));
        assert!(owned.to_vec().iter().all(|byte| *byte == 0xa5), "the buffer was written");
        assert!(!local.to_vec().contains(&0xa5), "the buffer was read");
    }
}

/// Passes the exam, and has it under load.
pub async fn the_exam_is_passed(rig: Rig<impl Transport + 'static, impl Transport + 'static>) {
    use idc::exam::{examine, load, serve};
    let serves = serve(&rig.server, &rig.at.0, 1);
    let client = async {
        let mut passed = 0;
        let examined = examine(&rig.client, &rig.at.1, |step| {
            println!("{step}");
            passed += 1;
        });
        examined.await.unwrap();
        assert_eq!(passed, 14);
        let busy = Cell::new(false);
        let load = load(&rig.client, &rig.at.1, |_| busy.set(true));
        let is_busy = async {
            while !busy.get() {
                embassy_time::Timer::after_millis(1).await;
            }
        };
        match select(pin!(load), pin!(is_busy)).await {
            Either::Left((Err(error), _)) => panic!("{error}"),
            Either::Left((Ok(never), _)) => match never {},
            Either::Right(_) => {}
        }
    };
    match select(pin!(serves), pin!(client)).await {
        Either::Left((error, _)) => panic!("the service has ended: {error}"),
        Either::Right(((), _)) => {}
    }
}

pub async fn the_benchmark_has_all_its_figures(
    rig: Rig<impl Transport + 'static, impl Transport + 'static>,
) {
    use idc::exam::bench::{Plan, Used, Way, serve, visit};
    let figures = RefCell::new(BTreeSet::new());
    let print = |way, name: &str, value: f64| {
        println!("{way:?} {name} {value}");
        assert!(value.is_finite() && value >= 0.0, "{name}: {value}");
        assert!(figures.borrow_mut().insert((way == Way::Ring, name.to_owned())), "{name} twice");
    };
    let plan = Plan { mib: 8, count: 10 };
    let visits = visit(&rig.client, &rig.at.1, plan, Used::default, print);
    match select(pin!(serve(&rig.server, &rig.at.0, Used::default)), pin!(visits)).await {
        Either::Left((error, _)) => panic!("the service has ended: {error}"),
        Either::Right((outcome, _)) => outcome.unwrap(),
    }
    // 5 of time, and for each of 4 measurements and 2 ends, the processor's time and 2 counts.
    assert_eq!(figures.borrow().len(), 2 * (5 + 4 * 2 * 3));
}

/// Makes a test of each of the above with what `$rig` makes.
#[macro_export]
macro_rules! suite {
    ($with:ident: $($name:ident)*) => { $(
        #[test]
        fn $name() {
            $with(|rig| suite::$name(rig));
        }
    )* };
    ($with:ident) => {
        suite!($with:
            an_endpoint_is_created_at_once_and_connects_when_the_other_end_is_there
            messages_arrive_in_order_and_are_complete_when_the_receiver_is_done
            a_receiver_gets_no_more_messages_than_its_quota
            transactions_are_answered_in_any_order_with_error_and_status
            a_status_stays_when_the_connection_is_over
            what_exceeds_the_other_ends_quota_is_refused_before_it_is_sent
            a_disconnect_completes_everything_and_waits_for_the_client
            a_connection_does_not_begin_before_the_client_has_finished_the_former_one
            a_destroyed_endpoint_gives_its_resource_to_another_one
            a_remote_buffer_is_read_and_written_at_any_place
            transfers_that_are_not_allowed_fail_and_touch_nothing
            a_buffer_of_another_run_of_its_owner_cannot_be_reached
            an_unregistered_buffer_is_not_accessed_again_in_the_middle_of_a_transfer
            the_exam_is_passed
            the_benchmark_has_all_its_figures
        );
    };
}
