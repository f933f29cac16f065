//! What the handles and the runner share.

use super::addresses::Addresses;
use super::listener::Queue;
use super::{Config, Ipv4, Ipv4Cidr, Statistics};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::task::Waker;
use embassy_time::Instant;
use smoltcp::iface::{self, Interface, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::{dhcpv4, dns, tcp};
use smoltcp::wire::{EthernetAddress, IpAddress};
use xen::{Counter, Errno, WaitList};

/// The first of the ports that connections go out from (RFC 6335), and how many there are.
const EPHEMERAL: u16 = 49152;
const EPHEMERALS: u16 = 16384;

/// Shared by all handles.
pub(super) struct Inner {
    pub(super) config: Config,
    state: RefCell<State>,
    /// Told when an address comes or goes.
    pub(super) changed: WaitList,
    /// The runner is to look at the sockets.
    work: Cell<bool>,
    runner: RefCell<Option<Waker>>,
    pub(super) counted: Counted,
}

#[derive(Default)]
pub(super) struct Counted {
    pub(super) opened: Counter,
    pub(super) open: Counter,
    pub(super) bytes_in: Counter,
    pub(super) bytes_out: Counter,
}

/// smoltcp's objects, and lists of ours.
pub(super) struct State {
    pub(super) interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) addresses: Addresses,
    pub(super) dhcp: Option<SocketHandle>,
    /// Until when the DHCP server has to confirm the address, after the link was away.
    pub(super) unconfirmed: Option<Instant>,
    pub(super) dns: SocketHandle,
    /// The sockets of streams, and where to say why the stack has ended one.
    pub(super) streams: Vec<(SocketHandle, Weak<Cell<Option<Errno>>>)>,
    /// The listeners that exist.
    pub(super) listeners: Vec<Weak<Queue>>,
    /// Sockets without a user, and until when they have time to end.
    pub(super) closing: Vec<(SocketHandle, Instant)>,
    next_port: u16,
}

/// The present, for smoltcp.
pub(super) fn now() -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(Instant::now().as_micros() as i64)
}

/// smoltcp's interface over a device, with the capabilities that it has now.
pub(super) fn interface<D: Device>(
    device: &mut D,
    address: EthernetAddress,
    seed: u64,
) -> Interface {
    let mut config = iface::Config::new(address.into());
    config.random_seed = seed;
    Interface::new(config, device, now())
}

impl Inner {
    pub(super) fn new<D: Device>(device: &mut D, address: EthernetAddress, config: Config) -> Self {
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = match config.ipv4 {
            Ipv4::Dhcp => Some(sockets.add(dhcpv4::Socket::new())),
            Ipv4::Static { .. } => None,
        };
        let dns = sockets.add(dns::Socket::new(&[], Vec::new()));
        let mut state = State {
            interface: interface(device, address, config.seed),
            sockets,
            addresses: Addresses::of(&config),
            dhcp,
            unconfirmed: None,
            dns,
            streams: Vec::new(),
            listeners: Vec::new(),
            closing: Vec::new(),
            next_port: (config.seed % u64::from(EPHEMERALS)) as u16,
        };
        state.configure(address);
        Inner {
            config,
            state: RefCell::new(state),
            changed: WaitList::default(),
            // The runner has a first look.
            work: Cell::new(true),
            runner: RefCell::default(),
            counted: Counted::default(),
        }
    }

    /// Has something done with the sockets.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.borrow_mut())
    }

    /// Has the runner look at the sockets.
    pub(super) fn kick(&self) {
        self.work.set(true);
        if let Some(waker) = self.runner.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether the runner was asked to; then it need not sleep.
    pub(super) fn take_work(&self) -> bool {
        self.work.take()
    }

    /// Whom `kick` wakes.
    pub(super) fn set_runner(&self, waker: &Waker) {
        *self.runner.borrow_mut() = Some(waker.clone());
    }

    pub(super) fn statistics(&self) -> Statistics {
        let Counted { opened, open, bytes_in, bytes_out } = &self.counted;
        Statistics {
            streams_opened: opened.get(),
            streams_open: open.get(),
            bytes_in: bytes_in.get(),
            bytes_out: bytes_out.get(),
        }
    }

    /// A socket with buffers of the configured sizes.
    pub(super) fn socket(&self) -> Result<tcp::Socket<'static>, Errno> {
        let buffer = |len: usize| {
            let mut buffer = Vec::new();
            buffer.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
            buffer.resize(len, 0);
            Ok(tcp::SocketBuffer::new(buffer))
        };
        let Config { receive_buffer, transmit_buffer, .. } = self.config;
        let mut socket = tcp::Socket::new(buffer(receive_buffer)?, buffer(transmit_buffer)?);
        // What one write leaves behind is not held back for the next one.
        socket.set_nagle_enabled(false);
        socket.set_congestion_control(tcp::CongestionControl::Reno);
        Ok(socket)
    }
}

impl State {
    pub(super) fn tcp(&mut self, socket: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(socket)
    }

    /// Whether another socket has the same two ends. smoltcp gives a segment to the first socket that takes
    /// it: a SYN that comes once more (a copy of it, or a client's next try) may meet one that listens before
    /// it meets the one of its connection, and two that answer to one client end in a reset.
    pub(super) fn has_twin(&self, of: SocketHandle) -> bool {
        let ends = |socket: &tcp::Socket<'_>| (socket.local_endpoint(), socket.remote_endpoint());
        let wanted = ends(self.sockets.get(of));
        self.sockets.iter().any(|(handle, socket)| match socket {
            smoltcp::socket::Socket::Tcp(socket) => {
                handle != of && socket.is_open() && ends(socket) == wanted
            }
            _ => false,
        })
    }

    /// A port that no socket has.
    pub(super) fn free_port(&mut self) -> Result<u16, Errno> {
        for _ in 0..EPHEMERALS {
            let port = EPHEMERAL + self.next_port;
            self.next_port = (self.next_port + 1) % EPHEMERALS;
            let taken = self.sockets.iter().any(|(_, socket)| match socket {
                smoltcp::socket::Socket::Tcp(socket) => {
                    socket.local_endpoint().is_some_and(|local| local.port == port)
                        || socket.listen_endpoint().port == port
                }
                _ => false,
            });
            if !taken {
                return Ok(port);
            }
        }
        Err(Errno::EADDRNOTAVAIL)
    }

    /// Whether there is an address to connect from.
    pub(super) fn has_address(&self, v6: bool) -> bool {
        v6 || self.addresses.ipv4.is_some()
    }

    pub(super) fn ipv4(&self) -> Option<Ipv4Cidr> {
        self.addresses.ipv4.map(|(address, _)| address)
    }

    /// Keeps a socket that its user is done with until it has ended.
    pub(super) fn retire(&mut self, socket: SocketHandle, until: Instant) {
        self.closing.push((socket, until));
    }

    /// Frees the sockets that have ended, and ends those whose time is up. When the next one's is.
    pub(super) fn reap(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let State { closing, sockets, .. } = self;
        closing.retain(|&(handle, until)| {
            let socket: &mut tcp::Socket<'_> = sockets.get_mut(handle);
            match socket.state() {
                tcp::State::Closed | tcp::State::TimeWait => {
                    // A reset that is still to be sent is sent first.
                    if socket.state() == tcp::State::Closed
                        && socket.remote_endpoint().is_some()
                        && until > now
                    {
                        return true;
                    }
                    sockets.remove(handle);
                    return false;
                }
                _ if until <= now => socket.abort(),
                _ => {}
            }
            true
        });
        closing.iter().map(|&(_, until)| until).filter(|until| *until > now).min()
    }

    /// Ends the streams from addresses that are not the interface's any more.
    pub(super) fn end_strays(&mut self, is_ours: impl Fn(IpAddress) -> bool) {
        let State { streams, sockets, .. } = self;
        streams.retain(|(socket, error)| {
            let Some(error) = error.upgrade() else { return false };
            let socket: &mut tcp::Socket<'_> = sockets.get_mut(*socket);
            if socket.local_endpoint().is_some_and(|local| !is_ours(local.addr)) {
                error.set(Some(Errno::ENETDOWN));
                socket.abort();
            }
            true
        });
    }

    /// The listeners that exist.
    pub(super) fn listeners(&mut self) -> Vec<Rc<Queue>> {
        self.listeners.retain(|listener| listener.strong_count() > 0);
        self.listeners.iter().filter_map(Weak::upgrade).collect()
    }

    /// DNS servers, at most as many as smoltcp takes.
    pub(super) fn set_dns(&mut self) {
        let servers: Vec<IpAddress> =
            self.addresses.dns.iter().map(|&server| server.into()).collect();
        self.sockets.get_mut::<dns::Socket<'_>>(self.dns).update_servers(&servers);
    }
}
