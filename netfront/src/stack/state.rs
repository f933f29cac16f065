//! The state that the handles and the runner share.

use super::addresses::Addresses;
use super::backlog::Backlog;
use super::config::Config;
use super::icmp::{Icmp, Refused};
use super::port::{Port, Unsent};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::net::IpAddr;
use core::task::Waker;
use embassy_time::Instant;
use smoltcp::iface::{self, Interface, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::{Socket, tcp};
use smoltcp::wire::{EthernetAddress, IpAddress, IpEndpoint, IpListenEndpoint};
use xen::{Errno, WaitList};

/// The dynamic ports (RFC 6335): the first one, and their number.
const FIRST_DYNAMIC_PORT: u16 = 49152;
const DYNAMIC_PORTS: u16 = 16384;

/// Shared by all handles.
pub(super) struct Inner {
    pub(super) config: Config,
    state: RefCell<State>,
    /// Woken when the interface gets or loses an address.
    pub(super) changed: WaitList,
    /// Whether a socket needs the runner's attention.
    work: Cell<bool>,
    runner: RefCell<Option<Waker>>,
    statistics: Cell<Statistics>,
}

/// Counts of connections, datagrams and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Streams connected or accepted so far.
    pub streams_opened: u64,
    /// Streams that exist now.
    pub streams_open: u64,
    /// Bytes read from streams.
    pub bytes_in: u64,
    /// Bytes written to streams.
    pub bytes_out: u64,
    /// Sockets of datagrams that exist now.
    pub datagram_sockets_open: u64,
    /// Datagrams received from sockets.
    pub datagrams_received: u64,
    /// Datagrams that sockets have accepted for sending.
    pub datagrams_sent: u64,
    /// How often datagrams were discarded because a neighbour did not answer ARP or NDP.
    pub unanswered_neighbours: u64,
}

/// smoltcp's objects, and the stack's lists of sockets.
pub(super) struct State {
    pub(super) interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) addresses: Addresses,
    /// The streams' sockets, and where to store why the stack has ended one.
    pub(super) streams: Vec<(SocketHandle, Rc<Cell<Option<Errno>>>)>,
    listeners: Vec<Weak<Backlog>>,
    /// Sockets whose user has dropped them, and until when each may send.
    closing: Vec<(SocketHandle, Instant)>,
    ports: Vec<Weak<Port>>,
    /// What closed ports still send.
    unsent: Vec<Unsent>,
    icmp: Icmp,
    /// The most bytes of an IP packet.
    pub(super) mtu: usize,
    next_port: u16,
}

/// The current time, for smoltcp.
pub(super) fn now() -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(Instant::now().as_micros() as i64)
}

/// smoltcp's interface over a device with its current capabilities.
pub(super) fn interface<D: Device>(device: &mut D, mac: EthernetAddress, seed: u64) -> Interface {
    let mut config = iface::Config::new(mac.into());
    config.random_seed = seed;
    Interface::new(config, device, now())
}

impl Inner {
    pub(super) fn new<D: Device>(device: &mut D, mac: EthernetAddress, config: Config) -> Self {
        let mut sockets = SocketSet::new(Vec::new());
        let mut interface = interface(device, mac, config.seed);
        let addresses = Addresses::new(&config, &mut sockets);
        addresses.apply(&mut interface, mac);
        let icmp = Icmp::new(&mut sockets);
        let state = State {
            interface,
            sockets,
            addresses,
            streams: Vec::new(),
            listeners: Vec::new(),
            closing: Vec::new(),
            ports: Vec::new(),
            unsent: Vec::new(),
            icmp,
            mtu: device.capabilities().ip_mtu(),
            next_port: (config.seed % u64::from(DYNAMIC_PORTS)) as u16,
        };
        Inner {
            config,
            state: RefCell::new(state),
            changed: WaitList::default(),
            work: Cell::new(true),
            runner: RefCell::default(),
            statistics: Cell::default(),
        }
    }

    /// Runs `work` with the state borrowed.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.borrow_mut())
    }

    /// Makes the runner look at the sockets.
    pub(super) fn kick(&self) {
        self.work.set(true);
        if let Some(waker) = self.runner.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether there was a [`kick`](Inner::kick) since the last call.
    pub(super) fn take_work(&self) -> bool {
        self.work.take()
    }

    /// Sets the waker that `kick` wakes.
    pub(super) fn set_runner(&self, waker: &Waker) {
        *self.runner.borrow_mut() = Some(waker.clone());
    }

    /// Updates the statistics.
    pub(super) fn count(&self, update: impl FnOnce(&mut Statistics)) {
        let mut statistics = self.statistics.get();
        update(&mut statistics);
        self.statistics.set(statistics);
    }

    pub(super) fn statistics(&self) -> Statistics {
        self.statistics.get()
    }
}

impl State {
    pub(super) fn tcp(&mut self, socket: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(socket)
    }

    /// A dynamic port that no socket uses, from a random one on if there is a source.
    fn free_port(
        &mut self,
        config: &Config,
        is_taken: impl Fn(&State, u16) -> bool,
    ) -> Result<u16, Errno> {
        if let Some(random) = config.random {
            self.next_port = (random() % u64::from(DYNAMIC_PORTS)) as u16;
        }
        for _ in 0..DYNAMIC_PORTS {
            let port = FIRST_DYNAMIC_PORT + self.next_port;
            self.next_port = (self.next_port + 1) % DYNAMIC_PORTS;
            if !is_taken(self, port) {
                return Ok(port);
            }
        }
        Err(Errno::EADDRNOTAVAIL)
    }

    /// A port that no socket of TCP uses.
    pub(super) fn free_tcp_port(&mut self, config: &Config) -> Result<u16, Errno> {
        self.free_port(config, |state, port| {
            state.sockets.iter().any(|(_, socket)| match socket {
                Socket::Tcp(socket) => {
                    socket.local_endpoint().is_some_and(|local| local.port == port)
                        || socket.listen_endpoint().port == port
                }
                _ => false,
            })
        })
    }

    /// A port that no socket of UDP uses.
    pub(super) fn free_udp_port(&mut self, config: &Config) -> Result<u16, Errno> {
        self.free_port(config, |state, port| state.ports().any(|other| other.local.port == port))
    }

    /// The address to send from.
    pub(super) fn source(&self, to: IpAddr) -> Result<IpAddr, Errno> {
        if !self.addresses.has_route(to) {
            return Err(Errno::ENETUNREACH);
        }
        let source = self.interface.get_source_address(&to.into());
        source.map(Into::into).ok_or(Errno::ENETUNREACH)
    }

    /// Whether the interface has an address to connect from.
    pub(super) fn has_address(&self, v6: bool) -> bool {
        v6 || self.addresses.ipv4().is_some()
    }

    /// Listens at an address unless another listener's overlaps.
    pub(super) fn listen(
        &mut self,
        config: &Config,
        addr: IpListenEndpoint,
    ) -> Result<Rc<Backlog>, Errno> {
        let mut others = self.listeners.iter().filter_map(Weak::upgrade);
        if others.any(|other| other.overlaps(addr)) {
            return Err(Errno::EADDRINUSE);
        }
        let backlog = Rc::new(Backlog::new(addr, config, &mut self.sockets)?);
        self.listeners.push(Rc::downgrade(&backlog));
        Ok(backlog)
    }

    /// Updates the listeners' backlogs.
    pub(super) fn update_listeners(&mut self, config: &Config) {
        let State { listeners, sockets, .. } = self;
        listeners.retain(|listener| {
            let listener = listener.upgrade();
            listener.inspect(|listener| listener.update(config, sockets)).is_some()
        });
    }

    fn ports(&self) -> impl Iterator<Item = Rc<Port>> {
        self.ports.iter().filter_map(Weak::upgrade)
    }

    /// Binds a port of UDP unless another one overlaps.
    pub(super) fn bind_port(
        &mut self,
        config: &Config,
        local: IpListenEndpoint,
        peer: Option<IpEndpoint>,
        only_v4: bool,
    ) -> Result<Rc<Port>, Errno> {
        if self.ports().any(|other| other.overlaps(local)) {
            return Err(Errno::EADDRINUSE);
        }
        let port = Rc::new(Port::new(config, &mut self.sockets, local, peer, only_v4)?);
        self.ports.push(Rc::downgrade(&port));
        Ok(port)
    }

    /// Frees a port.
    pub(super) fn close_port(&mut self, port: &Rc<Port>) {
        self.ports.retain(|other| !core::ptr::eq(other.as_ptr(), Rc::as_ptr(port)));
        self.unsent.extend(port.close(&mut self.sockets));
        self.leave_groups(&port.groups.take());
    }

    /// Leaves the groups that no port has joined.
    pub(super) fn leave_groups(&mut self, groups: &[IpAddress]) {
        for &group in groups {
            if !self.ports().any(|port| port.groups.borrow().contains(&group)) {
                // It is a group, as it could be joined.
                let _ = self.interface.leave_multicast_group(group);
            }
        }
    }

    /// Joins all groups again, on a new interface.
    fn join_groups(&mut self) {
        for port in self.ports.iter().filter_map(Weak::upgrade) {
            for &group in &*port.groups.borrow() {
                // The old interface had room for the same groups.
                let _ = self.interface.join_multicast_group(group);
            }
        }
    }

    /// Reports refused datagrams to connected sockets.
    pub(super) fn report_refused(&mut self) {
        while let Some(Refused { from, to }) = self.icmp.next(&mut self.sockets) {
            let is_sender = |port: &Rc<Port>| {
                let IpListenEndpoint { addr, port: number } = port.local;
                addr == Some(from.addr) && number == from.port && port.peer == Some(to)
            };
            if let Some(port) = self.ports().find(is_sender) {
                port.fail(Errno::ECONNREFUSED);
            }
        }
    }

    /// Called after all that could be sent was. Discards datagrams that wait for a neighbour too
    /// long. Returns how often that was, and when the next time is.
    pub(super) fn update_ports(&mut self, had_room: bool) -> (u64, Option<Instant>) {
        let State { ports, unsent, sockets, .. } = self;
        let (mut discarded, mut due) = (0, None);
        let mut note = |end: Option<Instant>| due = due.into_iter().chain(end).min();
        for port in ports.iter().filter_map(Weak::upgrade) {
            let (lanes, end) = port.update(sockets, had_room);
            discarded += lanes;
            note(end);
        }
        unsent.retain(|unsent| {
            let end = unsent.update(sockets);
            note(end);
            end.is_some()
        });
        (discarded, due)
    }

    /// The neighbours that sockets may wait for.
    pub(super) fn waiting_neighbours(&self) -> Vec<IpAddr> {
        let State { sockets, unsent, addresses, .. } = self;
        let mut to = Vec::new();
        self.ports().for_each(|port| port.add_waiting(sockets, &mut to));
        to.extend(unsent.iter().filter_map(|unsent| unsent.waits_for(sockets)));
        let tcp = || {
            sockets.iter().filter_map(|(_, socket)| match socket {
                Socket::Tcp(socket) => Some(socket),
                _ => None,
            })
        };
        let is_opening = |socket: &&tcp::Socket<'_>| {
            matches!(socket.state(), tcp::State::SynSent | tcp::State::SynReceived)
        };
        let remote = |socket: &tcp::Socket<'_>| socket.remote_endpoint().map(|remote| remote.addr);
        to.extend(tcp().filter(is_opening).filter_map(remote));
        // An open connection does not show whether it waits for a neighbour.
        if !to.is_empty() {
            to.extend(tcp().filter(|socket| socket.send_queue() > 0).filter_map(remote));
        }
        let mut all = Vec::new();
        for neighbour in to.into_iter().filter_map(|to| addresses.neighbour(to.into())) {
            if !all.contains(&neighbour) {
                all.push(neighbour);
            }
        }
        all
    }

    /// Uses a new interface.
    pub(super) fn replace_interface(&mut self, interface: Interface, mtu: usize) {
        self.interface = interface;
        self.mtu = mtu;
        self.join_groups();
    }

    /// Applies the addresses, and ends the streams from addresses that the interface has lost.
    pub(super) fn apply_addresses(&mut self, mac: EthernetAddress) {
        let State { interface, sockets, addresses, streams, .. } = self;
        addresses.apply(interface, mac);
        for (socket, error) in streams {
            let socket: &mut tcp::Socket<'_> = sockets.get_mut(*socket);
            if socket.local_endpoint().is_some_and(|local| !interface.has_ip_addr(local.addr)) {
                error.set(Some(Errno::ENETDOWN));
                socket.abort();
            }
        }
    }

    /// Keeps a socket that its user has dropped until it has sent everything or `until` has passed.
    pub(super) fn retire(&mut self, socket: SocketHandle, until: Instant) {
        self.closing.push((socket, until));
    }

    /// Whether no dropped socket has something to send.
    pub(super) fn is_quiet(&self) -> bool {
        self.closing.is_empty() && self.unsent.is_empty()
    }

    /// Frees the dropped sockets that have ended, and resets those whose time has passed. Returns
    /// when the next one's time passes.
    pub(super) fn reap(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let State { closing, sockets, .. } = self;
        closing.retain(|&(handle, until)| {
            let socket: &mut tcp::Socket<'_> = sockets.get_mut(handle);
            // A closed socket with a remote endpoint still has to send its reset.
            let ended = match socket.state() {
                tcp::State::Closed => socket.remote_endpoint().is_none() || until <= now,
                state => state == tcp::State::TimeWait,
            };
            if ended {
                sockets.remove(handle);
            } else if until <= now {
                socket.abort();
            }
            !ended
        });
        closing.iter().map(|&(_, until)| until).filter(|until| *until > now).min()
    }
}
