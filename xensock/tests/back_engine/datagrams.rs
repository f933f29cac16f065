//! Sockets of datagrams: section 5.7 of the protocol.

use crate::guest::{
    LINGER, Raw, Ring, address, limits, offer, patient, pattern, run, run_protocol,
};
use embassy_time::{Duration, Instant, Timer};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use xen::{Errno, yield_now};
use xensock::back::Limits;
use xensock::testing::FakeDatagrams;
use xensock::wire::{
    Call, Dialect, Extensions, Family, Group, Protocol, Record, Shutdown, SocketOption,
};

const NEW: Call = Call::DatagramSocket { family: Family::V4 };

fn protocol(dialect: Dialect) -> Protocol {
    Protocol { dialect, extensions: Extensions::all() }
}

pub fn run_datagrams<F: Future>(test: impl FnOnce(Rc<Raw>) -> F) {
    run_protocol(protocol(Dialect::PvCalls), limits(), test);
}

fn group(last: u8) -> Group {
    Group::V4 { group: Ipv4Addr::new(239, 1, 2, last), interface: Ipv4Addr::UNSPECIFIED }
}

/// An open socket, bound to a port.
async fn open(guest: &Raw, socket: u64, port: u16, order: u32) -> Ring {
    let ring = guest.ring(order);
    assert_eq!(guest.call(socket, NEW).await, Ok(0));
    assert_eq!(guest.call(socket, Call::Bind { addr: address(port) }).await, Ok(0));
    assert_eq!(guest.call(socket, ring.open(None)).await, Ok(0));
    ring
}

/// An open socket that is connected to a socket of the test.
pub async fn connect(guest: &Raw, socket: u64, order: u32) -> (Ring, FakeDatagrams) {
    let peer = guest.net.datagrams_at(address(0)).unwrap();
    let ring = guest.ring(order);
    assert_eq!(guest.call(socket, NEW).await, Ok(0));
    assert_eq!(guest.call(socket, ring.open(Some(peer.address()))).await, Ok(0));
    (ring, peer)
}

#[test]
fn datagrams_keep_their_bounds_and_have_the_addresses_of_their_peers() {
    for dialect in Dialect::ALL {
        run_protocol(protocol(dialect), limits(), |guest| async move {
            let ring = open(&guest, 1, 53, 2).await;
            let peers = [0, 0].map(|port| guest.net.datagrams_at(address(port)).unwrap());
            for (number, peer) in peers.iter().enumerate() {
                peer.send(address(53), &pattern(number * 100)).unwrap();
                let (record, payload) = ring.receive().await;
                assert_eq!((record.addr, record.error), (Some(peer.address()), None));
                assert_eq!(payload, pattern(number * 100));
                ring.send(Some(peer.address()), &pattern(number * 100 + 1)).await;
                let (from, payload) = peer.receive().await;
                assert_eq!((from, payload), (address(53), pattern(number * 100 + 1)));
            }
            guest.release(1).await.unwrap();
        });
    }
}

#[test]
fn a_connected_socket_talks_to_one_peer_and_needs_no_address() {
    run_datagrams(|guest| async move {
        let (ring, peer) = connect(&guest, 1, 1).await;
        ring.send(None, b"one").await;
        let (at, _) = peer.receive().await;
        // An address is ignored.
        ring.send(Some(address(9)), b"two").await;
        assert_eq!(peer.receive().await, (at, b"two".to_vec()));
        let other = guest.net.datagrams_at(address(0)).unwrap();
        other.send(at, b"not for you").unwrap();
        peer.send(at, b"for you").unwrap();
        let (record, payload) = ring.receive().await;
        assert_eq!((record.addr, payload), (Some(peer.address()), b"for you".to_vec()));
        guest.release(1).await.unwrap();
    });
}

#[test]
fn an_open_socket_has_an_address_whether_it_was_bound_or_not() {
    run_datagrams(|guest| async move {
        for (socket, bound, peer) in
            [(1, None, None), (2, Some(0), None), (3, Some(70), Some(address(80)))]
        {
            let ring = guest.ring(1);
            guest.call(socket, NEW).await.unwrap();
            assert_eq!(guest.call(socket, Call::LocalAddr).await, Err(Errno::ENOTCONN));
            if let Some(port) = bound {
                let id = guest.ask(socket, Call::Bind { addr: address(port) });
                assert_eq!(guest.answer(id).await, Ok(0));
                let at = guest.address_in(id).unwrap();
                assert!(at.port() == port || port == 0 && at.port() > 0);
                let id = guest.ask(socket, Call::LocalAddr);
                assert_eq!(guest.answer(id).await, Ok(0));
                assert_eq!(guest.address_in(id), Some(at));
            }
            let id = guest.ask(socket, ring.open(peer));
            assert_eq!(guest.answer(id).await, Ok(0));
            let at = guest.address_in(id).unwrap();
            assert_ne!(at.port(), 0);
            assert_eq!(at.ip().is_unspecified(), bound.is_none());
            let id = guest.ask(socket, Call::LocalAddr);
            assert_eq!(guest.answer(id).await, Ok(0));
            assert_eq!(guest.address_in(id), Some(at));
            let id = guest.ask(socket, Call::PeerAddr);
            let answer = guest.answer(id).await;
            assert_eq!(answer, peer.map(|_| 0).ok_or(Errno::ENOTCONN));
            assert_eq!(guest.address_in(id), peer);
            guest.release(socket).await.unwrap();
        }
    });
}

#[test]
fn commands_in_the_wrong_order_or_for_the_other_type_fail_and_change_nothing() {
    run_datagrams(|guest| async move {
        let (ring, other) = (guest.ring(1), guest.ring(1));
        let grants = other.offer.grants.clone();
        let streams_only = || {
            [
                ring.connect(address(80)),
                Call::Listen { backlog: 1 },
                ring.accept(9),
                Call::Poll,
                Call::Shutdown { how: Shutdown::Both },
                Call::Resize { grants: grants.clone() },
            ]
        };
        let groups = || [Call::Join(group(1)), Call::Leave(group(1))];
        let bind = || Call::Bind { addr: address(0) };

        for call in [ring.open(None), Call::Join(group(1)), bind()] {
            assert_eq!(guest.call(1, call).await, Err(Errno::EINVAL), "there is no socket");
        }
        guest.call(1, NEW).await.unwrap();
        assert_eq!(guest.call(1, NEW).await, Err(Errno::EEXIST));
        assert_eq!(guest.call(1, Call::Socket { family: Family::V4 }).await, Err(Errno::EEXIST));
        for is_bound in [false, true] {
            if is_bound {
                guest.call(1, bind()).await.unwrap();
                assert_eq!(guest.call(1, bind()).await, Err(Errno::EINVAL));
            }
            for call in streams_only() {
                let what = format!("{call:?}");
                assert_eq!(guest.call(1, call).await, Err(Errno::EOPNOTSUPP), "{what}");
            }
            for call in groups().into_iter().chain([Call::PeerAddr]) {
                assert_eq!(guest.call(1, call).await, Err(Errno::ENOTCONN));
            }
        }
        guest.call(1, ring.open(None)).await.unwrap();
        assert_eq!(guest.call(1, ring.open(None)).await, Err(Errno::EISCONN));
        assert_eq!(guest.call(1, other.open(None)).await, Err(Errno::EISCONN));
        assert_eq!(guest.call(1, bind()).await, Err(Errno::EINVAL));
        for call in streams_only() {
            assert_eq!(guest.call(1, call).await, Err(Errno::EOPNOTSUPP));
        }
        guest.release(1).await.unwrap();
        assert_eq!(guest.release(1).await, Err(Errno::EINVAL), "the id is free again");

        guest.call(2, Call::Socket { family: Family::V4 }).await.unwrap();
        let server = guest.net.listen(address(80)).unwrap();
        for is_connected in [false, true] {
            if is_connected {
                guest.call(2, ring.connect(address(80))).await.unwrap();
            }
            for call in groups().into_iter().chain([other.open(None)]) {
                assert_eq!(guest.call(2, call).await, Err(Errno::EOPNOTSUPP), "a stream socket");
            }
        }
        guest.release(2).await.unwrap();
        drop(server);
    });
}

#[test]
fn a_socket_that_is_released_before_it_is_open_leaves_nothing() {
    run_datagrams(|guest| async move {
        guest.call(1, NEW).await.unwrap();
        guest.release(1).await.unwrap();
        guest.call(1, NEW).await.unwrap();
        guest.call(1, Call::Bind { addr: address(53) }).await.unwrap();
        guest.release(1).await.unwrap();
        assert_eq!(guest.net.datagram_sockets(), 0);
        // All at once.
        let ring = guest.ring(1);
        let [new, bind, open, release] = [
            NEW,
            Call::Bind { addr: address(53) },
            ring.open(None),
            Call::Release { reuse: false },
        ]
        .map(|call| guest.push(1, call));
        guest.publish();
        for id in [new, bind, open, release] {
            assert_eq!(guest.answer(id).await, Ok(0));
        }
    });
}

#[test]
fn after_a_failed_open_the_socket_is_as_it_was_and_the_ring_is_the_guests() {
    run_datagrams(|guest| async move {
        for bound in [None, Some(53)] {
            let ring = guest.ring(1);
            guest.call(1, NEW).await.unwrap();
            let option = SocketOption::MulticastTtl;
            guest.call(1, Call::SetOption { option, value: 7 }).await.unwrap();
            if let Some(port) = bound {
                guest.call(1, Call::Bind { addr: address(port) }).await.unwrap();
            }
            let bad = Call::Open { peer: None, ring: offer(77777, 1) };
            assert!(guest.call(1, bad).await.is_err());
            let other: SocketAddr = "[::1]:53".parse().unwrap();
            assert_eq!(guest.call(1, ring.open(Some(other))).await, Err(Errno::EAFNOSUPPORT));
            assert_eq!(
                guest.call(1, ring.open(Some(address(0)))).await,
                Err(Errno::EADDRNOTAVAIL),
                "the host cannot connect"
            );
            drop(ring);
            let ring = guest.ring(2);
            assert_eq!(guest.call(1, ring.open(None)).await, Ok(0));
            assert_eq!(guest.call(1, Call::GetOption { option }).await, Ok(7));
            guest.release(1).await.unwrap();
        }
    });
}

#[test]
fn an_address_in_use_or_of_another_family_cannot_be_bound() {
    run_datagrams(|guest| async move {
        let taken = guest.net.datagrams_at(address(53)).unwrap();
        guest.call(1, NEW).await.unwrap();
        let bind = |addr| guest.call(1, Call::Bind { addr });
        assert_eq!(bind(address(53)).await, Err(Errno::EADDRINUSE));
        assert_eq!(bind("[::1]:54".parse().unwrap()).await, Err(Errno::EAFNOSUPPORT));
        drop(taken);
        assert_eq!(bind(address(53)).await, Ok(0));
        guest.release(1).await.unwrap();
    });
}

#[test]
fn datagrams_of_all_lengths_arrive_whole() {
    run_datagrams(|guest| async move {
        for order in [1, 4] {
            let (ring, peer) = connect(&guest, 1, order).await;
            let longest = Record::longest(ring.layout.output.size);
            let all: Vec<_> = (0..100).chain(longest - 100..=longest).collect();
            let mut at = None;
            for &len in &all {
                ring.send(None, &pattern(len)).await;
                let (from, payload) = peer.receive().await;
                assert!(payload == pattern(len), "{len} bytes out");
                at = Some(from);
            }
            for &len in &all {
                peer.send(at.unwrap(), &pattern(len)).unwrap();
                let (_, payload) = ring.receive().await;
                assert!(payload == pattern(len), "{len} bytes in");
            }
            assert_eq!(ring.dropped(), 0);
            guest.release(1).await.unwrap();
        }
    });
}

#[test]
fn a_datagram_longer_than_the_ring_is_dropped_and_counted() {
    run_datagrams(|guest| async move {
        let ring = open(&guest, 1, 53, 1).await;
        let peer = guest.net.datagrams_at(address(0)).unwrap();
        let longest = Record::longest(ring.layout.input.size);
        for len in [longest + 1, 60_000, longest] {
            peer.send(address(53), &pattern(len)).unwrap();
        }
        assert_eq!(ring.receive().await.1.len(), longest);
        assert_eq!(ring.dropped(), 2);
        guest.release(1).await.unwrap();
    });
}

#[test]
fn a_guest_that_does_not_read_gets_later_what_had_room_in_the_system_in_order() {
    run_datagrams(|guest| async move {
        let ring = open(&guest, 1, 53, 1).await;
        let peer = guest.net.datagrams_at(address(0)).unwrap();
        // Of changing lengths, so that records stay outside that would not fit.
        let payload = |number: usize| {
            let mut payload = pattern(1 + number * 577 % 1200);
            payload[0] = number as u8;
            payload
        };
        let mut sent = 0;
        while ring.dropped() == 0 {
            assert!(sent < 1000, "nothing is dropped");
            peer.send(address(53), &payload(sent)).unwrap();
            sent += 1;
            if sent % 60 == 0 {
                guest.settle().await;
                if let Some((record, bytes)) = ring.try_receive() {
                    // Makes room, so that the engine looks at the count.
                    assert_eq!((record.error, bytes[0]), (None, (sent / 60 - 1) as u8));
                    guest.settle().await;
                }
            }
        }
        let taken = sent / 60;
        let mut numbers = Vec::new();
        loop {
            while let Some((_, bytes)) = ring.try_receive() {
                assert!(bytes == payload(bytes[0].into()), "a datagram has changed");
                numbers.push(bytes[0]);
            }
            guest.settle().await;
            if ring.unread() == 0 {
                break;
            }
        }
        let received = taken + numbers.len();
        assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
        assert_eq!(received + ring.dropped() as usize, sent, "each is received or counted");
        assert!(received > 64, "{received}: the queue of the system and the ring");
        guest.release(1).await.unwrap();
    });
}

#[test]
fn the_socket_is_not_read_while_the_ring_is_full() {
    run_datagrams(|guest| async move {
        let ring = open(&guest, 1, 53, 1).await;
        let peer = guest.net.datagrams_at(address(0)).unwrap();
        for _ in 0..10 {
            peer.send(address(53), &pattern(1000)).unwrap();
        }
        guest.settle().await;
        let (work, calls) = (guest.account.turn().work(), guest.net.datagram_calls());
        for _ in 0..1000 {
            peer.send(address(53), &pattern(1000)).unwrap();
            yield_now().await;
        }
        assert_eq!(guest.account.turn().work(), work, "a flood costs nothing");
        assert_eq!(guest.net.datagram_calls(), calls);
        assert_eq!(ring.unread(), 3 * Record::space(1000));
        guest.release(1).await.unwrap();
    });
}

#[test]
fn a_batch_is_one_call_of_the_host() {
    run_datagrams(|guest| async move {
        let ring = open(&guest, 1, 53, 4).await;
        let peer = guest.net.datagrams_at(address(0)).unwrap();
        for number in 0..30 {
            assert!(ring.put_record(Record::new(10, Some(peer.address())), &[number; 10]));
            peer.send(address(53), &[number; 20]).unwrap();
        }
        let before = guest.net.datagram_calls();
        guest.settle().await;
        assert_eq!(guest.net.datagram_calls(), before + 2, "one for each direction");
        for number in 0..30 {
            assert_eq!(peer.try_receive().map(|(_, payload)| payload), Some(vec![number; 10]));
            assert_eq!(ring.try_receive().map(|(_, payload)| payload), Some(vec![number; 20]));
        }
        guest.release(1).await.unwrap();
    });
}

#[test]
fn an_error_is_of_one_datagram_and_the_socket_goes_on() {
    let limits = Limits { max_ring_order: 9, pages: 2000, ..limits() };
    run_protocol(protocol(Dialect::PvCalls), limits, |guest| async move {
        let ring = open(&guest, 1, 53, 9).await;
        let peer = guest.net.datagrams_at(address(0)).unwrap();
        let (broadcast, v6) = ("255.255.255.255:9".parse(), "[::1]:9".parse());
        let (broadcast, v6): (SocketAddr, SocketAddr) = (broadcast.unwrap(), v6.unwrap());
        for (to, len, error) in [
            (None, 5, Errno::EDESTADDRREQ),
            (Some(v6), 5, Errno::EAFNOSUPPORT),
            (Some(broadcast), 5, Errno::EACCES),
            (Some(peer.address()), 65_508, Errno::EMSGSIZE),
        ] {
            // One that is sent before it, and one after it.
            for (to, len) in [(Some(peer.address()), 1), (to, len), (Some(peer.address()), 2)] {
                ring.send(to, &pattern(len)).await;
            }
            let (record, payload) = ring.receive().await;
            assert_eq!((record.error, record.addr), (Some(error), to));
            assert_eq!((record.size as usize, payload.len()), (Record::space(0), 0));
            assert_eq!(peer.receive().await.1.len(), 1);
            assert_eq!(peer.receive().await.1.len(), 2);
        }
        let option = SocketOption::Broadcast;
        guest.call(1, Call::SetOption { option, value: 1 }).await.unwrap();
        ring.send(Some(broadcast), b"all").await;
        ring.send(Some(peer.address()), b"one").await;
        peer.receive().await;
        assert!(ring.try_receive().is_none());
        guest.release(1).await.unwrap();
    });
}

#[test]
fn a_refusal_comes_back_to_a_connected_socket_and_loses_no_later_datagram() {
    run_datagrams(|guest| async move {
        let (ring, peer) = connect(&guest, 1, 1).await;
        let at = peer.address();
        drop(peer);
        ring.send(None, b"nobody is there").await;
        let (record, _) = ring.receive().await;
        assert_eq!((record.error, record.addr), (Some(Errno::ECONNREFUSED), Some(at)));
        let peer = guest.net.datagrams_at(at).unwrap();
        ring.send(None, b"now").await;
        assert_eq!(peer.receive().await.1, b"now");
        guest.release(1).await.unwrap();
    });
}

#[test]
fn without_room_the_latest_error_is_kept() {
    run_datagrams(|guest| async move {
        let ring = open(&guest, 1, 53, 1).await;
        let peer = guest.net.datagrams_at(address(0)).unwrap();
        let longest = Record::longest(ring.layout.input.size);
        peer.send(address(53), &pattern(longest)).unwrap();
        guest.settle().await;
        for port in 1..=5 {
            ring.send(Some(SocketAddr::new(Ipv4Addr::BROADCAST.into(), port)), b"x").await;
        }
        peer.send(address(53), b"later").unwrap();
        guest.settle().await;
        assert_eq!(ring.receive().await.1.len(), longest);
        let (record, _) = ring.receive().await;
        assert_eq!(record.error, Some(Errno::EACCES));
        assert_eq!(record.addr.map(|addr| addr.port()), Some(5));
        assert_eq!(ring.receive().await.1, b"later");
        guest.release(1).await.unwrap();
    });
}

#[test]
fn members_of_a_group_receive_what_is_sent_to_it() {
    run_datagrams(|guest| async move {
        let ring = open(&guest, 1, 53, 1).await;
        let peer = guest.net.datagrams_at(address(0)).unwrap();
        let to = SocketAddr::new(group(1).addr(), 53);
        peer.send(to, b"too early").unwrap();
        assert_eq!(guest.call(1, Call::Join(group(1))).await, Ok(0));
        assert_eq!(guest.call(1, Call::Join(group(1))).await, Err(Errno::EADDRINUSE));
        assert_eq!(guest.call(1, Call::Leave(group(2))).await, Err(Errno::EADDRNOTAVAIL));
        peer.send(to, b"member").unwrap();
        assert_eq!(ring.receive().await.1, b"member");
        assert_eq!(guest.call(1, Call::Leave(group(1))).await, Ok(0));
        peer.send(to, b"too late").unwrap();
        guest.settle().await;
        assert!(ring.try_receive().is_none());
        let no_group = Group::V4 { group: Ipv4Addr::LOCALHOST, interface: Ipv4Addr::UNSPECIFIED };
        assert_eq!(guest.call(1, Call::Join(no_group)).await, Err(Errno::EINVAL));
        guest.release(1).await.unwrap();
    });
}

#[test]
fn a_release_sends_what_was_written_first() {
    run_protocol(protocol(Dialect::PvCalls), patient(), |guest| async move {
        let (ring, peer) = connect(&guest, 1, 4).await;
        guest.net.hold_datagrams(true);
        for number in 0..50 {
            ring.send(None, &[number; 100]).await;
        }
        let release = guest.ask(1, Call::Release { reuse: false });
        guest.settle().await;
        assert_eq!(guest.answered(release), None, "datagrams are still to be sent");
        guest.net.hold_datagrams(false);
        assert_eq!(guest.answer(release).await, Ok(0));
        for number in 0..50 {
            assert_eq!(peer.try_receive().map(|(_, payload)| payload), Some(vec![number; 100]));
        }
    });
}

#[test]
fn a_release_does_not_wait_for_ever_for_a_network_that_takes_nothing() {
    run_datagrams(|guest| async move {
        for linger in [None, Some(0)] {
            let (ring, peer) = connect(&guest, 1, 1).await;
            if let Some(value) = linger {
                let option = SocketOption::Linger;
                guest.call(1, Call::SetOption { option, value }).await.unwrap();
                assert_eq!(guest.call(1, Call::GetOption { option }).await, Ok(value));
            }
            guest.net.hold_datagrams(true);
            ring.send(None, b"never").await;
            let start = Instant::now();
            assert_eq!(guest.release(1).await, Ok(0));
            let waited = start.elapsed() >= Duration::from_micros(LINGER.as_micros() as u64);
            assert!(waited || linger == Some(0), "the engine gave up too early");
            assert_eq!(peer.try_receive(), None);
            guest.net.hold_datagrams(false);
        }
    });
}

/// Something that a hostile guest does to a ring, in words and in fact.
type Violation = (&'static str, fn(&Ring));

fn violations() -> Vec<Violation> {
    fn header(ring: &Ring, change: impl FnOnce(&mut Record)) {
        let mut record = Record::new(16, Some(address(9)));
        change(&mut record);
        // The index moves by the size of a good record.
        let size = record.size;
        record.size = Record::space(16) as u32;
        assert!(ring.put_record(record, &[0; 16]));
        let data = ring.region().data;
        let at = ring.layout.output.start;
        data.store_u32(at, size, Relaxed);
        ring.notify();
    }
    fn index(ring: &Ring, at: usize, value: u32) {
        ring.region().indexes.store_u32(at, value, Relaxed);
        ring.notify();
    }
    vec![
        ("a size of nothing", |ring| header(ring, |record| record.size = 0)),
        ("a size that is not a multiple of 8", |ring| header(ring, |record| record.size = 60)),
        ("a size beyond what is ready", |ring| header(ring, |record| record.size = 72)),
        ("a huge size", |ring| header(ring, |record| record.size = !7)),
        ("a payload beyond the record", |ring| header(ring, |record| record.len = 17)),
        ("a huge payload", |ring| header(ring, |record| record.len = u32::MAX)),
        ("an error", |ring| header(ring, |record| record.error = Some(Errno::EIO))),
        ("another family", |ring| {
            header(ring, |_| ());
            ring.region().data.store_u32(ring.layout.output.start + 8, 1, Relaxed);
        }),
        ("a part of a header", |ring| index(ring, ring.layout.output.prod, 8)),
        ("an index that is not a multiple of 8", |ring| {
            index(ring, ring.layout.output.prod, 3);
        }),
        ("more than the buffer", |ring| {
            index(ring, ring.layout.output.prod, ring.layout.output.size + 1);
        }),
        ("an index of `in` that runs ahead", |ring| index(ring, ring.layout.input.cons, 8)),
    ]
}

#[test]
fn a_guest_that_breaks_the_rules_of_records_loses_the_socket_only() {
    for (what, violate) in violations() {
        run_datagrams(|guest| async move {
            let (ring, _peer) = connect(&guest, 1, 1).await;
            let (other, friend) = connect(&guest, 2, 1).await;
            violate(&ring);
            ring.until(|| ring.in_error().and(ring.out_error())).await;
            assert_eq!(ring.in_error(), Some(Errno::EPROTO), "{what}");
            assert_eq!(ring.out_error(), Some(Errno::EPROTO), "{what}");
            let option = SocketOption::Ttl;
            let set = Call::SetOption { option, value: 5 };
            assert_eq!(guest.call(1, set).await, Err(Errno::ENOTCONN), "{what}");
            assert_eq!(guest.release(1).await, Ok(0), "{what}");
            other.send(None, b"still here").await;
            assert_eq!(friend.receive().await.1, b"still here");
            assert_eq!(guest.ended.get(), None);
            guest.release(2).await.unwrap();
        });
    }
}

#[test]
fn records_before_a_violation_are_sent() {
    run_datagrams(|guest| async move {
        let (ring, peer) = connect(&guest, 1, 1).await;
        assert!(ring.put_record(Record::new(3, None), b"one"));
        let bad = Record { error: Some(Errno::EIO), ..Record::new(0, None) };
        assert!(ring.put_record(bad, b""));
        assert_eq!(peer.receive().await.1, b"one");
        ring.until(|| ring.out_error()).await;
        guest.release(1).await.unwrap();
    });
}

#[test]
fn a_ring_is_used_again_by_a_socket_of_either_type() {
    run_datagrams(|guest| async move {
        let server = guest.net.listen(address(80)).unwrap();
        let ring = guest.ring(1);
        let peer = guest.net.datagrams_at(address(0)).unwrap();
        for socket in 1..=4 {
            let opened = if socket % 2 == 0 {
                guest.call(socket, Call::Socket { family: Family::V4 }).await.unwrap();
                guest.call(socket, ring.connect(address(80))).await
            } else {
                guest.call(socket, NEW).await.unwrap();
                guest.call(socket, ring.open(Some(peer.address()))).await
            };
            assert_eq!(opened, Ok(0));
            assert_eq!(guest.account.pages(), ring.layout.pages);
            assert_eq!(guest.call(socket, Call::Release { reuse: true }).await, Ok(0));
            assert_eq!(guest.account.pages(), ring.layout.pages, "it stays mapped");
        }
        // Dropped after the engine, which has it mapped still.
        (server, ring, peer)
    });
}

#[test]
fn sockets_pages_and_openings_by_the_second_are_limited() {
    let limits = Limits { sockets: 2, connections_per_second: Some(1), pages: 6, ..limits() };
    run_protocol(protocol(Dialect::PvCalls), limits, |guest| async move {
        guest.call(1, NEW).await.unwrap();
        guest.call(2, NEW).await.unwrap();
        assert_eq!(guest.call(3, NEW).await, Err(Errno::EMFILE));
        let (large, small) = (guest.ring(3), guest.ring(1));
        assert_eq!(guest.call(1, large.open(None)).await, Err(Errno::ENOMEM));
        // The first one counted.
        assert_eq!(guest.call(1, small.open(None)).await, Err(Errno::ENOBUFS));
        Timer::after_millis(1100).await;
        assert_eq!(guest.call(1, small.open(None)).await, Ok(0));
        guest.release(1).await.unwrap();
    });
}

#[test]
fn bytes_of_datagrams_pass_at_the_rate_of_their_direction() {
    const RATE: usize = 100_000;
    const LEN: usize = 3000;
    let rate = Some(RATE as u64);
    let limits = Limits { bytes_in_per_second: rate, bytes_out_per_second: rate, ..limits() };
    run_protocol(protocol(Dialect::PvCalls), limits, |guest| async move {
        let start = Instant::now();
        let (ring, peer) = connect(&guest, 1, 4).await;
        ring.send(None, b"hello").await;
        let (at, _) = peer.receive().await;
        let most = || {
            let micros = start.elapsed().as_micros() as usize + 1;
            // What was saved up, and one datagram that was begun.
            RATE / 8 + RATE * micros / 1_000_000 + 2 * LEN
        };
        for number in 1..=12 {
            ring.send(None, &pattern(LEN)).await;
            peer.receive().await;
            assert!(number * LEN <= most(), "{number} were sent");
        }
        let later = RATE * start.elapsed().as_micros() as usize / 1_000_000;
        for number in 1..=12 {
            peer.send(at, &pattern(LEN)).unwrap();
            ring.receive().await;
            assert!(number * LEN + later <= most() + later, "{number} were received");
        }
        guest.release(1).await.unwrap();
    });
}

#[test]
fn an_engine_whose_sockets_have_nothing_to_do_sleeps() {
    run_datagrams(|guest| async move {
        let (ring, _peer) = connect(&guest, 1, 1).await;
        guest.settle().await;
        let polls = guest.polls.get();
        Timer::after_millis(50).await;
        assert_eq!(guest.polls.get(), polls);
        assert_eq!(ring.in_error(), None);
        guest.release(1).await.unwrap();
    });
}

#[test]
fn an_engine_that_is_dropped_leaves_no_socket_of_datagrams() {
    run_datagrams(|guest| async move {
        let ring = open(&guest, 1, 53, 2).await;
        guest.call(2, NEW).await.unwrap();
        guest.call(2, Call::Bind { addr: address(54) }).await.unwrap();
        let (held, peer) = connect(&guest, 3, 1).await;
        guest.net.hold_datagrams(true);
        held.send(None, b"never").await;
        guest.ask(3, Call::Release { reuse: false });
        guest.settle().await;
        (ring, held, peer)
    });
}

#[test]
fn plain_dialects_have_no_sockets_of_datagrams() {
    run(|guest| async move {
        let ring = guest.ring(1);
        let id = guest.push_bytes(std::array::from_fn(|at| match at {
            // SOCKET: AF_INET, SOCK_DGRAM.
            16 | 20 => 2,
            _ => 0,
        }));
        guest.publish();
        assert_eq!(guest.answer(id).await, Err(Errno::EAFNOSUPPORT));
        drop(ring);
        let id = guest.push_bytes(std::array::from_fn(|at| match at {
            // OPEN is 263.
            4 => 7,
            5 => 1,
            _ => 0,
        }));
        guest.publish();
        assert_eq!(guest.answer(id).await, Err(Errno::ENOTSUP));
    });
}

#[test]
fn the_host_can_look_at_the_ring_of_a_socket() {
    run_datagrams(|guest| async move {
        let (ring, _peer) = connect(&guest, 1, 2).await;
        let view = guest.net.last_ring().expect("the engine reports it");
        let size = view.upgrade().map(|ring| ring.usage().in_size);
        assert_eq!(size, Some(ring.layout.input.size));
        guest.release(1).await.unwrap();
        assert!(view.upgrade().is_none(), "a view keeps no page mapped");
    });
}
