//! Datagram sockets.

mod rig;

use edge_nal::{Readable, UdpReceive, UdpSend};
use futures_util::FutureExt;
use futures_util::future::join;
use rig::script::{DATAGRAMS, Mapped, Records, Script};
use rig::{Rig, address, config, pattern, with_frontend};
use std::net::SocketAddr;
use xen::Errno;
use xen::testing::FakeMachine;
use xensock::front::Datagrams;
use xensock::wire::{Call, Extensions, Family, Options, Record, SocketOption};

/// A free port of all addresses.
fn any() -> SocketAddr {
    ([0, 0, 0, 0], 0).into()
}

/// Runs a test with a frontend and a script as its backend.
fn with_script(test: impl AsyncFnOnce(&Rig, &mut Script)) {
    with_frontend(config(), |rig| async move {
        let mut script = Script::attach_with(&rig, DATAGRAMS).await;
        test(&rig, &mut script).await;
        script.close().await;
    });
}

/// An open socket that is connected to `peer`, and its ring.
async fn open(
    rig: &Rig,
    script: &mut Script,
    peer: Option<SocketAddr>,
) -> (Datagrams<FakeMachine>, Mapped) {
    let opening = async {
        match peer {
            Some(peer) => rig.frontend.connect_udp(any(), peer).await,
            None => rig.frontend.bind_udp(any()).await,
        }
    };
    let (socket, (_, ring)) = join(opening, script.let_open()).await;
    (socket.unwrap(), ring)
}

#[test]
fn a_socket_is_opened_with_one_event() {
    with_script(async |rig, script| {
        let events = rig.frontend.statistics().notifications_sent;
        let options = Options::new().with(SocketOption::Broadcast, 1);
        let opening = rig.frontend.bind_udp_with(address(53), options);
        let (socket, (calls, _ring)) = join(opening, script.let_open()).await;
        assert_eq!(rig.frontend.statistics().notifications_sent - events, 1);
        assert_eq!(
            calls[..3],
            [
                Call::DatagramSocket { family: Family::V4 },
                Call::SetOption { option: SocketOption::Broadcast, value: 1 },
                Call::Bind { addr: address(53) },
            ]
        );
        assert!(matches!(calls[3], Call::Open { peer: None, .. }) && calls.len() == 4);
        assert_eq!(socket.unwrap().local_addr(), Ok(address(53)));
        assert_eq!(rig.frontend.statistics().datagram_sockets_open, 1);

        let (_other, (calls, _ring)) =
            join(rig.frontend.connect_udp(any(), address(53)), script.let_open()).await;
        assert!(matches!(calls[1], Call::Open { peer: Some(_), .. }), "no BIND is needed");
    });
}

#[test]
fn a_record_names_the_destination_unless_the_socket_is_connected() {
    with_script(async |rig, script| {
        for peer in [None, Some(address(7))] {
            let (mut socket, ring) = open(rig, script, peer).await;
            let mut records = Records::new(&ring);
            socket.send(address(9), b"hello").await.unwrap();
            let (record, payload) = records.take().unwrap();
            assert_eq!(record, Record::new(5, peer.is_none().then_some(address(9))));
            assert_eq!(payload, b"hello");
            assert!(records.take().is_none());
            records.put(Record::new(6, Some(address(7))), b"answer");
            let mut some = [0; 3];
            assert_eq!(socket.receive(&mut some).await, Ok((6, address(7))));
            assert_eq!(&some, b"ans");
            assert!(socket.receive(&mut some).now_or_never().is_none());
        }
    });
}

#[test]
fn an_error_record_is_an_error_of_the_next_call_alone() {
    with_script(async |rig, script| {
        let (mut socket, ring) = open(rig, script, Some(address(7))).await;
        let mut records = Records::new(&ring);
        let refused = Record::error(Errno::ECONNREFUSED, Some(address(7)));
        for record in [Record::new(1, Some(address(7))), refused, refused] {
            records.put(record, &[7][..record.len as usize]);
        }
        let mut byte = [0];
        assert_eq!(socket.send(address(7), b"x").await, Ok(()), "a datagram comes first");
        assert_eq!(socket.receive(&mut byte).await, Ok((1, address(7))));
        assert_eq!(socket.readable().await, Ok(()));
        assert_eq!(socket.receive(&mut byte).await, Err(Errno::ECONNREFUSED));
        assert_eq!(socket.send(address(7), b"y").await, Err(Errno::ECONNREFUSED));
        assert_eq!(socket.send(address(7), b"z").await, Ok(()));
        assert!(socket.receive(&mut byte).now_or_never().is_none());
        let sent = || records.take().map(|(_, payload)| payload);
        let sent: Vec<_> = std::iter::from_fn(sent).collect();
        assert_eq!(sent, [b"x", b"z"]);
        let statistics = rig.frontend.statistics();
        assert_eq!((statistics.datagrams_received, statistics.datagrams_sent), (1, 2));
    });
}

#[test]
fn a_datagram_that_no_ring_holds_is_emsgsize() {
    with_script(async |rig, script| {
        let (mut socket, ring) = open(rig, script, None).await;
        let longest = socket.longest();
        assert_eq!(longest, 8192 - 40, "the script's rings have order 2 at most");
        let data = pattern(longest + 1);
        assert_eq!(socket.send(address(7), &data).await, Err(Errno::EMSGSIZE));
        socket.send(address(7), &data[..longest]).await.unwrap();
        let mut records = Records::new(&ring);
        assert!(records.take().unwrap().1 == data[..longest]);
    });
}

#[test]
fn a_sender_waits_until_its_whole_datagram_has_room() {
    with_script(async |rig, script| {
        let (mut socket, ring) = open(rig, script, None).await;
        let mut records = Records::new(&ring);
        let data = pattern(3000);
        for _ in 0..2 {
            socket.send(address(7), &data).await.unwrap();
        }
        let (sent, ()) = join(socket.send(address(8), &data), async {
            rig.until(|| true).await;
            assert!(records.take().unwrap().1 == data);
            assert!(records.take().unwrap().1 == data);
            assert!(records.take().is_none(), "no part of a record is visible");
        })
        .await;
        sent.unwrap();
        let (record, payload) = records.take().unwrap();
        assert_eq!(record.addr, Some(address(8)));
        assert!(payload == data);
    });
}

#[test]
fn datagrams_in_place_may_be_shorter_than_their_room() {
    with_script(async |rig, script| {
        let (mut socket, ring) = open(rig, script, None).await;
        let mut records = Records::new(&ring);
        let sent = socket.send_in_place(address(7), 100, |room| {
            room[0].write(0, b"in place");
            (8, room[0].len())
        });
        assert_eq!(sent.await, Ok(100));
        assert_eq!(records.take(), Some((Record::new(8, Some(address(7))), b"in place".to_vec())));
        records.put(Record::new(8, Some(address(9))), b"received");
        let received = socket.receive_in_place(|from, data| {
            let mut copy = [0; 8];
            data[0].read(0, &mut copy);
            (from, copy)
        });
        assert_eq!(received.await, Ok((address(9), *b"received")));
    });
}

#[test]
fn a_backend_without_datagram_sockets_is_eopnotsupp() {
    for extensions in [Extensions::empty(), Extensions::DATAGRAM] {
        with_frontend(config(), |rig| async move {
            let script = Script::attach_with(&rig, extensions).await;
            let bound = rig.frontend.bind_udp(any()).await.map(drop);
            assert_eq!(bound, Err(Errno::EOPNOTSUPP));
            script.close().await;
        });
    }
}
