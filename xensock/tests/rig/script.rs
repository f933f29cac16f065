//! A backend whose test decides each step, and may break the protocol.

use super::{BACK, DOM0, FRONT, GUEST, Rig, connect};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use xen::testing::{BoundPort, MappedPages};
use xen::xenbus::{self, State, StateWatch};
use xen::xenstore::Store;
use xen::{Channel, Errno, GrantRef, Mapping, Neighbour, Port, Shared, Side, Signal};
use xensock::ring::CommandBack;
use xensock::testing::FakeDom0;
use xensock::wire::{
    Call, Dialect, Family, Layout, Protocol, RING_LIST, Region, Request, Response, RingGrants,
    RingOffer,
};

pub struct Script {
    pub store: Store,
    pub watch: StateWatch,
    dom0: FakeDom0,
    page: MappedPages,
    channel: BoundPort,
    signal: Arc<Signal>,
    ring: CommandBack,
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

impl Script {
    /// Connects as a backend should.
    pub async fn attach(rig: &Rig) -> Script {
        let (store, mut watch) = offer(rig, &RIGHT).await;
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
        let ring = CommandBack::new(Dialect::PvCalls);
        Script { store, watch, dom0: rig.dom0.clone(), page, channel, signal, ring }
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

    pub fn map(&self, offer: &RingOffer) -> Mapped {
        let RingGrants::Indexes(page) = offer.grants else { panic!("{offer:?}") };
        let indexes = self.dom0.map(GUEST, &[page]).unwrap();
        let mut list = [0; RING_LIST];
        indexes.shared().read(0, &mut list);
        let (order, grants) = Dialect::PvCalls.read_ring(&list, 2).unwrap();
        let data = self.dom0.map(GUEST, &grants).unwrap();
        let signal = Arc::new(Signal::new());
        let channel = self.dom0.bind_port(GUEST, offer.port, signal).unwrap();
        Mapped {
            layout: Protocol::from(Dialect::PvCalls).layout(order).unwrap(),
            indexes,
            data,
            channel,
        }
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
}

/// The response that refuses a request.
pub fn refusal(request: &Request, error: Errno) -> Response {
    request.answer(Err(error))
}
