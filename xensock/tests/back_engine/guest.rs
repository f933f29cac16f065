//! A guest whose test writes each request itself, and may break the protocol.

use embassy_time::{Duration, with_timeout};
use futures_executor::LocalPool;
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, pending, poll_fn};
use std::mem;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use xen::testing::{FakeMachine, World};
use xen::{
    DomId, Errno, GrantRef, Machine, Neighbour, Pages, Port, Shared, Side, Signal, yield_now,
};
use xensock::back::{Account, CommandLink, Limits, Violation, serve};
use xensock::ring::{
    CommandFront, Consumer, NotifyPolicy, Producer, copy_in, copy_out, len, split_at,
};
use xensock::testing::{FakeDom0, FakeNet};
use xensock::wire::{
    Call, Dialect, Family, Layout, Protocol, RECORD_HEADER, Record, Region, Request, Response,
    RingGrants, RingOffer,
};

pub const DOM0: DomId = DomId(0);
pub const GUEST: DomId = DomId(7);

/// The longest time for a test, even on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Short, so that tests can wait for it.
pub const LINGER: core::time::Duration = core::time::Duration::from_millis(150);

pub fn limits() -> Limits {
    Limits { sockets: 16, pages: 512, max_ring_order: 4, linger: LINGER, ..Limits::default() }
}

/// With a linger that no test reaches, even if the machine delays it.
pub fn patient() -> Limits {
    Limits { linger: core::time::Duration::from_secs(60), ..limits() }
}

/// An address of the fake network.
pub fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// A guest with its command ring.
pub struct Raw {
    protocol: Protocol,
    pub world: World,
    pub net: FakeNet,
    pub machine: FakeMachine,
    page: Pages,
    pub port: Port,
    signal: Arc<Signal>,
    commands: RefCell<CommandFront>,
    answers: RefCell<BTreeMap<u32, Response>>,
    next: Cell<u32>,
    /// The violation that ended the engine, if any.
    pub ended: Cell<Option<Violation>>,
    pub account: Rc<Account>,
    /// The number of polls of the engine.
    pub polls: Cell<usize>,
    /// The most work of one poll.
    pub most_work: Cell<u64>,
}

/// Runs a test against the engine. Then drops the engine, then the result of the test, and checks
/// that nothing is left behind.
pub fn run<F: Future>(test: impl FnOnce(Rc<Raw>) -> F) {
    run_with(limits(), test);
}

pub fn run_with<F: Future>(limits: Limits, test: impl FnOnce(Rc<Raw>) -> F) {
    run_protocol(Dialect::PvCalls.into(), limits, test);
}

pub fn run_protocol<F: Future>(
    protocol: Protocol,
    limits: Limits,
    test: impl FnOnce(Rc<Raw>) -> F,
) {
    let (world, net) = (World::new(), FakeNet::new());
    let machine = world.machine(GUEST);
    let page = machine.alloc(1).unwrap();
    let commands = RefCell::new(CommandFront::new(protocol, page.shared()));
    let grant = machine.grant(DOM0, &page, 0).unwrap();
    let signal = Arc::new(Signal::new());
    let port = machine.open_port(DOM0, signal.clone()).unwrap();
    let dom0 = FakeDom0::new(&world, DOM0, net.clone());
    let events = Arc::new(Signal::new());
    let link = CommandLink {
        ring: dom0.map(GUEST, &[grant]).unwrap(),
        channel: dom0.bind_port(GUEST, port, events.clone()).unwrap(),
        signal: events,
    };
    let raw = Rc::new(Raw {
        protocol,
        world,
        net,
        machine,
        page,
        port,
        signal,
        commands,
        answers: RefCell::default(),
        next: Cell::new(0),
        ended: Cell::new(None),
        account: Account::new(limits),
        polls: Cell::new(0),
        most_work: Cell::new(0),
    });
    let kept = LocalPool::new().run_until(async {
        let engine = async {
            {
                let account = raw.account.clone();
                let mut engine = pin!(serve(&dom0, GUEST, link, protocol, account));
                let violation = poll_fn(|cx| {
                    raw.polls.set(raw.polls.get() + 1);
                    let before = raw.account.turn().work();
                    let polled = engine.as_mut().poll(cx);
                    let work = raw.account.turn().work() - before;
                    raw.most_work.set(raw.most_work.get().max(work));
                    polled
                });
                raw.ended.set(Some(violation.await));
            }
            pending::<()>().await
        };
        // A task of its own, so that wakers of the test do not wake the engine.
        let mut engine = FuturesUnordered::from_iter([engine]);
        let test = with_timeout(LIMIT, test(raw.clone()));
        match select(pin!(test), engine.next()).await {
            Either::Left((in_time, _)) => in_time.expect("the test takes too long"),
            Either::Right(_) => unreachable!("the engine is pending for ever"),
        }
    });
    drop(kept);
    assert_eq!(raw.net.open_sockets(), 0, "the engine left a socket open");
    assert_eq!(raw.net.bound_sockets(), 0, "the engine left a listening socket behind");
    assert_eq!(raw.net.datagram_sockets(), 0, "the engine left a socket of datagrams behind");
    let Raw { machine, page, port, world, .. } = Rc::into_inner(raw).expect("the only reference");
    machine.close_port(port);
    machine.revoke(grant).expect("the engine left the command ring mapped");
    // SAFETY: its only grant was revoked, and it came from this machine.
    unsafe { machine.free(page) };
    world.assert_clean();
}

impl Raw {
    pub fn commands_page(&self) -> Shared<'_> {
        self.page.shared()
    }

    /// Sends a request.
    pub fn ask(&self, socket: u64, call: Call) -> u32 {
        let id = self.push(socket, call);
        self.publish();
        id
    }

    /// Writes a request that the backend does not see yet.
    pub fn push(&self, socket: u64, call: Call) -> u32 {
        let id = self.next.get();
        self.next.set(id + 1);
        let mut commands = self.commands.borrow_mut();
        commands.push(self.page.shared(), &Request { id, socket, call }).expect("no slot is free");
        id
    }

    /// Writes a request with these bytes and the next id. The backend does not see it yet.
    pub fn push_bytes(&self, mut bytes: [u8; 64]) -> u32 {
        let id = self.push(0, Call::Poll);
        bytes[..4].copy_from_slice(&id.to_ne_bytes());
        self.page.shared().write(64 + (id as usize % 32) * 64, &bytes);
        id
    }

    pub fn publish(&self) {
        let _ = self.commands.borrow_mut().publish(self.page.shared());
        self.knock();
    }

    /// Sends an event on the command ring's channel.
    pub fn knock(&self) {
        self.machine.notify(self.port);
    }

    /// The response to a request, if it has arrived.
    pub fn answered(&self, id: u32) -> Option<Result<u32, Errno>> {
        let mut commands = self.commands.borrow_mut();
        while let Some(response) = commands.pop(self.page.shared()).expect("impossible indexes") {
            let former = self.answers.borrow_mut().insert(response.id, response);
            assert!(former.is_none(), "a second answer to request {}", response.id);
        }
        self.answers.borrow().get(&id).map(|response| response.result)
    }

    /// The address in the response to a request, if it has arrived.
    pub fn address_in(&self, id: u32) -> Option<SocketAddr> {
        self.answers.borrow().get(&id)?.addr
    }

    pub async fn answer(&self, id: u32) -> Result<u32, Errno> {
        poll_fn(|cx| {
            self.signal.register(Side::Rx, cx.waker());
            loop {
                if let Some(answer) = self.answered(id) {
                    return Poll::Ready(answer);
                }
                if !self.commands.borrow().final_check(self.page.shared()) {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    pub async fn call(&self, socket: u64, call: Call) -> Result<u32, Errno> {
        self.answer(self.ask(socket, call)).await
    }

    pub async fn release(&self, socket: u64) -> Result<u32, Errno> {
        self.call(socket, Call::Release { reuse: false }).await
    }

    /// A data ring that can be offered.
    pub fn ring(&self, order: u32) -> Ring {
        let layout = self.protocol.layout(order).unwrap();
        let pages = self.machine.alloc(layout.pages).unwrap();
        let grants: Vec<GrantRef> = (0..layout.pages)
            .map(|index| self.machine.grant(DOM0, &pages, index).unwrap())
            .collect();
        let described =
            self.protocol.dialect.offer_ring(layout.split(pages.shared()).indexes, order, &grants);
        let signal = Arc::new(Signal::new());
        let port = self.machine.open_port(DOM0, signal.clone()).unwrap();
        Ring {
            machine: self.machine.clone(),
            offer: RingOffer { grants: described, port },
            producer: RefCell::new(Producer::new(layout.output)),
            consumer: RefCell::new(Consumer::new(layout.input, NotifyPolicy::HalfFull)),
            pages: Some(pages),
            grants,
            layout,
            signal,
        }
    }

    /// A socket that is connected to a socket of the test.
    pub async fn connect(&self, socket: u64, order: u32) -> (Ring, xensock::testing::FakeStream) {
        let server = self.net.listen(address(0)).unwrap();
        let ring = self.ring(order);
        assert_eq!(self.call(socket, Call::Socket { family: Family::V4 }).await, Ok(0));
        assert_eq!(self.call(socket, ring.connect(server.address())).await, Ok(0));
        (ring, server.accept().await)
    }

    /// A listening socket.
    pub async fn listen(&self, socket: u64, port: u16) {
        assert_eq!(self.call(socket, Call::Socket { family: Family::V4 }).await, Ok(0));
        assert_eq!(self.call(socket, Call::Bind { addr: address(port) }).await, Ok(0));
        assert_eq!(self.call(socket, Call::Listen { backlog: 8 }).await, Ok(0));
    }

    /// Waits until the engine is idle, however long other programs delay it.
    pub async fn settle(&self) {
        let mut polls = self.polls.get();
        let mut quiet = 0;
        while quiet < 100 {
            yield_now().await;
            let before = mem::replace(&mut polls, self.polls.get());
            quiet = if polls == before { quiet + 1 } else { 0 };
        }
    }
}

/// The guest's end of a data ring.
pub struct Ring {
    machine: FakeMachine,
    pub offer: RingOffer,
    pages: Option<Pages>,
    grants: Vec<GrantRef>,
    pub layout: Layout,
    signal: Arc<Signal>,
    producer: RefCell<Producer>,
    consumer: RefCell<Consumer>,
}

impl Ring {
    pub fn connect(&self, addr: SocketAddr) -> Call {
        Call::Connect { addr, flags: 0, ring: self.offer.clone() }
    }

    pub fn open(&self, peer: Option<SocketAddr>) -> Call {
        Call::Open { peer, ring: self.offer.clone() }
    }

    pub fn accept(&self, new: u64) -> Call {
        Call::Accept { new, ring: self.offer.clone() }
    }

    pub fn region(&self) -> Region<'_> {
        self.layout.split(self.pages.as_ref().expect("the pages were freed").shared())
    }

    pub fn notify(&self) {
        self.machine.notify(self.offer.port);
    }

    pub fn in_error(&self) -> Option<Errno> {
        self.consumer.borrow().error(self.region())
    }

    pub fn out_error(&self) -> Option<Errno> {
        self.producer.borrow().error(self.region())
    }

    /// Waits until `look` returns something, and calls it again after each event.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| {
            self.signal.register(Side::Rx, cx.waker());
            look().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Reads the next bytes; none at the end, whose reason is [`in_error`](Ring::in_error).
    pub async fn read(&self) -> Vec<u8> {
        self.until(|| {
            let region = self.region();
            let mut consumer = self.consumer.borrow_mut();
            let error = consumer.error(region);
            let data = consumer.data(region).unwrap();
            if len(&data) == 0 && error.is_none() {
                return None;
            }
            let mut bytes = vec![0; len(&data)];
            assert_eq!(copy_out(&data, &mut bytes), bytes.len());
            if consumer.advance(region, bytes.len()).is_due() {
                self.notify();
            }
            Some(bytes)
        })
        .await
    }

    pub async fn read_to_end(&self) -> (Vec<u8>, Option<Errno>) {
        let mut all = Vec::new();
        loop {
            let some = self.read().await;
            if some.is_empty() {
                return (all, self.in_error());
            }
            all.extend(some);
        }
    }

    /// Writes as many bytes as the ring has room for.
    pub fn put(&self, bytes: &[u8]) -> usize {
        let region = self.region();
        let mut producer = self.producer.borrow_mut();
        let room = producer.room(region).unwrap();
        let count = copy_in(&room, bytes);
        if producer.advance(region, count).is_due() {
            self.notify();
        }
        count
    }

    pub async fn write(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let put = self.until(|| Some(self.put(bytes)).filter(|put| *put > 0)).await;
            bytes = &bytes[put..];
        }
    }

    /// Writes a record as it is, if the ring has room for it.
    pub fn put_record(&self, record: Record, payload: &[u8]) -> bool {
        let region = self.region();
        let mut producer = self.producer.borrow_mut();
        let room = producer.room(region).unwrap();
        if len(&room) < record.size as usize {
            producer.arm(region, record.size);
            return false;
        }
        record.put(&room);
        copy_in(&split_at(room, RECORD_HEADER).1, payload);
        if producer.advance(region, record.size as usize).is_due() {
            self.notify();
        }
        true
    }

    /// Sends a datagram of a connected socket, if the ring has room for it.
    pub fn put_datagram(&self, payload: &[u8]) -> bool {
        self.put_record(Record::new(payload.len(), None), payload)
    }

    /// Sends a datagram, once the ring has room for it.
    pub async fn send(&self, to: Option<SocketAddr>, payload: &[u8]) {
        let record = Record::new(payload.len(), to);
        // The second look is the one after the request of an event.
        let put = || self.put_record(record, payload) || self.put_record(record, payload);
        self.until(|| put().then_some(())).await;
    }

    /// The next record of `in`, if one is there.
    pub fn try_receive(&self) -> Option<(Record, Vec<u8>)> {
        let region = self.region();
        let mut consumer = self.consumer.borrow_mut();
        let next = Record::next(consumer.data(region).unwrap()).expect("a valid record")?;
        let mut payload = vec![0; next.record.len as usize];
        assert_eq!(copy_out(&next.payload, &mut payload), payload.len());
        if consumer.advance(region, next.record.size as usize).is_due() {
            self.notify();
        }
        Some((next.record, payload))
    }

    /// Waits for the next record of `in`.
    pub async fn receive(&self) -> (Record, Vec<u8>) {
        self.until(|| {
            self.try_receive().or_else(|| {
                self.consumer.borrow().arm(self.region());
                self.try_receive()
            })
        })
        .await
    }

    /// How many datagrams the backend's domain has dropped.
    pub fn dropped(&self) -> u32 {
        self.region().indexes.load_u32(self.layout.dropped, Ordering::Relaxed)
    }

    pub fn unread(&self) -> usize {
        self.consumer.borrow_mut().data(self.region()).map_or(0, |data| len(&data))
    }

    pub fn unsent(&self) -> u32 {
        self.producer.borrow().unread(self.region()).unwrap()
    }
}

impl Drop for Ring {
    /// Frees the memory, which must no longer be mapped.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.machine.close_port(self.offer.port);
        for grant in &self.grants {
            self.machine.revoke(*grant).expect("the engine left a page mapped");
        }
        if let Some(pages) = self.pages.take() {
            // SAFETY: all grants were revoked, and the pages came from this machine.
            unsafe { self.machine.free(pages) };
        }
    }
}

/// Sets the reference of a data page in the indexes page.
pub fn set_ref(ring: &Ring, index: usize, grant: u32) {
    ring.region().indexes.store_u32(132 + 4 * index, grant, std::sync::atomic::Ordering::Relaxed);
}

pub fn set_order(ring: &Ring, order: u32) {
    ring.region().indexes.store_u32(128, order, std::sync::atomic::Ordering::Relaxed);
}

/// An offer of a ring with this grant as its indexes page.
pub fn offer(grant: u32, port: u32) -> RingOffer {
    RingOffer { grants: RingGrants::Indexes(GrantRef(grant)), port: Port(port) }
}

/// Bytes that differ wherever they are out of order or lost.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}
