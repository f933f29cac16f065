//! Linux's sockets of datagrams, on a guest's ring.
//!
//! One call receives several datagrams, before their lengths are known: each into the part of the
//! ring where its record would be if all were as long as those of late, and the rest of a longer
//! one into private memory. Then the records move together. What comes after a longer one is kept
//! until the ring has room.
//!
//! The rules decide about each destination, and on a socket that the guest has not bound about each
//! sender, too.

use crate::control::{Kind, SocketStatus};
use crate::guests::{Guest, Listed, Open};
use crate::linux::datagrams::{BATCH, Message, REST, receive_all, send_all};
use crate::listeners::Claim;
use crate::rules::is_same;
use crate::sockets::set_datagram_option;
use crate::usage::Usage;
use crate::{linux, options};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use xen::{Errno, Shared, Side};
use xen_linux::runtime::{Reactor, SOCKET, Watched};
use xen_linux::{Ticket, errno, tcp};
use xensock::back::{Datagrams, Outgoing, Quota, Received, Ring, Sent, Socket};
use xensock::ring::{copy_out, len, split_at};
use xensock::wire::{Family, Group, RECORD_HEADER, Record, SocketOption};

/// The first guess of how long datagrams are.
const USUAL: usize = 1500;

/// No datagram gets less room than this.
const LEAST: usize = 216;

/// What a guest's sockets may keep privately and still receive several datagrams at once.
const KEPT: usize = 1 << 20;

/// The work of asking Linux about a destination, which takes three system calls.
const PROBE: usize = 24 << 10;

/// The destinations of a socket that are known to be permitted.
const KNOWN: usize = 16;

/// The senders to whom a bound socket may answer, even if its guest may not send there otherwise.
const SENDERS: usize = 256;

/// Opens a socket of datagrams, which does not block.
pub fn open(family: Family) -> Result<OwnedFd, Errno> {
    let family = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    net::socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP)).map_err(errno)
}

/// Prepares a socket before it is bound.
pub fn prepare(socket: &OwnedFd, family: Family) -> Result<(), Errno> {
    linux::set_drop_count(socket).map_err(errno)?;
    linux::set_own_groups_only(socket, family == Family::V6).map_err(errno)
}

/// An address of no host, of a family.
pub fn unspecified(family: Family) -> SocketAddr {
    match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED, 0).into(),
        Family::V6 => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// What the sockets of a thread share.
#[derive(Clone, Default)]
pub struct Spare(Rc<SpareInner>);

#[derive(Default)]
struct SpareInner {
    /// The rest of each datagram of a batch. Linux gives memory only for what is used.
    rest: OnceCell<RefCell<Box<[u8]>>>,
    /// Sockets that find the address from which a destination is reached.
    probes: [OnceCell<OwnedFd>; 2],
}

impl Spare {
    fn rest(&self) -> &RefCell<Box<[u8]>> {
        self.0.rest.get_or_init(|| vec![0; BATCH * REST].into_boxed_slice().into())
    }

    /// The address from which Linux would send to a destination.
    fn source(&self, to: SocketAddr) -> Result<SocketAddr, Errno> {
        let family = Family::of(to);
        let probe = &self.0.probes[usize::from(family == Family::V6)];
        let probe = match probe.get() {
            Some(probe) => probe,
            None => {
                let opened = open(family)?;
                sockopt::set_socket_broadcast(&opened, true).map_err(errno)?;
                probe.get_or_init(|| opened)
            }
        };
        // Connecting sends nothing.
        net::connect(probe, &to).map_err(errno)?;
        let source = tcp::local_addr(probe);
        net::connect_unspec(probe).map_err(errno)?;
        source
    }
}

/// A socket of datagrams.
pub struct DatagramSocket {
    inner: Rc<Inner>,
    guest: Rc<Guest>,
    spare: Spare,
    /// The addresses that are known to be permitted, while nothing has changed.
    known: RefCell<Known>,
    /// The sender that was looked at last.
    latest: Cell<Option<Sender>>,
    /// To whom it may answer, if it is bound.
    senders: RefCell<Senders>,
    /// How long datagrams were of late.
    usual: Cell<usize>,
    /// Datagrams that are received, but have no room in the ring yet.
    kept: RefCell<VecDeque<(SocketAddr, Vec<u8>)>>,
    /// Those that were longer than the ring.
    too_long: Cell<u32>,
    /// Those that Linux has dropped.
    dropped: Cell<u32>,
    _listed: Listed,
    _claim: Option<Claim>,
    _ticket: Ticket,
}

struct Inner {
    socket: Watched,
    at: SocketAddr,
    /// The address that the guest asked for, if it has bound the socket.
    asked: Option<SocketAddr>,
    /// The peer of a connected socket, and the address from which it is reached.
    peer: Cell<Option<(SocketAddr, SocketAddr)>>,
    usage: Usage,
}

impl DatagramSocket {
    /// A socket that is bound: to what the guest asked for, or to any port.
    pub fn new(
        socket: OwnedFd,
        (asked, claim): (Option<SocketAddr>, Option<Claim>),
        (guest, ticket): (Rc<Guest>, Ticket),
        (reactor, spare): (&Reactor, Spare),
    ) -> Result<Self, Errno> {
        let at = tcp::local_addr(&socket)?;
        let inner = Rc::new(Inner {
            socket: reactor.watch(Rc::new(socket), SOCKET).map_err(errno)?,
            at,
            asked,
            peer: Cell::new(None),
            usage: Usage::new(),
        });
        let open: Weak<dyn Open> = Rc::downgrade(&inner) as _;
        Ok(DatagramSocket {
            inner,
            _listed: guest.list(open),
            guest,
            spare,
            known: RefCell::default(),
            latest: Cell::new(None),
            senders: RefCell::default(),
            usual: Cell::new(USUAL),
            kept: RefCell::default(),
            too_long: Cell::new(0),
            dropped: Cell::new(0),
            _claim: claim,
            _ticket: ticket,
        })
    }

    /// [`Errno::EACCES`] if nothing may be sent to this address.
    fn check_destination(&self, to: SocketAddr) -> Result<(), Errno> {
        let version = self.guest.rules_version();
        if self.known.borrow().has(to, version) || self.senders.borrow().has(to) {
            return Ok(());
        }
        self.guest.check_send(to)?;
        // Only Linux knows all of this domain's addresses.
        self.guest.account().turn().charge(PROBE);
        self.guest.check_sent(to, self.spare.source(to)?)?;
        self.known.borrow_mut().add(to, version);
        Ok(())
    }

    /// Whether the guest gets what comes from this address.
    fn receives_from(&self, from: SocketAddr) -> bool {
        // Linux has looked at the sender.
        if self.inner.peer.get().is_some() {
            return true;
        }
        let (version, is_bound) = (self.guest.rules_version(), self.inner.asked.is_some());
        let allowed = match self.latest.get() {
            Some(Sender { addr, allowed, version: then }) if (addr, then) == (from, version) => {
                allowed
            }
            _ => {
                let allowed = self.guest.is_connect_allowed(from);
                self.latest.set(Some(Sender { addr: from, allowed, version }));
                if is_bound {
                    self.senders.borrow_mut().add(from);
                }
                allowed
            }
        };
        allowed || is_bound
    }

    /// Puts kept datagrams into the ring.
    fn flush(&self, room: [Shared<'_>; 2], quota: &Quota) -> Received {
        let (mut received, mut kept) = (Received::default(), self.kept.borrow_mut());
        while let Some((from, payload)) = kept.front() {
            if payload.len() > quota.longest {
                self.too_long.set(self.too_long.get().wrapping_add(1));
            } else if received.put(room, *from, payload) {
                self.guest.traffic().datagrams_received(1);
            } else {
                break;
            }
            self.guest.keep(-(payload.len() as isize));
            kept.pop_front();
        }
        received
    }

    fn keep(&self, from: SocketAddr, payload: Vec<u8>) {
        self.guest.keep(payload.len() as isize);
        self.kept.borrow_mut().push_back((from, payload));
    }

    /// Makes records of what was received into every `slot` bytes of the room.
    fn arrange(&self, room: [Shared<'_>; 2], slot: usize, messages: &[Message]) -> Received {
        let rests = self.spare.rest().borrow();
        let (mut received, mut is_kept) = (Received::default(), false);
        for (number, (message, rest)) in messages.iter().zip(rests.chunks_exact(REST)).enumerate() {
            received.datagrams += 1;
            if let Some(dropped) = message.dropped {
                self.dropped.set(dropped);
            }
            let Some(from) = message.from.filter(|from| self.receives_from(*from)) else {
                self.guest.traffic().datagrams_refused();
                continue;
            };
            let record = Record::new(message.len, Some(from));
            let size = record.size as usize;
            // It must not cover what the next one has received.
            is_kept |= message.len > slot - RECORD_HEADER;
            let start = number * slot + RECORD_HEADER;
            if is_kept {
                let here = message.len.min(slot - RECORD_HEADER);
                let mut payload = vec![0; message.len];
                copy_out(&split_at(room, start).1, &mut payload[..here]);
                payload[here..].copy_from_slice(&rest[..message.len - here]);
                self.keep(from, payload);
                continue;
            }
            copy_down(room, received.used + RECORD_HEADER, start, message.len);
            record.put(&split_at(room, received.used).1);
            received.used += size;
            received.bytes += message.len;
            self.guest.traffic().datagrams_received(1);
        }
        received
    }

    /// Receives as many datagrams as the room has for datagrams of the usual length, at least one.
    fn poll_batch(
        &self,
        cx: &mut Context<'_>,
        room: [Shared<'_>; 2],
        slot: usize,
        quota: &Quota,
    ) -> Poll<Received> {
        let socket = &self.inner.socket;
        let most = match self.guest.kept() > KEPT {
            true => 1,
            false => quota.datagrams.min(quota.bytes / slot).min(len(&room) / slot).clamp(1, BATCH),
        };
        let mut rooms = [room; BATCH];
        for (number, room) in rooms[..most].iter_mut().enumerate() {
            let (_, rest) = split_at(*room, number * slot + RECORD_HEADER);
            *room = split_at(rest, slot - RECORD_HEADER).0;
        }
        let mut messages = [Message::default(); BATCH];
        let result = ready!(socket.poll_io(cx, Side::Rx, |socket| {
            let rest = &mut self.spare.rest().borrow_mut()[..];
            receive_all(socket, &rooms[..most], rest, &mut messages)
        }));
        let came = match result {
            Ok(came) => came,
            // Of an earlier datagram.
            Err(error) => {
                return Poll::Ready(Received { error: Some(errno(error)), ..Received::default() });
            }
        };
        if came < most {
            socket.clear_after_short_read();
        }
        let received = self.arrange(room, slot, &messages[..came]);
        let longest = messages[..came].iter().map(|message| message.len).max().unwrap_or(0);
        let usual = self.usual.get();
        self.usual.set(longest.max(usual - usual / 8).max(LEAST));
        Poll::Ready(received)
    }

    /// Adds to the totals.
    fn count(&self, received: &mut Received) {
        let dropped = self.dropped.get().wrapping_add(self.too_long.get());
        received.dropped = dropped;
        let (own, all) = (&self.inner.usage.received, &self.guest.traffic().received);
        for total in [own, all] {
            total.set(total.get() + received.bytes as u64);
        }
    }
}

impl Datagrams for DatagramSocket {
    fn connect(&self, peer: SocketAddr) -> Result<(), Errno> {
        let Inner { socket, .. } = &*self.inner;
        self.guest.check_send(peer)?;
        net::connect(&**socket, &peer).map_err(errno)?;
        // The rules may forbid what only Linux knows to be an address of this domain.
        let checked = tcp::local_addr(socket).and_then(|from| {
            self.guest.check_sent(peer, from)?;
            Ok(from)
        });
        match checked {
            Ok(from) => self.inner.peer.set(Some((peer, from))),
            Err(error) => {
                let _ = net::connect_unspec(&**socket);
                return Err(error);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        room: [Shared<'_>; 2],
        quota: &Quota,
    ) -> Poll<Result<Received, Errno>> {
        if self.inner.usage.ended.get() {
            return Poll::Ready(Err(Errno::EACCES));
        }
        let before = self.dropped.get().wrapping_add(self.too_long.get());
        let slot = Record::space(self.usual.get().min(quota.longest));
        let mut received = if !self.kept.borrow().is_empty() {
            self.flush(room, quota)
        } else if len(&room) < slot {
            // Later, as the guest reads what is in the ring.
            Received { wanted: slot, ..Received::default() }
        } else {
            let mut received = ready!(self.poll_batch(cx, room, slot, quota));
            if !self.kept.borrow().is_empty() {
                let kept = self.flush(split_at(room, received.used).1, quota);
                received.used += kept.used;
                received.bytes += kept.bytes;
                received.wanted = kept.wanted;
            }
            received
        };
        self.count(&mut received);
        let dropped = received.dropped.wrapping_sub(before);
        self.guest.traffic().datagrams_dropped(dropped);
        Poll::Ready(Ok(received))
    }

    fn poll_send(&self, cx: &mut Context<'_>, batch: &[Outgoing<'_>]) -> Poll<Result<Sent, Errno>> {
        let Inner { socket, usage, .. } = &*self.inner;
        if usage.ended.get() {
            return Poll::Ready(Err(Errno::EACCES));
        }
        let mut most = 0;
        for datagram in batch {
            match datagram.to.map_or(Ok(()), |to| self.check_destination(to)) {
                Ok(()) => most += 1,
                Err(error) if most == 0 => {
                    self.guest.traffic().datagrams_refused();
                    return Poll::Ready(Ok(Sent { datagrams: 1, error: Some(error) }));
                }
                Err(_) => break,
            }
        }
        let send = |socket: &OwnedFd| {
            send_all(socket, batch[..most].iter().map(|datagram| (datagram.to, datagram.payload)))
        };
        let mut result = ready!(socket.poll_io(cx, Side::Tx, send)).map_err(errno);
        let mut error = result.as_ref().err().copied();
        if error.is_some() && batch[0].to.is_none() {
            // Of an earlier datagram of a connected socket, unless it comes again.
            result = match send(socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                result => result.map_err(errno),
            };
        }
        let datagrams = match result {
            Ok(count) => count,
            Err(again) => {
                error = Some(again);
                1
            }
        };
        if result.is_ok() {
            let bytes: usize = batch[..datagrams].iter().map(|it| len(&it.payload)).sum();
            let traffic = self.guest.traffic();
            for total in [&usage.sent, &traffic.sent] {
                total.set(total.get() + bytes as u64);
            }
            traffic.datagrams_sent(datagrams);
        }
        Poll::Ready(Ok(Sent { datagrams, error }))
    }

    fn join(&self, group: Group) -> Result<(), Errno> {
        self.guest.check_join(SocketAddr::new(group.addr(), self.inner.at.port()))?;
        let socket = &*self.inner.socket;
        match group {
            Group::V4 { group, interface } => {
                sockopt::set_ip_add_membership(socket, &group, &interface)
            }
            Group::V6 { group, interface } => {
                sockopt::set_ipv6_add_membership(socket, &group, interface)
            }
        }
        .map_err(errno)
    }

    fn leave(&self, group: Group) -> Result<(), Errno> {
        let socket = &*self.inner.socket;
        match group {
            Group::V4 { group, interface } => {
                sockopt::set_ip_drop_membership(socket, &group, &interface)
            }
            Group::V6 { group, interface } => {
                sockopt::set_ipv6_drop_membership(socket, &group, interface)
            }
        }
        .map_err(errno)
    }

    fn set_ring(&self, ring: Weak<dyn Ring>) {
        self.inner.usage.set_ring(ring);
    }
}

impl Socket for DatagramSocket {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        set_datagram_option(&self.guest, &self.inner.socket, option, value)
    }

    fn option(&self, option: SocketOption) -> Result<u32, Errno> {
        options::get(&self.inner.socket, option).map_err(errno)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        // Linux finds an address when the socket is connected.
        tcp::local_addr(&self.inner.socket)
    }
}

impl Drop for DatagramSocket {
    fn drop(&mut self) {
        let kept: usize = self.kept.borrow().iter().map(|(_, payload)| payload.len()).sum();
        self.guest.keep(-(kept as isize));
    }
}

impl Open for Inner {
    fn is_allowed(&self, guest: &Guest) -> bool {
        let is_bound = |asked| guest.rules().listens(asked).is_some_and(|at| is_same(at, self.at));
        self.asked.is_none_or(is_bound)
            && self.peer.get().is_none_or(|(to, from)| guest.is_reach_allowed(to, from))
    }

    fn end(&self) {
        self.usage.ended.set(true);
        // Fails on a socket without a peer, but wakes its task.
        let _ = net::shutdown(&*self.socket, net::Shutdown::Both);
    }

    fn status(&self, number: u64) -> SocketStatus {
        let any = unspecified(Family::of(self.at));
        let remote = self.peer.get().map(|(peer, _)| peer).or(self.asked).unwrap_or(any);
        self.usage.status(number, Kind::Datagrams, Some(self.at), remote)
    }
}

/// Moves bytes of the room to where others were, which are before them.
fn copy_down(room: [Shared<'_>; 2], mut to: usize, mut from: usize, len: usize) {
    if to == from {
        return;
    }
    let end = from + len;
    let piece = |at| {
        let [one, two] = split_at(room, at).1;
        if one.is_empty() { two } else { one }
    };
    // In order, so that no byte is overwritten before it has moved.
    while from < end {
        let source = piece(from);
        let source = source.slice(0, source.len().min(end - from));
        let count = piece(to).copy_from(source);
        (from, to) = (from + count, to + count);
    }
}

/// Whether a guest may send to a sender, as of this version of its rules.
#[derive(Clone, Copy)]
struct Sender {
    addr: SocketAddr,
    allowed: bool,
    version: (u64, u64),
}

/// The latest permitted addresses.
#[derive(Default)]
struct Known {
    version: (u64, u64),
    all: Vec<SocketAddr>,
    /// Which one gives way to the next.
    next: usize,
}

impl Known {
    fn has(&self, addr: SocketAddr, version: (u64, u64)) -> bool {
        self.version == version && self.all.contains(&addr)
    }

    fn add(&mut self, addr: SocketAddr, version: (u64, u64)) {
        if self.version != version {
            self.all.clear();
            self.version = version;
        }
        if self.all.len() < KNOWN {
            self.all.push(addr);
        } else {
            self.all[self.next % KNOWN] = addr;
            self.next += 1;
        }
    }
}

/// Recent senders: four for each value of a hash, of which the oldest one gives way.
#[derive(Default)]
struct Senders {
    hash: RandomState,
    all: Vec<[Option<SocketAddr>; 4]>,
}

impl Senders {
    fn place(&self, addr: SocketAddr) -> usize {
        self.hash.hash_one(addr) as usize % (SENDERS / 4)
    }

    fn has(&self, addr: SocketAddr) -> bool {
        self.all.get(self.place(addr)).is_some_and(|some| some.contains(&Some(addr)))
    }

    fn add(&mut self, addr: SocketAddr) {
        if self.all.is_empty() {
            self.all.resize(SENDERS / 4, [None; 4]);
        }
        let place = self.place(addr);
        let some = &mut self.all[place];
        if let Some(at) = some.iter().position(|other| *other == Some(addr)) {
            some[..=at].rotate_right(1);
        } else {
            some.rotate_right(1);
            some[0] = Some(addr);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::testing::memory;

    #[test]
    fn bytes_move_down_over_the_end_of_a_ring() {
        let all = memory(64);
        for split in 0..=64 {
            let bytes: Vec<u8> = (0..64).collect();
            all.write(0, &bytes);
            let room = [all.slice(split, 64 - split), all.slice(0, split)];
            let logical = |at: usize| ((at + split) % 64) as u8;
            copy_down(room, 3, 10, 50);
            let mut moved = [0; 53];
            copy_out(&room, &mut moved);
            let expected: Vec<_> = (0..3).chain(10..60).map(logical).collect();
            assert_eq!(moved[..], expected, "{split}");
        }
    }

    #[test]
    fn recent_senders_are_known_and_old_ones_give_way() {
        let mut senders = Senders::default();
        let addr = |number: u32| SocketAddr::from((Ipv4Addr::from_bits(number), 53));
        assert!(!senders.has(addr(1)));
        for number in 0..100_000 {
            senders.add(addr(number));
            assert!(senders.has(addr(number)));
        }
        let known = (0..100_000).filter(|number| senders.has(addr(*number))).count();
        assert_eq!(known, SENDERS);
    }

    #[test]
    fn a_change_of_the_rules_makes_all_addresses_unknown() {
        let mut known = Known::default();
        let addr = |port: usize| SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
        (0..2 * KNOWN).for_each(|port| known.add(addr(port), (1, 1)));
        assert!(known.has(addr(2 * KNOWN - 1), (1, 1)) && !known.has(addr(0), (1, 1)));
        assert!(!known.has(addr(2 * KNOWN - 1), (1, 2)));
        known.add(addr(0), (2, 2));
        assert_eq!(known.all.len(), 1);
    }
}
