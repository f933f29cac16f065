//! Real sockets of datagrams on the loopback interface, through the traits of the engine.

#[allow(dead_code, reason = "other tests use the rest")]
mod confined;
#[allow(dead_code, reason = "other tests use the rest")]
mod rig;

use confined::{GUEST, OTHER, Rig, any, has_ipv6, run, run_with};
use rig::OPEN;
use rustix::net::{self, AddressFamily, SocketType, sockopt};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::task::Poll;
use std::time::Duration;
use xen::testing::memory;
use xen::{DomId, Errno, Shared};
use xensock::back::{Datagrams, Network, Outgoing, Quota, Received, Sent, Socket as _};
use xensock::ring::{copy_out, split_at};
use xensock::wire::{Family, Group, Options, Record, SocketOption};
use xensockd::control::Kind;
use xensockd::datagrams::DatagramSocket;

/// The longest datagram of UDP over IPv4.
const LONGEST: usize = 65_507;

trait Open {
    fn open_for(
        &self,
        guest: DomId,
        local: Option<SocketAddr>,
        options: &Options,
    ) -> Result<DatagramSocket, Errno>;

    fn open(&self, local: Option<SocketAddr>) -> Result<DatagramSocket, Errno> {
        self.open_for(GUEST, local, &Options::new())
    }
}

impl Open for Rig {
    fn open_for(
        &self,
        guest: DomId,
        local: Option<SocketAddr>,
        options: &Options,
    ) -> Result<DatagramSocket, Errno> {
        let family = local.map_or(Family::V4, Family::of);
        self.sockets.datagrams(guest, family, local, options)
    }
}

/// A socket of this test. It waits for a datagram for a bounded time.
fn peer() -> UdpSocket {
    let peer = UdpSocket::bind(any()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    peer
}

fn quota(ring: usize) -> Quota {
    Quota { datagrams: 32, bytes: usize::MAX, longest: Record::longest(ring as u32) }
}

/// A datagram as the guest reads it, or an error.
type Read = Result<(SocketAddr, Vec<u8>), Errno>;

/// A guest's end of a ring, which starts anywhere.
struct Ring {
    memory: Shared<'static>,
    start: usize,
    records: VecDeque<Read>,
    received: Received,
}

impl Ring {
    fn new(size: usize, start: usize) -> Ring {
        Ring {
            memory: memory(size),
            start,
            records: VecDeque::new(),
            received: Received::default(),
        }
    }

    fn room(&self) -> [Shared<'static>; 2] {
        let (all, at) = (self.memory, self.start % self.memory.len());
        [all.slice(at, all.len() - at), all.slice(0, at)]
    }

    /// Receives a batch into the empty ring, and reads it.
    async fn fill(&mut self, socket: &DatagramSocket) {
        let room = self.room();
        let quota = quota(self.memory.len());
        let received = poll_fn(|cx| socket.poll_recv(cx, room, &quota)).await.unwrap();
        let mut data = split_at(room, received.used).0;
        while let Some(next) = Record::next(data).unwrap() {
            let mut payload = vec![0; next.record.len as usize];
            copy_out(&next.payload, &mut payload);
            self.records.push_back(Ok((next.record.addr.unwrap(), payload)));
            data = next.rest;
        }
        self.records.extend(received.error.map(Err));
        assert!(received.wanted <= self.memory.len());
        self.start += received.used;
        self.received = received;
    }

    async fn next(&mut self, socket: &DatagramSocket) -> Read {
        while self.records.is_empty() {
            self.fill(socket).await;
        }
        self.records.pop_front().unwrap()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ len) as u8).collect()
}

/// Sends one batch.
async fn send(socket: &DatagramSocket, batch: &[(Option<SocketAddr>, &[u8])]) -> Sent {
    let all = memory(batch.iter().map(|(_, payload)| payload.len()).sum::<usize>().max(1));
    let mut at = 0;
    let outgoing: Vec<_> = batch
        .iter()
        .map(|(to, payload)| {
            let piece = all.slice(at, payload.len());
            piece.write(0, payload);
            at += payload.len();
            let half = payload.len() / 2;
            Outgoing {
                to: *to,
                payload: [piece.slice(0, half), piece.slice(half, payload.len() - half)],
            }
        })
        .collect();
    poll_fn(|cx| socket.poll_send(cx, &outgoing)).await.unwrap()
}

async fn send_to(socket: &DatagramSocket, to: SocketAddr, payload: &[u8]) -> Result<(), Errno> {
    let Sent { datagrams, error } = send(socket, &[(Some(to), payload)]).await;
    assert_eq!(datagrams, 1);
    error.map_or(Ok(()), Err)
}

fn receive(peer: &UdpSocket) -> (SocketAddr, Vec<u8>) {
    let mut bytes = vec![0; 1 << 16];
    let (count, from) = peer.recv_from(&mut bytes).unwrap();
    bytes.truncate(count);
    (from, bytes)
}

#[test]
fn datagrams_of_all_lengths_go_both_ways() {
    run(async |rig| {
        let socket = rig.open(Some(any())).unwrap();
        let (at, peer) = (socket.local_addr().unwrap(), peer());
        let to = peer.local_addr().unwrap();
        for start in [0, 64, (1 << 17) - 8] {
            let mut ring = Ring::new(1 << 17, start);
            for len in [0, 1, 7, 8, 1000, 1472, 1473, 9000, 30_000, LONGEST, 3, 0] {
                assert_eq!(send_to(&socket, to, &pattern(len)).await, Ok(()));
                assert_eq!(receive(&peer), (at, pattern(len)));
                peer.send_to(&pattern(len), at).unwrap();
                let (from, payload) = ring.next(&socket).await.unwrap();
                assert_eq!(from, to);
                assert!(payload == pattern(len), "{len} bytes, from {start} on");
            }
        }
        assert_eq!(send_to(&socket, to, &pattern(LONGEST + 1)).await, Err(Errno::EMSGSIZE));
        assert_eq!(send_to(&socket, to, b"on").await, Ok(()));
    });
}

#[test]
fn a_batch_of_datagrams_of_changing_lengths_comes_whole_and_in_order() {
    run(async |rig| {
        let socket = rig.open(Some(any())).unwrap();
        let (at, peer) = (socket.local_addr().unwrap(), peer());
        for size in [1 << 12, 1 << 14, 1 << 17] {
            let longest = Record::longest(size as u32);
            for start in [0, 40, size - 8, size / 2] {
                let mut ring = Ring::new(size, start);
                let lens: Vec<_> =
                    (0..20).map(|n| (n * n * 97 + start) % 5000).chain([1]).collect();
                for len in &lens {
                    peer.send_to(&pattern(*len), at).unwrap();
                }
                for len in lens.into_iter().filter(|len| *len <= longest) {
                    let (_, payload) = ring.next(&socket).await.unwrap();
                    assert_eq!(payload.len(), len, "in a ring of {size}");
                    assert!(payload == pattern(len));
                }
            }
        }
        assert_eq!(rig.guest.kept(), 0);
    });
}

#[test]
fn several_datagrams_are_one_call_each_way() {
    run(async |rig| {
        let socket = rig.open(Some(any())).unwrap();
        let (at, peer) = (socket.local_addr().unwrap(), peer());
        let to = Some(peer.local_addr().unwrap());
        let batch: Vec<_> = (0..30).map(|number| vec![number; 100]).collect();
        let outgoing: Vec<_> = batch.iter().map(|payload| (to, &payload[..])).collect();
        assert_eq!(send(&socket, &outgoing).await, Sent { datagrams: 30, error: None });
        for payload in &batch {
            assert_eq!(receive(&peer), (at, payload.clone()));
            peer.send_to(payload, at).unwrap();
        }
        let mut ring = Ring::new(1 << 17, 0);
        ring.fill(&socket).await;
        assert_eq!(ring.received.datagrams, 30);
        assert_eq!(ring.received.used, 30 * Record::space(100), "no room is wasted");
    });
}

#[test]
fn what_has_no_room_waits_and_comes_later_in_order() {
    run(async |rig| {
        let socket = rig.open(Some(any())).unwrap();
        let (at, peer) = (socket.local_addr().unwrap(), peer());
        // The first ones make the daemon expect short ones.
        let lens = || (0..60).map(|_| 10).chain([3000, 2000, 5, 3900, 1, 0, 4056]);
        let mut ring = Ring::new(1 << 12, 0);
        for len in lens() {
            peer.send_to(&pattern(len), at).unwrap();
        }
        for len in lens() {
            assert!(ring.next(&socket).await.unwrap().1 == pattern(len), "{len}");
        }
        // A ring that is nearly full gets nothing, and Linux keeps it.
        peer.send_to(&pattern(20), at).unwrap();
        let little = split_at(ring.room(), 64).0;
        let quota = quota(1 << 12);
        let waiting = poll_fn(|cx| socket.poll_recv(cx, little, &quota)).await.unwrap();
        assert!(waiting.wanted > 64 && waiting.used == 0, "{waiting:?}");
        assert_eq!(ring.next(&socket).await.unwrap().1.len(), 20);
    });
}

#[test]
fn datagrams_that_are_too_long_or_too_many_are_counted() {
    run_with(&format!("{OPEN}socket-buffer = 8192\n"), async |rig| {
        let socket = rig.open(Some(any())).unwrap();
        let (at, peer) = (socket.local_addr().unwrap(), peer());
        let mut ring = Ring::new(1 << 12, 0);
        for len in [5000, 1] {
            peer.send_to(&pattern(len), at).unwrap();
            while ring.received.dropped == 0 && ring.records.is_empty() {
                ring.fill(&socket).await;
            }
        }
        assert_eq!(ring.next(&socket).await.unwrap().1.len(), 1);
        assert_eq!(ring.received.dropped, 1);
        for _ in 0..200 {
            peer.send_to(&pattern(1000), at).unwrap();
        }
        let mut count = 0;
        while let Some(read) = rig.within(100, ring.next(&socket)).await {
            assert_eq!(read.unwrap().1.len(), 1000);
            count += 1;
        }
        // Linux tells of the last ones with the next datagram.
        peer.send_to(b"", at).unwrap();
        ring.next(&socket).await.unwrap();
        assert!((1..200).contains(&count), "{count}");
        assert_eq!(ring.received.dropped as usize, 1 + 200 - count);
    });
}

#[test]
fn a_connected_socket_has_one_peer_and_gets_its_refusals() {
    run(async |rig| {
        let socket = rig.open(None).unwrap();
        let peer = peer();
        let to = peer.local_addr().unwrap();
        socket.connect(to).unwrap();
        let at = socket.local_addr().unwrap();
        assert_eq!(at.ip(), to.ip(), "Linux has found an address");
        let (mut ring, other) = (Ring::new(1 << 14, 0), self::peer());
        other.send_to(b"stranger", at).unwrap_or_default();
        peer.send_to(b"friend", at).unwrap();
        assert_eq!(ring.next(&socket).await, Ok((to, b"friend".to_vec())));
        assert_eq!(send(&socket, &[(None, b"hello")]).await, Sent { datagrams: 1, error: None });
        assert_eq!(receive(&peer), (at, b"hello".to_vec()));
        drop(peer);
        send(&socket, &[(None, b"nobody")]).await;
        assert_eq!(ring.next(&socket).await, Err(Errno::ECONNREFUSED));
        send(&socket, &[(None, b"nobody")]).await;
        // The error comes with the next one, which is sent all the same.
        let peer = UdpSocket::bind(to).unwrap();
        let sent = send(&socket, &[(None, b"again")]).await;
        assert_eq!(sent, Sent { datagrams: 1, error: Some(Errno::ECONNREFUSED) });
        assert_eq!(receive(&peer), (at, b"again".to_vec()));
    });
}

const SHUT: &str = "[defaults]\nlisten = [\"1024-65535\"]\nconnect = [\"remote\"]\n";

#[test]
fn a_destination_that_the_rules_forbid_is_refused_and_the_next_is_not() {
    run_with(SHUT, async |rig| {
        let socket = rig.open(None).unwrap();
        let peer = peer();
        let to = peer.local_addr().unwrap();
        assert_eq!(send_to(&socket, to, b"x").await, Err(Errno::EACCES));
        for other in ["0.0.0.0:9", "255.255.255.255:9", "224.0.0.1:9", "127.255.255.255:9"] {
            let to = other.parse().unwrap();
            assert_eq!(send_to(&socket, to, b"x").await, Err(Errno::EACCES), "{other}");
        }
        assert_eq!(socket.connect(to), Err(Errno::EACCES));
        rig.reload(&format!("[defaults]\nconnect = [\"127.0.0.1:{}\"]", to.port())).await;
        // Before and behind one that is forbidden.
        let batch = [(Some(to), &b"one"[..]), (Some(any()), b"two"), (Some(to), b"three")];
        assert_eq!(send(&socket, &batch).await, Sent { datagrams: 1, error: None });
        let second = send(&socket, &batch[1..]).await;
        assert_eq!(second, Sent { datagrams: 1, error: Some(Errno::EACCES) });
        assert_eq!(send(&socket, &batch[2..]).await, Sent { datagrams: 1, error: None });
        assert_eq!((receive(&peer).1, receive(&peer).1), (b"one".to_vec(), b"three".to_vec()));
        // What was permitted is so no longer.
        rig.reload(SHUT).await;
        assert_eq!(send_to(&socket, to, b"x").await, Err(Errno::EACCES));
    });
}

#[test]
fn a_server_may_answer_those_whom_it_may_not_address() {
    run_with(SHUT, async |rig| {
        let socket = rig.open(Some(any())).unwrap();
        let (at, peer) = (socket.local_addr().unwrap(), peer());
        let to = peer.local_addr().unwrap();
        assert_eq!(send_to(&socket, to, b"unasked").await, Err(Errno::EACCES));
        peer.send_to(b"question", at).unwrap();
        let mut ring = Ring::new(1 << 14, 0);
        assert_eq!(ring.next(&socket).await, Ok((to, b"question".to_vec())));
        assert_eq!(send_to(&socket, to, b"answer").await, Ok(()));
        assert_eq!(receive(&peer), (at, b"answer".to_vec()));
        let other = self::peer().local_addr().unwrap();
        assert_eq!(send_to(&socket, other, b"unasked").await, Err(Errno::EACCES));
    });
}

#[test]
fn a_socket_that_is_not_bound_gets_nothing_from_those_whom_it_may_not_address() {
    run_with(SHUT, async |rig| {
        let socket = rig.open(None).unwrap();
        let at = SocketAddr::new(any().ip(), socket.local_addr().unwrap().port());
        let peer = peer();
        for _ in 0..3 {
            peer.send_to(b"unasked", at).unwrap();
        }
        let mut ring = Ring::new(1 << 14, 0);
        let got = rig.within(100, ring.next(&socket)).await;
        assert_eq!(got, None);
        let port = peer.local_addr().unwrap().port();
        rig.reload(&format!("[defaults]\nconnect = [\"loopback:{port}\"]")).await;
        let forbidden = self::peer();
        for (peer, payload) in [(&forbidden, b"no"), (&peer, b"ja"), (&forbidden, b"no")] {
            peer.send_to(payload, at).unwrap();
        }
        assert_eq!(ring.next(&socket).await, Ok((peer.local_addr().unwrap(), b"ja".to_vec())));
        assert_eq!(rig.within(100, ring.next(&socket)).await, None);
    });
}

#[test]
fn the_rules_decide_where_a_guest_binds() {
    let port = UdpSocket::bind(any()).unwrap().local_addr().unwrap().port();
    let rules = format!(
        "[guest.web]\nlisten = {{ 53 = \"127.0.0.1:{port}\", \"1024-65535\" = \"any\" }}\n\
         connect = [\"any\"]\n[defaults]\nconnect = [\"any\"]\n"
    );
    run_with(&rules, async |rig| {
        let _other = rig.meet(OTHER, "db").await;
        let at: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        let asked = |port| Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
        for (address, error) in [(asked(80), Errno::EACCES), (Some(at), Errno::EACCES)] {
            let refused = rig.open_for(OTHER, address, &Options::new()).err();
            assert_eq!(refused, Some(error), "{address:?}");
        }
        let socket = rig.open(asked(53)).unwrap();
        assert_eq!(socket.local_addr(), Ok(at), "it is mapped");
        assert_eq!(rig.open(asked(53)).err(), Some(Errno::EADDRINUSE));
        // The port of TCP is another one.
        let listener = rig.bind(asked(53).unwrap()).unwrap();
        assert_eq!(listener.local_addr(), Ok(at));
        drop(socket);
        rig.open(asked(53)).unwrap();
    });
}

#[test]
fn no_guest_takes_the_datagrams_of_another_socket() {
    let shares = "[guest.\"web*\"]\nshare-ports = true\n[defaults]\nconnect = [\"any\"]\n";
    run_with(shares, async |rig| {
        let _other = rig.meet(OTHER, "web-2").await;
        let reuse = Options::new().with(SocketOption::ReuseAddr, 1);
        assert_eq!(rig.open_for(GUEST, Some(any()), &reuse).err(), Some(Errno::EPERM));
        let of_dom0 = peer();
        sockopt::set_socket_reuseaddr(&of_dom0, true).unwrap();
        let at = of_dom0.local_addr().unwrap();
        assert_eq!(rig.open(Some(at)).err(), Some(Errno::EADDRINUSE));
        drop(of_dom0);
        // Guests of one section share a port, if the rules say so.
        let mine = rig.open(Some(at)).unwrap();
        let theirs = rig.open_for(OTHER, Some(at), &Options::new()).unwrap();
        assert_eq!(mine.local_addr(), theirs.local_addr());
        assert_eq!(rig.open(Some(at)).err(), Some(Errno::EADDRINUSE), "a guest has it once");
    });
}

fn group(last: u8) -> Group {
    Group::V4 { group: Ipv4Addr::new(239, 7, 7, last), interface: Ipv4Addr::LOCALHOST }
}

#[test]
fn groups_are_joined_where_the_rules_name_them() {
    run_with(SHUT, async |rig| {
        let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let socket = rig.open(Some(any)).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(socket.join(group(1)), Err(Errno::EACCES));
        rig.reload("[defaults]\nconnect = [\"239.7.7.1\", \"239.7.7.2\"]").await;
        assert_eq!(socket.join(group(3)), Err(Errno::EACCES));
        assert_eq!(socket.join(group(1)), Ok(()));
        assert_eq!(socket.join(group(1)), Err(Errno::EADDRINUSE));
        assert_eq!(socket.leave(group(2)), Err(Errno::EADDRNOTAVAIL));
        // Another socket of this domain is a member of the second group.
        let peer = peer();
        peer.join_multicast_v4(&Ipv4Addr::new(239, 7, 7, 2), &Ipv4Addr::LOCALHOST).unwrap();
        sockopt::set_ip_multicast_if(&peer, &Ipv4Addr::LOCALHOST).unwrap();
        for last in [2, 1] {
            peer.send_to(&[last], (group(last).addr(), port)).unwrap();
        }
        let mut ring = Ring::new(1 << 14, 0);
        assert_eq!(ring.next(&socket).await.unwrap().1, [1], "only of its own group");
        assert_eq!(socket.leave(group(1)), Ok(()));
        peer.send_to(&[1], (group(1).addr(), port)).unwrap();
        assert_eq!(rig.within(100, ring.next(&socket)).await, None);
    });
}

/// A socket of a program in this domain that shares its port.
fn sharing_peer(at: SocketAddr, shares: bool) -> UdpSocket {
    let socket = net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, shares).unwrap();
    net::bind(&socket, &at).unwrap();
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.join_multicast_v4(&Ipv4Addr::new(239, 7, 7, 1), &Ipv4Addr::LOCALHOST).unwrap();
    socket
}

#[test]
fn a_socket_that_is_bound_to_a_group_shares_its_port_and_takes_nothing_from_others() {
    run_with(SHUT, async |rig| {
        let _other = rig.meet(OTHER, "db").await;
        let of_dom0 = sharing_peer("0.0.0.0:0".parse().unwrap(), true);
        let port = of_dom0.local_addr().unwrap().port();
        let at = SocketAddr::new(group(1).addr(), port);
        assert_eq!(rig.open(Some(at)).err(), Some(Errno::EACCES), "the rules do not name it");
        rig.reload(&format!("[defaults]\nlisten = [{port}]\nconnect = [\"239.7.7.1\"]")).await;
        let any = Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
        assert_eq!(rig.open(any).err(), Some(Errno::EADDRINUSE));
        let open = |guest| rig.open_for(guest, Some(at), &Options::new()).unwrap();
        let sockets = [GUEST, OTHER].map(open);
        let mut rings = [(); 2].map(|()| Ring::new(1 << 14, 0));
        sockets.iter().for_each(|socket| socket.join(group(1)).unwrap());
        let peer = peer();
        sockopt::set_ip_multicast_if(&peer, &Ipv4Addr::LOCALHOST).unwrap();
        peer.send_to(b"for dom0", (Ipv4Addr::LOCALHOST, port)).unwrap();
        peer.send_to(b"for all", at).unwrap();
        assert_eq!(receive(&of_dom0).1, b"for dom0");
        assert_eq!(receive(&of_dom0).1, b"for all");
        for (socket, ring) in sockets.iter().zip(&mut rings) {
            assert_eq!(ring.next(socket).await.unwrap().1, b"for all");
            assert_eq!(send_to(socket, peer.local_addr().unwrap(), b"answer").await, Ok(()));
            assert_eq!(receive(&peer).0.port(), port);
        }
        drop(of_dom0);
        drop(sockets);
        // Nobody shares a port unless both sides agree.
        let alone = sharing_peer("0.0.0.0:0".parse().unwrap(), false);
        let port = alone.local_addr().unwrap().port();
        rig.reload(&format!("[defaults]\nlisten = [{port}]\nconnect = [\"239.7.7.1\"]")).await;
        let at = Some(SocketAddr::new(group(1).addr(), port));
        assert_eq!(rig.open(at).err(), Some(Errno::EADDRINUSE));
    });
}

#[test]
fn a_socket_that_the_operator_ends_is_an_error_in_both_directions() {
    run(async |rig| {
        let socket = rig.open(Some(any())).unwrap();
        let (mut ring, to) = (Ring::new(1 << 14, 0), any());
        let room = ring.room();
        let number = rig.guest.status().sockets[0].number;
        let mut is_closed = false;
        let ended = poll_fn(|cx| {
            let polled = socket.poll_recv(cx, room, &quota(1 << 14));
            if !is_closed {
                assert!(polled.is_pending());
                is_closed = rig.guest.close(number);
                // It wakes this task.
                return Poll::Pending;
            }
            polled
        });
        assert_eq!(ended.await.err(), Some(Errno::EACCES));
        let outgoing = [Outgoing { to: Some(to), payload: split_at(ring.room(), 1).0 }];
        let sent = poll_fn(|cx| socket.poll_send(cx, &outgoing)).await;
        assert_eq!(sent.err(), Some(Errno::EACCES));
        ring.records.clear();
    });
}

#[test]
fn strict_rules_end_sockets_that_they_no_longer_allow() {
    run(async |rig| {
        let (bound, free, connected) =
            (rig.open(Some(any())).unwrap(), rig.open(None).unwrap(), rig.open(None).unwrap());
        let peer = peer();
        connected.connect(peer.local_addr().unwrap()).unwrap();
        rig.reload("strict = true\n[defaults]\nlisten = []\nconnect = []").await;
        let ended = async |socket: &DatagramSocket| {
            let room = Ring::new(1 << 14, 0).room();
            rig.within(100, poll_fn(|cx| socket.poll_recv(cx, room, &quota(1 << 14)))).await
        };
        assert_eq!(ended(&bound).await, Some(Err(Errno::EACCES)));
        assert_eq!(ended(&connected).await, Some(Err(Errno::EACCES)));
        assert_eq!(ended(&free).await, None, "each datagram of it is checked");
    });
}

#[test]
fn sockets_of_datagrams_are_listed_and_counted() {
    run(async |rig| {
        let socket = rig.open(Some(any())).unwrap();
        let (at, peer) = (socket.local_addr().unwrap(), peer());
        send_to(&socket, peer.local_addr().unwrap(), b"four").await.unwrap();
        peer.send_to(b"three", at).unwrap();
        let mut ring = Ring::new(1 << 14, 0);
        ring.next(&socket).await.unwrap();
        let status = &rig.guest.status().sockets[0];
        assert_eq!((status.kind, status.local, status.remote), (Kind::Datagrams, Some(at), at));
        assert_eq!((status.bytes_out, status.bytes_in), (4, 5));
        assert_eq!(rig.counts.sockets.get(), 1);
        drop(socket);
        assert!(rig.guest.status().sockets.is_empty());
        assert_eq!(rig.counts.sockets.get(), 0);
    });
}

#[test]
fn an_ipv6_socket_at_any_address_also_gets_ipv4_as_linux_has_it() {
    if !has_ipv6("[::]:0") {
        return;
    }
    run(async |rig| {
        let socket = rig.open(Some("[::]:0".parse().unwrap())).unwrap();
        let port = socket.local_addr().unwrap().port();
        let peer = peer();
        peer.send_to(b"old", (Ipv4Addr::LOCALHOST, port)).unwrap();
        let (from, payload) = Ring::new(1 << 14, 0).next(&socket).await.unwrap();
        let IpAddr::V4(ip) = peer.local_addr().unwrap().ip() else { unreachable!("it is IPv4") };
        assert_eq!((from.ip(), &payload[..]), (ip.to_ipv6_mapped().into(), &b"old"[..]));
        assert_eq!(send_to(&socket, from, b"new").await, Ok(()));
        assert_eq!(receive(&peer).1, b"new");
    });
}
