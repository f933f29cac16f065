//! Sockets of datagrams of the fake network.

use super::net::{FakeNet, get_option, set_option};
use crate::back::{Datagrams, Outgoing, Quota, Received, Ring, Sent, Socket};
use crate::ring::{copy_out, len};
use crate::wire::{Group, Options, SocketOption};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use xen::{Errno, Shared};

/// The datagrams that a socket keeps until they are received. It drops others.
const QUEUE: usize = 64;

/// The longest datagram, as of UDP over IPv4.
const LONGEST: usize = 65_507;

/// The sockets of datagrams of a network.
#[derive(Default)]
pub(super) struct Sockets {
    bound: RefCell<BTreeMap<u16, Weak<Inner>>>,
    calls: Cell<usize>,
    held: Cell<bool>,
    /// The sockets that wait for a held network.
    waiting: RefCell<Vec<Waker>>,
    /// The payload that the engine sends: one buffer, so that tests can count what is allocated.
    payload: RefCell<Vec<u8>>,
}

/// A socket of datagrams. Dropping it closes it.
pub struct FakeDatagrams(Rc<Inner>);

struct Inner {
    net: FakeNet,
    at: SocketAddr,
    peer: Cell<Option<SocketAddr>>,
    queue: RefCell<VecDeque<(SocketAddr, Vec<u8>)>>,
    dropped: Cell<u32>,
    /// An error of an earlier datagram, which came back from its peer.
    error: Cell<Option<Errno>>,
    groups: RefCell<BTreeSet<IpAddr>>,
    options: Cell<Options>,
    waker: Cell<Option<Waker>>,
}

impl FakeNet {
    /// Opens a socket of datagrams at an address, of which only the port counts. Port 0 stands for
    /// any port.
    pub fn datagrams_at(&self, at: SocketAddr) -> Result<FakeDatagrams, Errno> {
        let bound = &self.datagrams().bound;
        let port = match at.port() {
            0 => self.free_port(|port| bound.borrow().contains_key(&port))?,
            port if bound.borrow().contains_key(&port) => return Err(Errno::EADDRINUSE),
            port => port,
        };
        let socket = Rc::new(Inner {
            net: self.clone(),
            at: SocketAddr::new(at.ip(), port),
            peer: Cell::default(),
            queue: RefCell::default(),
            dropped: Cell::new(0),
            error: Cell::default(),
            groups: RefCell::default(),
            options: Cell::default(),
            waker: Cell::default(),
        });
        bound.borrow_mut().insert(port, Rc::downgrade(&socket));
        Ok(FakeDatagrams(socket))
    }

    /// The number of calls of the engine that received or sent datagrams.
    pub fn datagram_calls(&self) -> usize {
        self.datagrams().calls.get()
    }

    /// Whether sockets of the engine have to wait before they send datagrams, as if the network
    /// were busy.
    pub fn hold_datagrams(&self, held: bool) {
        let Sockets { held: now, waiting, .. } = self.datagrams();
        now.set(held);
        if !held {
            waiting.take().into_iter().for_each(Waker::wake);
        }
    }

    /// The number of open sockets of datagrams.
    pub fn datagram_sockets(&self) -> usize {
        self.datagrams().bound.borrow().len()
    }

    /// Delivers a datagram. Without a receiver, nothing happens but an error.
    fn deliver(&self, from: &Inner, to: SocketAddr, payload: &[u8]) -> Result<(), Errno> {
        let bound = self.datagrams().bound.borrow();
        let all = bound.values().filter_map(Weak::upgrade);
        let receives = |socket: &Inner| match to.ip().is_multicast() {
            true => socket.groups.borrow().contains(&to.ip()),
            false => true,
        };
        // The socket that sends has this address for its receivers.
        let ip = Some(from.at.ip()).filter(|ip| !ip.is_unspecified()).unwrap_or(LOCAL);
        let at = SocketAddr::new(ip, from.at.port());
        let mut found = to.ip().is_multicast();
        for socket in all.filter(|socket| socket.at.port() == to.port() && receives(socket)) {
            found = true;
            // A connected socket has one peer.
            if socket.peer.get().is_none_or(|peer| peer.port() == from.at.port()) {
                socket.take(at, payload);
            }
        }
        if found { Ok(()) } else { Err(Errno::ECONNREFUSED) }
    }
}

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Inner {
    fn take(&self, from: SocketAddr, payload: &[u8]) {
        let mut queue = self.queue.borrow_mut();
        if queue.len() == QUEUE {
            self.dropped.set(self.dropped.get().wrapping_add(1));
        } else {
            queue.push_back((from, payload.into()));
        }
        drop(queue);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn send(&self, to: SocketAddr, payload: &[u8]) -> Result<(), Errno> {
        if payload.len() > LONGEST {
            return Err(Errno::EMSGSIZE);
        }
        let is_broadcast = to.ip() == IpAddr::V4(Ipv4Addr::BROADCAST);
        if is_broadcast && self.options.get().get(SocketOption::Broadcast) != Some(1) {
            return Err(Errno::EACCES);
        }
        if let Err(error) = self.net.deliver(self, to, payload)
            && self.peer.get().is_some()
        {
            self.error.set(Some(error));
            self.wake();
        }
        Ok(())
    }
}

fn count_call(net: &FakeNet) {
    let calls = &net.datagrams().calls;
    calls.set(calls.get() + 1);
}

impl FakeDatagrams {
    /// The address that it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.0.at
    }

    /// Sends a datagram.
    pub fn send(&self, to: SocketAddr, payload: &[u8]) -> Result<(), Errno> {
        self.0.send(to, payload)
    }

    /// Waits for a datagram, and returns its sender and its payload.
    pub async fn receive(&self) -> (SocketAddr, Vec<u8>) {
        poll_fn(|cx| {
            if let Some(datagram) = self.0.queue.borrow_mut().pop_front() {
                return Poll::Ready(datagram);
            }
            self.0.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// The next datagram, if one is there.
    pub fn try_receive(&self) -> Option<(SocketAddr, Vec<u8>)> {
        self.0.queue.borrow_mut().pop_front()
    }

    /// The number of datagrams that wait to be received.
    pub fn waiting(&self) -> usize {
        self.0.queue.borrow().len()
    }

    /// Makes it a member of a group.
    pub fn join(&self, group: IpAddr) {
        self.0.groups.borrow_mut().insert(group);
    }
}

impl Datagrams for FakeDatagrams {
    fn connect(&self, peer: SocketAddr) -> Result<(), Errno> {
        if peer.port() == 0 {
            return Err(Errno::EADDRNOTAVAIL);
        }
        self.0.peer.set(Some(peer));
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        room: [Shared<'_>; 2],
        quota: &Quota,
    ) -> Poll<Result<Received, Errno>> {
        let Inner { queue, dropped, error, waker, net, .. } = &*self.0;
        let mut received = Received { error: error.take(), ..Received::default() };
        let mut is_idle = received.error.is_none();
        let mut queue = queue.borrow_mut();
        while received.datagrams < quota.datagrams
            && received.bytes < quota.bytes
            && let Some((from, payload)) = queue.front()
        {
            is_idle = false;
            if payload.len() > quota.longest {
                dropped.set(dropped.get().wrapping_add(1));
            } else if !received.put(room, *from, payload) {
                break;
            }
            queue.pop_front();
        }
        received.dropped = dropped.get();
        if is_idle {
            waker.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        count_call(net);
        Poll::Ready(Ok(received))
    }

    fn poll_send(&self, cx: &mut Context<'_>, batch: &[Outgoing<'_>]) -> Poll<Result<Sent, Errno>> {
        let Inner { net, error, peer, .. } = &*self.0;
        let sockets = net.datagrams();
        if sockets.held.get() {
            sockets.waiting.borrow_mut().push(cx.waker().clone());
            return Poll::Pending;
        }
        count_call(net);
        for (datagrams, datagram) in batch.iter().enumerate() {
            // As Linux does, before it sends the next one.
            let earlier = error.take();
            if earlier.is_some() {
                return Poll::Ready(Ok(Sent { datagrams, error: earlier }));
            }
            let to = datagram.to.or(peer.get()).ok_or(Errno::EDESTADDRREQ)?;
            let mut payload = sockets.payload.borrow_mut();
            payload.resize(len(&datagram.payload), 0);
            copy_out(&datagram.payload, &mut payload);
            match self.0.send(to, &payload) {
                Ok(()) => {}
                Err(_) if datagrams > 0 => return Poll::Ready(Ok(Sent { datagrams, error: None })),
                Err(failed) => {
                    return Poll::Ready(Ok(Sent { datagrams: 1, error: Some(failed) }));
                }
            }
        }
        Poll::Ready(Ok(Sent { datagrams: batch.len(), error: None }))
    }

    fn join(&self, group: Group) -> Result<(), Errno> {
        let is_new = self.0.groups.borrow_mut().insert(group.addr());
        if is_new { Ok(()) } else { Err(Errno::EADDRINUSE) }
    }

    fn leave(&self, group: Group) -> Result<(), Errno> {
        let was_there = self.0.groups.borrow_mut().remove(&group.addr());
        if was_there { Ok(()) } else { Err(Errno::EADDRNOTAVAIL) }
    }

    fn set_ring(&self, ring: Weak<dyn Ring>) {
        self.0.net.report_ring(ring);
    }
}

impl Socket for FakeDatagrams {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        set_option(&self.0.options, option, value)
    }

    fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        get_option(&self.0.options, option)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        Ok(self.address())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.net.datagrams().bound.borrow_mut().remove(&self.at.port());
    }
}
