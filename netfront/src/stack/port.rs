//! A bound port of UDP: the socket that receives, and those that send.
//!
//! smoltcp's socket sends its datagrams in order, so one to a neighbour that does not answer ARP
//! would hold up all others for good. Here a port sends over lanes, sockets of smoltcp that receive
//! nothing: while one waits for a neighbour, datagrams to other addresses take another.

use super::config::Config;
use super::state::State;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::net::Ipv4Addr;
use core::task::{Context, Poll, Waker};
use embassy_time::{Duration, Instant};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::udp;
use smoltcp::wire::{IpAddress, IpEndpoint, IpListenEndpoint};
use xen::Errno;

/// How long datagrams wait for a neighbour that does not answer, as in Linux.
const NEIGHBOUR_TIMEOUT: Duration = Duration::from_secs(3);

/// The most lanes of a port.
const MAX_LANES: usize = 4;

/// The hop limit of multicast datagrams: they stay in the network (RFC 1112, section 6.1).
const MULTICAST_HOPS: u8 = 1;

/// A bound port.
pub(super) struct Port {
    /// The socket that receives. It is before the lanes in the socket set: smoltcp gives a
    /// broadcast to the first socket with its port.
    pub(super) socket: SocketHandle,
    pub(super) local: IpListenEndpoint,
    /// The only peer, if the socket is connected.
    pub(super) peer: Option<IpEndpoint>,
    /// Bound to IPv4's unspecified address.
    pub(super) only_v4: bool,
    lanes: RefCell<Vec<Lane>>,
    /// The groups that were joined.
    pub(super) groups: RefCell<Vec<IpAddress>>,
    /// An error that the next operation returns.
    pub(super) error: Cell<Option<Errno>>,
    /// Woken when `error` is set.
    pub(super) receiver: RefCell<Option<Waker>>,
    /// Woken when a lane has sent something.
    sender: RefCell<Option<Waker>>,
}

/// A socket that sends.
pub(super) struct Lane {
    socket: SocketHandle,
    multicast: bool,
    /// The destination of all its datagrams, if they have the same.
    to: Option<IpAddress>,
    /// It waits for a neighbour.
    stuck: bool,
    /// The bytes that were queued so far, and how many of them did not wait any more at the last
    /// update.
    queued: u64,
    sent: u64,
    /// When it has last sent something, or was empty.
    progress: Instant,
    /// It has carried a datagram without bytes: smoltcp does not show whether that was sent.
    has_empty: bool,
}

impl Config {
    fn datagrams(&self, receive: usize, transmit: usize) -> Result<udp::Socket<'static>, Errno> {
        // Each datagram may be as short as this on average before their number is the limit.
        const SHORT: usize = 512;
        let buffer = |bytes: usize| {
            let (mut slots, mut payload) = (Vec::new(), Vec::new());
            let count = bytes.div_ceil(SHORT);
            slots.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
            slots.resize(count, udp::PacketMetadata::EMPTY);
            payload.try_reserve_exact(bytes).map_err(|_| Errno::ENOMEM)?;
            payload.resize(bytes, 0);
            Ok(udp::PacketBuffer::new(slots, payload))
        };
        Ok(udp::Socket::new(buffer(receive)?, buffer(transmit)?))
    }
}

impl Lane {
    fn new(
        config: &Config,
        sockets: &mut SocketSet<'static>,
        port: u16,
        after: SocketHandle,
        multicast: bool,
    ) -> Result<Lane, Errno> {
        let mut socket = config.datagrams(0, config.datagram_transmit_buffer)?;
        // No packet has this destination.
        let nowhere = Some(Ipv4Addr::UNSPECIFIED.into());
        socket.bind(IpListenEndpoint { addr: nowhere, port }).map_err(|_| Errno::EINVAL)?;
        socket.set_hop_limit(multicast.then_some(MULTICAST_HOPS));
        let socket = add_after(sockets, socket, after);
        let progress = Instant::now();
        let (to, stuck, has_empty) = (None, false, false);
        Ok(Lane { socket, multicast, to, stuck, queued: 0, sent: 0, progress, has_empty })
    }

    fn waiting(&self, sockets: &SocketSet<'static>) -> u64 {
        sockets.get::<udp::Socket<'_>>(self.socket).send_queue() as u64
    }

    /// The address that its datagrams wait for, if all go to the same.
    fn waits_for(&self, sockets: &SocketSet<'static>) -> Option<IpAddress> {
        self.to.filter(|_| self.stuck && !self.is_empty(sockets))
    }

    fn is_empty(&self, sockets: &SocketSet<'static>) -> bool {
        self.waiting(sockets) == 0
    }

    /// Notes whether the lane has sent something. Returns when its datagrams have waited too long.
    fn update(&mut self, sockets: &SocketSet<'static>, had_room: bool) -> Option<Instant> {
        let waiting = self.waiting(sockets);
        // The ring's padding waits too, but adds to nothing that is stuck.
        let sent = self.queued.wrapping_sub(waiting);
        if waiting == 0 || sent != self.sent {
            (self.progress, self.stuck) = (Instant::now(), false);
        }
        self.sent = sent;
        self.stuck |= waiting > 0 && had_room;
        (waiting > 0).then_some(self.progress + NEIGHBOUR_TIMEOUT)
    }
}

/// Adds a socket behind another one in the set.
fn add_after(
    sockets: &mut SocketSet<'static>,
    socket: udp::Socket<'static>,
    after: SocketHandle,
) -> SocketHandle {
    let empty = || udp::PacketBuffer::new(Vec::new(), Vec::new());
    // Fills the free places before it.
    let mut before = Vec::new();
    let place = loop {
        let place = sockets.add(udp::Socket::new(empty(), empty()));
        if place > after {
            break place;
        }
        before.push(place);
    };
    *sockets.get_mut(place) = socket;
    for place in before {
        sockets.remove(place);
    }
    place
}

impl Port {
    /// Binds a port that is free.
    pub(super) fn new(
        config: &Config,
        sockets: &mut SocketSet<'static>,
        local: IpListenEndpoint,
        peer: Option<IpEndpoint>,
        only_v4: bool,
    ) -> Result<Port, Errno> {
        let mut socket = config.datagrams(config.datagram_receive_buffer, 0)?;
        socket.bind(local).map_err(|_| Errno::EINVAL)?;
        Ok(Port {
            socket: sockets.add(socket),
            local,
            peer,
            only_v4,
            lanes: RefCell::default(),
            groups: RefCell::default(),
            error: Cell::default(),
            receiver: RefCell::default(),
            sender: RefCell::default(),
        })
    }

    /// Whether both receive the same datagrams.
    pub(super) fn overlaps(&self, other: IpListenEndpoint) -> bool {
        let IpListenEndpoint { addr, port } = self.local;
        port == other.port && (addr.is_none() || other.addr.is_none() || addr == other.addr)
    }

    /// Whether a datagram from this address is for the port.
    pub(super) fn accepts(&self, from: IpEndpoint) -> bool {
        let wrong_family = self.only_v4 && matches!(from.addr, IpAddress::Ipv6(_));
        !wrong_family && self.peer.is_none_or(|peer| peer == from)
    }

    /// Queues a datagram from `source`. `to` is of the same family, and `data` fits into a lane.
    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        config: &Config,
        state: &mut State,
        source: IpAddress,
        to: IpEndpoint,
        data: &[u8],
    ) -> Poll<Result<(), Errno>> {
        let mut lanes = self.lanes.borrow_mut();
        let sockets = &mut state.sockets;
        let multicast = to.addr.is_multicast();
        // The lane that has datagrams for the same address, so that they stay in order.
        let same = |lane: &Lane| lane.to == Some(to.addr) && !lane.is_empty(sockets);
        let free = |lane: &Lane| lane.multicast == multicast && !lane.stuck;
        let index = match lanes.iter().position(same).or_else(|| lanes.iter().position(free)) {
            Some(index) => index,
            None if lanes.len() < MAX_LANES => {
                lanes.push(Lane::new(config, sockets, self.local.port, self.socket, multicast)?);
                lanes.len() - 1
            }
            None => return self.wait(cx),
        };
        let lane = &mut lanes[index];
        let alone = lane.is_empty(sockets);
        let metadata = udp::UdpMetadata {
            endpoint: to,
            local_address: Some(source),
            meta: Default::default(),
        };
        match sockets.get_mut::<udp::Socket<'_>>(lane.socket).send_slice(data, metadata) {
            Ok(()) => {
                lane.to = (alone || lane.to == Some(to.addr)).then_some(to.addr);
                lane.has_empty |= data.is_empty();
                lane.queued += data.len() as u64;
                Poll::Ready(Ok(()))
            }
            Err(udp::SendError::Unaddressable) => Poll::Ready(Err(Errno::EINVAL)),
            Err(udp::SendError::BufferFull) => self.wait(cx),
        }
    }

    fn wait<T>(&self, cx: &mut Context<'_>) -> Poll<T> {
        *self.sender.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Called after all that could be sent was; `had_room` if the interface could have sent more.
    /// Discards what has waited too long for a neighbour. Returns the number of discarded lanes,
    /// and when to call again.
    pub(super) fn update(
        &self,
        sockets: &mut SocketSet<'static>,
        had_room: bool,
    ) -> (u64, Option<Instant>) {
        let (now, mut discarded, mut due) = (Instant::now(), 0, None);
        self.lanes.borrow_mut().retain_mut(|lane| {
            let Some(end) = lane.update(sockets, had_room) else { return true };
            if end <= now {
                sockets.remove(lane.socket);
                discarded += 1;
                return false;
            }
            due = due.into_iter().chain([end]).min();
            true
        });
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
        (discarded, due)
    }

    /// Adds the addresses that datagrams wait for.
    pub(super) fn add_waiting(&self, sockets: &SocketSet<'static>, to: &mut Vec<IpAddress>) {
        to.extend(self.lanes.borrow().iter().filter_map(|lane| lane.waits_for(sockets)));
    }

    /// Sets the error of the next operation.
    pub(super) fn fail(&self, error: Errno) {
        self.error.set(Some(error));
        if let Some(receiver) = self.receiver.take() {
            receiver.wake();
        }
    }

    /// Frees the port. Returns the lanes that still have something to send, and for how long.
    pub(super) fn close(
        &self,
        sockets: &mut SocketSet<'static>,
    ) -> impl Iterator<Item = Unsent> + use<'_> {
        sockets.remove(self.socket);
        let until = Instant::now() + NEIGHBOUR_TIMEOUT;
        self.lanes.take().into_iter().map(move |lane| Unsent { lane, until })
    }
}

/// A lane of a port that was closed.
pub(super) struct Unsent {
    lane: Lane,
    until: Instant,
}

impl Unsent {
    /// The address that its datagrams wait for.
    pub(super) fn waits_for(&self, sockets: &SocketSet<'static>) -> Option<IpAddress> {
        self.lane.to.filter(|_| !self.lane.is_empty(sockets))
    }

    /// Frees the lane if it has sent everything, or its time has passed. Returns when that will be.
    pub(super) fn update(&self, sockets: &mut SocketSet<'static>) -> Option<Instant> {
        let sent = self.lane.is_empty(sockets) && !self.lane.has_empty;
        if sent || self.until <= Instant::now() {
            sockets.remove(self.lane.socket);
            return None;
        }
        Some(self.until)
    }
}
