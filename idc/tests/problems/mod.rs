//! The problems of more than two ends, and of ends that die: the same tests for each transport.

use super::suite::{Couriers, End, courier, create, pattern, serve_buffers, soak_rounds};
use futures_executor::LocalSpawner;
use futures_util::future::{Either, RemoteHandle, join, join_all, join3, select};
use futures_util::task::LocalSpawnExt;
use idc::transport::Transport;
use idc::{
    Address, Endpoint, Event, LocalBuffer, Node, Place, Quota, RemoteBuffer, Response, Rights,
    Service, TransportError,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A quota that makes everybody wait.
const ONE: Quota = Quota { messages: 1, message: 72, transactions: 1, parameters: 72, status: 72 };

/// Nodes that can all meet each other, and the places where the others find them.
pub struct Net<T: Transport> {
    pub nodes: Vec<(Node<T>, [Place; 2])>,
    pub spawner: LocalSpawner,
}

impl<T: Transport + 'static> Net<T> {
    /// An endpoint of a node that waits for anybody.
    fn serve(&self, at: usize, service: &str) -> End<T> {
        self.end(at, Place::Anyone, service, 0)
    }

    /// An endpoint of a node that looks for another node, for every other instance at its second
    /// place.
    fn visit(&self, at: usize, to: usize, service: &str, instance: u32) -> End<T> {
        self.end(at, self.nodes[to].1[instance as usize % 2], service, instance)
    }

    fn end(&self, at: usize, place: Place, service: &str, instance: u32) -> End<T> {
        let service = Service::new(service, instance).unwrap();
        let resource = self.nodes[at].0.resource(ONE).unwrap();
        create(&self.spawner, resource, &Address { place, service })
    }

    /// Endpoints of two nodes that are connected.
    async fn pair(&self, server: usize, client: usize, service: &str) -> (End<T>, End<T>) {
        let (mut serves, mut visits) =
            (self.serve(server, service), self.visit(client, server, service, 0));
        join(serves.connected(), visits.connected()).await;
        (serves, visits)
    }

    /// Answers the transactions of an endpoint, one after the other, by what `answer` makes of
    /// their parameters. Nobody else needs the endpoint.
    fn answer<F: Future<Output = Option<LocalBuffer>>>(
        &self,
        end: End<T>,
        answer: impl Fn(LocalBuffer) -> F + 'static,
    ) {
        self.spawner
            .spawn_local(async move {
                let mut end = end;
                while let Some(event) = end.events.next().await {
                    if let Event::Transaction(asked) = event
                        && let Some(status) = answer(asked.parameters().clone()).await
                    {
                        asked.complete(0, status).unwrap();
                    }
                }
            })
            .unwrap();
    }
}

/// Keeps an end alive that only submits.
fn submitter<T: Transport + 'static>(spawner: &LocalSpawner, end: End<T>) -> Endpoint {
    let endpoint = end.endpoint.clone();
    spawner
        .spawn_local(async move {
            let mut end = end;
            while end.events.next().await.is_some() {}
        })
        .unwrap();
    endpoint
}

/// Asks many times, some at a time, and expects the number of hops that the question took.
async fn ask(endpoint: &Endpoint, times: u32, hops: u8) {
    let soak = Duration::from_secs(if soak_rounds().is_some() { 60 } else { 0 });
    let start = Instant::now();
    let goes_on = |number: &u32| *number < times || start.elapsed() < soak;
    let ask = |worker: u32| async move {
        for number in (worker..).step_by(4).take_while(goes_on) {
            let question = [&number.to_le_bytes()[..], &[0]].concat();
            let answer = endpoint.transaction(question).await.unwrap();
            let expected = [&number.to_le_bytes()[..], &[hops]].concat();
            assert_eq!((answer.error(), answer.status().to_vec()), (0, expected));
        }
    };
    join_all((0..4).map(ask)).await;
}

/// The question after one more hop.
fn hop(question: &LocalBuffer) -> LocalBuffer {
    let mut bytes = question.to_vec();
    *bytes.last_mut().unwrap() += 1;
    bytes.into()
}

async fn pass_on(endpoint: &Endpoint, question: LocalBuffer) -> Option<LocalBuffer> {
    endpoint.transaction(hop(&question)).await.ok().map(|answer: Response| answer.status())
}

pub async fn a_chain_of_three_with_quota_1_goes_on_under_load(net: Net<impl Transport + 'static>) {
    let (a, b_up) = net.pair(0, 1, "lower").await;
    let (b, c) = net.pair(1, 2, "upper").await;
    net.answer(a, |question| async move { Some(hop(&question)) });
    let up = submitter(&net.spawner, b_up);
    net.answer(b, move |question| {
        let up = up.clone();
        async move { pass_on(&up, question).await }
    });
    ask(&submitter(&net.spawner, c), 400, 2).await;
}

pub async fn a_ring_of_three_with_quota_1_goes_on_under_load(net: Net<impl Transport + 'static>) {
    // Each node offers a leaf, and a level above that needs the next node's leaf.
    let mut clients = Vec::new();
    for node in 0..3 {
        let next = (node + 1) % 3;
        let (leaf, user) = net.pair(next, node, "leaf").await;
        let (above, client) = net.pair(node, (node + 2) % 3, "above").await;
        net.answer(leaf, |question| async move { Some(hop(&question)) });
        let user = submitter(&net.spawner, user);
        net.answer(above, move |question| {
            let user = user.clone();
            async move { pass_on(&user, question).await }
        });
        clients.push(submitter(&net.spawner, client));
    }
    join3(ask(&clients[0], 300, 2), ask(&clients[1], 300, 2), ask(&clients[2], 300, 2)).await;
}

pub async fn two_nodes_serve_each_other_with_quota_1_under_load(
    net: Net<impl Transport + 'static>,
) {
    let (serves_0, visits_1) = net.pair(0, 1, "disk").await;
    let (serves_1, visits_0) = net.pair(1, 0, "disk").await;
    net.answer(serves_0, |question| async move { Some(hop(&question)) });
    net.answer(serves_1, |question| async move { Some(hop(&question)) });
    let (one, other) = (submitter(&net.spawner, visits_0), submitter(&net.spawner, visits_1));
    join(ask(&one, 400, 1), ask(&other, 400, 1)).await;
}

pub async fn one_endpoint_for_two_levels_sticks_until_it_is_disconnected(
    net: Net<impl Transport + 'static>,
) {
    let (server, client) = net.pair(0, 1, "both").await;
    // Each end's handler asks the other end through the same endpoint, whose only slot is taken.
    let ends = [(server.endpoint.clone(), server), (client.endpoint.clone(), client)];
    let endpoints: Vec<Endpoint> = ends.iter().map(|(endpoint, _)| endpoint.clone()).collect();
    for (endpoint, end) in ends {
        net.answer(end, move |question| {
            let endpoint = endpoint.clone();
            async move { pass_on(&endpoint, question).await }
        });
    }
    let asks = pin!(join(endpoints[0].transaction(b"0"), endpoints[1].transaction(b"0")));
    let patience = embassy_time::Timer::after_millis(200);
    let Either::Right(((), asks)) = select(asks, patience).await else {
        panic!("there is no cycle");
    };
    endpoints[0].destroy();
    let (one, other) = asks.await;
    assert_eq!(one.err(), Some(TransportError::Disconnected));
    assert_eq!(other.err(), Some(TransportError::Disconnected));
}

pub async fn a_reference_is_forwarded_twice_and_outlives_its_forwarder(
    net: Net<impl Transport + 'static>,
) {
    serve_buffers(&net.spawner, &net.nodes[0].0);
    let owned = pattern(1 << 20);
    let registration = net.nodes[0].0.register(&owned, Rights::READ).unwrap();
    let (a, mut b) = net.pair(0, 1, "first").await;
    let (b_next, mut c) = net.pair(1, 2, "second").await;
    let reference = LocalBuffer::from(&registration.reference().to_bytes());
    let forward = async {
        let message = b.message().await;
        b_next.endpoint.message(message.body().clone()).await.unwrap();
    };
    let receive = async { c.message().await.body().to_vec() };
    let (sent, (), received) = join3(a.endpoint.message(reference), forward, receive).await;
    sent.unwrap();
    drop((b.destroy().await, b_next.destroy().await));

    let received = RemoteBuffer::from_bytes(&received.try_into().unwrap()).unwrap();
    let Couriers { courier: mut user, driver: _driver } = courier(&net.spawner, &net.nodes[2].0);
    let copy = LocalBuffer::new(owned.len());
    user.receive(&received, 0, &copy).await.unwrap();
    assert!(copy.to_vec() == owned.to_vec());
}

pub async fn a_request_to_one_node_is_answered_by_another(net: Net<impl Transport + 'static>) {
    let (mut b, a) = net.pair(1, 0, "request").await;
    let (mut c, b_next) = net.pair(2, 1, "forward").await;
    let (mut a_in, c_back) = net.pair(0, 2, "reply").await;
    let request = a.endpoint.message(b"what?");
    let forward = async {
        let message = b.message().await;
        b_next.endpoint.message(message.body().clone()).await.unwrap();
    };
    let reply = async {
        let message = c.message().await;
        c_back.endpoint.message([message.body().to_vec(), b" that.".to_vec()].concat()).await
    };
    let answer = async { a_in.message().await.body().to_vec() };
    let ((request, ()), (reply, answer)) = join(join(request, forward), join(reply, answer)).await;
    assert_eq!((request, reply), (Ok(()), Ok(())));
    assert_eq!(answer, b"what? that.");
}

/// What the processes of a test have seen.
#[derive(Default)]
struct Seen {
    /// The number of the client's connection, which is in everything that it sends.
    connection: Cell<u64>,
    submitted: Cell<u64>,
    completed: Cell<u64>,
    answered: Cell<u64>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// A server that notices what belongs to another connection.
async fn strict_server<T: Transport + 'static>(mut end: End<T>) {
    let mut connection = None;
    while let Some(event) = end.events.next().await {
        match event {
            Event::Connect | Event::Disconnect(_) => connection = None,
            Event::Message(message) => connection = Some(message.body().to_vec()),
            Event::Transaction(asked) => {
                let parameters = asked.parameters().clone();
                let number = parameters.slice(0..8).to_vec();
                assert_eq!(Some(number), connection, "it is another connection's");
                asked.complete(0, parameters).unwrap();
            }
            Event::Appear | Event::Disappear => {}
        }
    }
}

/// A client that submits all the time, and counts.
async fn busy_client<T: Transport + 'static>(mut end: End<T>, seen: Rc<Seen>) {
    let (endpoint, seen) = (&end.endpoint.clone(), &*seen);
    seen.submitted.set(0);
    seen.completed.set(0);
    loop {
        match end.events.next().await {
            Some(Event::Connect) => {}
            Some(_) => continue,
            None => return,
        }
        count(&seen.connection);
        let number = seen.connection.get().to_le_bytes();
        let load = async {
            if endpoint.message(&number).await.is_err() {
                return;
            }
            let work = |worker: u8| async move {
                for item in 0u64.. {
                    let asked = [&number[..], &item.to_le_bytes(), &[worker]].concat();
                    count(&seen.submitted);
                    let answer = endpoint.transaction(asked.clone()).await;
                    count(&seen.completed);
                    match answer {
                        Ok(answer) => assert_eq!(answer.status().to_vec(), asked),
                        Err(error) => {
                            assert_eq!(error, TransportError::Disconnected);
                            return;
                        }
                    }
                    count(&seen.answered);
                }
            };
            join_all((0..3).map(work)).await;
        };
        let end = async {
            loop {
                match end.events.next().await {
                    Some(Event::Disconnect(disconnect)) => return disconnect,
                    Some(_) => {}
                    None => panic!("the endpoint ended in a connection"),
                }
            }
        };
        let ((), disconnect) = join(load, end).await;
        assert_eq!(seen.submitted.get(), seen.completed.get(), "something is outstanding");
        drop(disconnect);
    }
}

/// Kills either end `times` times under load, and checks that nothing is lost, done twice or
/// handled in another connection.
pub async fn kill(net: Net<impl Transport + 'static>, times: usize) {
    let seen = Rc::new(Seen::default());
    let serve = || net.spawner.spawn_local_with_handle(strict_server(net.serve(0, "mortal")));
    let visit = || {
        let client = busy_client(net.visit(1, 0, "mortal", 0), seen.clone());
        net.spawner.spawn_local_with_handle(client)
    };
    let (mut server, mut client): (RemoteHandle<()>, RemoteHandle<()>) =
        (serve().unwrap(), visit().unwrap());
    for time in 0..times {
        let before = seen.answered.get();
        while seen.answered.get() < before + 5 {
            embassy_time::Timer::after_micros(200).await;
        }
        // A task that is dropped is a process that has died.
        if time % 2 == 0 {
            drop(std::mem::replace(&mut server, serve().unwrap()));
        } else {
            drop(std::mem::replace(&mut client, visit().unwrap()));
        }
    }
}

pub async fn either_end_is_killed_many_times_under_load(net: Net<impl Transport + 'static>) {
    // Over both transports, and with the ends in Xen, this makes 100 deaths, and 1,000 in a soak.
    kill(net, soak_rounds().map_or(40, |rounds| 3 * rounds)).await;
}

pub async fn two_paths_are_cut_at_will_and_each_block_is_written_once(
    net: Net<impl Transport + 'static>,
) {
    const BLOCKS: u32 = 1000;
    const BETWEEN_CUTS: u64 = 10;
    let written = Rc::new(RefCell::new(BTreeMap::new()));
    let again = Rc::new(Cell::new(0));
    let serve = || {
        let (written, again) = (written.clone(), again.clone());
        let end = net.serve(0, "paths");
        let endpoint = end.endpoint.clone();
        net.answer(end, move |block| {
            // A block may come again, through the other path, if its answer was lost.
            let number = block.slice(0..4).to_vec();
            let former = written.borrow_mut().insert(number, block.to_vec());
            if former.is_some_and(|former| former == block.to_vec()) {
                again.set(again.get() + 1);
            }
            async move { Some(block) }
        });
        endpoint
    };
    let servers = RefCell::new([serve(), serve()]);
    let paths: Vec<End<_>> = (1..3).map(|number| net.visit(1, 0, "paths", number)).collect();
    let paths: Vec<Endpoint> = paths.into_iter().map(|end| submitter(&net.spawner, end)).collect();
    let answered = Cell::new(0);
    let write = async {
        for number in 0..BLOCKS {
            let block =
                [number.to_le_bytes(), number.wrapping_mul(2654435761).to_le_bytes()].concat();
            let mut path = number as usize;
            while paths[path % 2].transaction(block.clone()).await.is_err() {
                path += 1;
                embassy_time::Timer::after_micros(100).await;
            }
            count(&answered);
        }
    };
    let cut = async {
        for time in 0usize.. {
            // However slow the machine is, the paths are good for something before they are cut.
            let before = answered.get();
            while answered.get() < before + BETWEEN_CUTS {
                embassy_time::Timer::after_micros(200).await;
            }
            let mut servers = servers.borrow_mut();
            servers[time % 2].destroy();
            servers[time % 2] = serve();
        }
    };
    select(pin!(write), pin!(cut)).await;
    let written = written.borrow();
    assert_eq!(written.len(), BLOCKS as usize);
    for (number, (key, block)) in written
        .iter()
        .map(|(key, block)| (u32::from_le_bytes(key[..].try_into().unwrap()), (key, block)))
    {
        let expected =
            [key.clone(), number.wrapping_mul(2654435761).to_le_bytes().to_vec()].concat();
        assert_eq!(*block, expected);
    }
    assert!(again.get() < BLOCKS, "blocks come again only after a cut");
}

/// Makes a test of each of the above with what `$net` makes.
#[macro_export]
macro_rules! problems {
    ($with:ident: $($name:ident)*) => { $(
        #[test]
        fn $name() {
            $with(|net| problems::$name(net));
        }
    )* };
    ($with:ident) => {
        problems!($with:
            a_chain_of_three_with_quota_1_goes_on_under_load
            a_ring_of_three_with_quota_1_goes_on_under_load
            two_nodes_serve_each_other_with_quota_1_under_load
            one_endpoint_for_two_levels_sticks_until_it_is_disconnected
            a_reference_is_forwarded_twice_and_outlives_its_forwarder
            a_request_to_one_node_is_answered_by_another
            either_end_is_killed_many_times_under_load
            two_paths_are_cut_at_will_and_each_block_is_written_once
        );
    };
}
