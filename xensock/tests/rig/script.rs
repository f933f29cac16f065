//! A backend whose test decides each step, and may break the protocol.

use super::{BACK, DOM0, FRONT, GUEST, Rig, connect};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use xen::testing::{BoundPort, MappedPages};
use xen::xenbus::{self, State, StateWatch};
use xen::xenstore::Store;
use xen::{Channel, Errno, GrantRef, Mapping, Neighbour, Port, Shared, Side, Signal};
use xensock::ring::{CommandBack, Consumer, NotifyPolicy, Producer, copy_in, copy_out, split_at};
use xensock::testing::FakeDom0;
use xensock::wire::{
    Call, Dialect, Extensions, Family, Layout, Protocol, RECORD_HEADER, RING_LIST, Record, Region,
    Request, Response, RingGrants, RingOffer,
};

pub struct Script {
    pub store: Store,
    pub watch: StateWatch,
    dom0: FakeDom0,
    page: MappedPages,
    channel: BoundPort,
    signal: Arc<Signal>,
    ring: CommandBack,
    protocol: Protocol,
}

/// A data ring, mapped by the script.
pub struct Mapped {
    pub layout: Layout,
    indexes: MappedPages,
    data: MappedPages,
    channel: BoundPort,
}

/// Writes a backend's nodes and goes to InitWait.
pub async fn offer(rig: &Rig, nodes: &[(&str, &str)]) -> (Store, StateWatch) {
    let store = connect(&rig.store, DOM0, &rig.spawner);
    for (name, value) in nodes {
        store.write(&format!("{BACK}/{name}"), value).await.unwrap();
    }
    let mut watch = StateWatch::new(&store, FRONT).await.unwrap();
    watch.wait_for(|state| state == State::Initialising).await.unwrap();
    xenbus::switch_state(&store, BACK, State::InitWait).await.unwrap();
    (store, watch)
}

/// The nodes of a correct backend.
pub const RIGHT: [(&str, &str); 3] =
    [("versions", "1"), ("max-page-order", "2"), ("function-calls", "1")];

/// What a script needs for datagram sockets with options.
pub const DATAGRAMS: Extensions =
    Extensions::DATAGRAM.union(Extensions::EVENT_INDEX).union(Extensions::OPTIONS);

impl Script {
    /// Connects as a backend without extensions should.
    pub async fn attach(rig: &Rig) -> Script {
        Self::attach_with(rig, Extensions::empty()).await
    }

    /// Connects as a backend with these extensions should.
    pub async fn attach_with(rig: &Rig, extensions: Extensions) -> Script {
        let values: Vec<_> = extensions.nodes().collect();
        let nodes = values.iter().map(|(name, value)| (*name, value.as_str()));
        let (store, mut watch) =
            offer(rig, &RIGHT.into_iter().chain(nodes).collect::<Vec<_>>()).await;
        watch.wait_for(|state| state == State::Initialised).await.unwrap();
        let number =
            async |name| xenbus::read_number::<u32>(&store, &format!("{FRONT}/{name}")).await;
        assert_eq!(store.read_string(&format!("{FRONT}/version")).await.unwrap(), "1");
        let grant = GrantRef(number("ring-ref").await.unwrap());
        let port = Port(number("port").await.unwrap());
        let signal = Arc::new(Signal::new());
        let page = rig.dom0.map(GUEST, &[grant]).unwrap();
        let channel = rig.dom0.bind_port(GUEST, port, signal.clone()).unwrap();
        xenbus::switch_state(&store, BACK, State::Connected).await.unwrap();
        let protocol = Protocol { dialect: Dialect::PvCalls, extensions };
        let ring = CommandBack::new(protocol);
        Script { protocol, store, watch, dom0: rig.dom0.clone(), page, channel, signal, ring }
    }

    /// The command ring's page.
    pub fn page(&self) -> Shared<'_> {
        self.page.shared()
    }

    pub fn notify(&self) {
        self.channel.notify();
    }

    /// Waits for the next request.
    pub async fn next(&mut self) -> Request {
        poll_fn(|cx| {
            self.signal.register(Side::Rx, cx.waker());
            loop {
                if let Some(request) = self.ring.pop(self.page.shared()).unwrap() {
                    return Poll::Ready(request.expect("the frontend sent a malformed request"));
                }
                if !self.ring.final_check(self.page.shared()) {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    pub fn answer(&mut self, response: Response) {
        self.ring.push(self.page.shared(), &response);
        if self.ring.publish(self.page.shared()).is_due() {
            self.channel.notify();
        }
    }

    /// Waits for a request and answers it with success.
    pub async fn grant_next(&mut self) -> Request {
        let request = self.next().await;
        self.answer(request.answer(Ok(0)));
        request
    }

    /// Lets the frontend connect a socket.
    pub async fn let_connect(&mut self) -> (Request, Mapped) {
        assert_eq!(self.grant_next().await.call, Call::Socket { family: Family::V4 });
        let request = self.next().await;
        let Call::Connect { ring, .. } = &request.call else { panic!("{request:?}") };
        let mapped = self.map(ring);
        self.answer(request.answer(Ok(0)));
        (request, mapped)
    }

    /// Answers requests with success until a datagram socket is opened. Returns them and the ring.
    pub async fn let_open(&mut self) -> (Vec<Call>, Mapped) {
        let mut calls = Vec::new();
        loop {
            let request = self.next().await;
            calls.push(request.call.clone());
            let opened = match &request.call {
                Call::Open { ring, .. } => Some(self.map(ring)),
                _ => None,
            };
            self.answer(request.answer(Ok(0)));
            if let Some(mapped) = opened {
                return (calls, mapped);
            }
        }
    }

    pub fn map(&self, offer: &RingOffer) -> Mapped {
        let RingGrants::Indexes(page) = offer.grants else { panic!("{offer:?}") };
        let indexes = self.dom0.map(GUEST, &[page]).unwrap();
        let mut list = [0; RING_LIST];
        indexes.shared().read(0, &mut list);
        let (order, grants) = Dialect::PvCalls.read_ring(&list, 2).unwrap();
        let data = self.dom0.map(GUEST, &grants).unwrap();
        let signal = Arc::new(Signal::new());
        let channel = self.dom0.bind_port(GUEST, offer.port, signal).unwrap();
        Mapped { layout: self.protocol.layout(order).unwrap(), indexes, data, channel }
    }

    /// Closes in an orderly way.
    pub async fn close(mut self) {
        drop((self.page, self.channel));
        xenbus::switch_state(&self.store, BACK, State::Closing).await.unwrap();
        self.watch.wait_for(|state| state == State::Closed).await.unwrap();
        xenbus::switch_state(&self.store, BACK, State::Closed).await.unwrap();
    }
}

impl Mapped {
    pub fn region(&self) -> Region<'_> {
        Region { indexes: self.indexes.shared(), data: self.data.shared() }
    }

    pub fn notify(&self) {
        self.channel.notify();
    }

    /// Overwrites the first bytes of `in`.
    pub fn overwrite(&self, bytes: &[u8]) {
        self.data.shared().write(self.layout.input.start, bytes);
    }
}

/// The records of a datagram socket, as its backend writes and reads them.
pub struct Records<'a> {
    ring: &'a Mapped,
    producer: Producer,
    consumer: Consumer,
}

impl<'a> Records<'a> {
    pub fn new(ring: &'a Mapped) -> Self {
        let consumer = Consumer::new(ring.layout.output, NotifyPolicy::FullOrEmpty);
        Records { ring, producer: Producer::new(ring.layout.input), consumer }
    }

    /// Puts a record into the ring, whether it is well-formed or not.
    pub fn put(&mut self, record: Record, payload: &[u8]) {
        let room = self.producer.room(self.ring.region()).unwrap();
        record.put(&room);
        copy_in(&split_at(room, RECORD_HEADER).1, payload);
        if self.producer.advance(self.ring.region(), record.size as usize).is_due() {
            self.ring.notify();
        }
    }

    /// Takes the next record.
    pub fn take(&mut self) -> Option<(Record, Vec<u8>)> {
        let next = Record::next(self.consumer.data(self.ring.region()).unwrap()).unwrap()?;
        let mut payload = vec![0; next.record.len as usize];
        copy_out(&next.payload, &mut payload);
        if self.consumer.advance(self.ring.region(), next.record.size as usize).is_due() {
            self.ring.notify();
        }
        Some((next.record, payload))
    }
}

/// The response that refuses a request.
pub fn refusal(request: &Request, error: Errno) -> Response {
    request.answer(Err(error))
}
