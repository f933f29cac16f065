//! Real sockets on the loopback interface, through the traits of the engine.

#[allow(dead_code, reason = "other tests use the rest")]
mod confined;
#[allow(dead_code, reason = "other tests use the rest")]
mod rig;

use confined::{GUEST, OTHER, any, has_ipv6, run, run_with};
use futures_util::future::select;
use rig::OPEN;
use rustix::net::sockopt;
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use std::{io::Read, io::Write, thread};
use xen::testing::memory;

use xen::{DomId, Errno, Shared};
use xensock::back::{Listener, Network, Socket as _, Stream};
use xensock::wire::{Options, SocketOption};
use xensockd::control::Kind;
use xensockd::handover::Legacy;
use xensockd::sockets::{Bound, Connected};

fn bytes(memory: Shared<'_>) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    bytes
}

async fn receive(stream: &Connected, room: [Shared<'_>; 2]) -> Result<usize, Errno> {
    poll_fn(|cx| stream.poll_recv(cx, room)).await
}

async fn send(stream: &Connected, data: [Shared<'_>; 2]) -> Result<usize, Errno> {
    poll_fn(|cx| stream.poll_send(cx, data)).await
}

async fn accept(listener: &Bound) -> Connected {
    accept_result(listener).await.unwrap()
}

async fn accept_result(listener: &Bound) -> Result<Connected, Errno> {
    poll_fn(|cx| listener.poll_accept(cx)).await
}

#[test]
fn bytes_move_both_ways_between_two_pieces_of_memory_and_a_socket() {
    run(async |rig| {
        let (stream, mut peer) = rig.connected().await;

        let data = memory(8);
        data.write(0, b"lohel");
        assert_eq!(send(&stream, [data.slice(2, 3), data.slice(0, 2)]).await, Ok(5));
        let mut got = [0; 5];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");

        let room = memory(8);
        let pieces = [room.slice(5, 3), room.slice(0, 4)];
        let writer = thread::spawn(move || {
            // Delayed, so that the receiver waits first.
            thread::sleep(Duration::from_millis(50));
            peer.write_all(b"abcde").unwrap();
            peer
        });
        assert_eq!(receive(&stream, pieces).await, Ok(5));
        assert_eq!(bytes(room), b"de\0\0\0abc");
        drop(writer.join().unwrap());
        assert_eq!(receive(&stream, pieces).await, Ok(0), "the end of the stream");
    });
}

#[test]
fn an_end_of_stream_that_comes_with_the_last_bytes_is_not_missed() {
    run(async |rig| {
        for _ in 0..50 {
            let server = TcpListener::bind(any()).unwrap();
            let address = server.local_addr().unwrap();
            let peer = thread::spawn(move || {
                let (mut peer, _) = server.accept().unwrap();
                peer.write_all(b"bye").unwrap();
            });
            let stream = rig.connect(address).await.unwrap();
            let room = memory(64);
            assert_eq!(receive(&stream, [room, room.slice(0, 0)]).await, Ok(3));
            assert_eq!(receive(&stream, [room, room.slice(0, 0)]).await, Ok(0));
            peer.join().unwrap();
        }
    });
}

#[test]
fn a_refused_connection_is_econnrefused() {
    run(async |rig| {
        let address = TcpListener::bind(any()).unwrap().local_addr().unwrap();
        let result = rig.connect(address).await;
        assert_eq!(result.err(), Some(Errno::ECONNREFUSED));
    });
}

#[test]
fn a_reset_connection_is_an_error_and_not_an_end() {
    run(async |rig| {
        let (stream, peer) = rig.connected().await;
        let data = memory(1);
        send(&stream, [data, data.slice(0, 0)]).await.unwrap();
        // Closing a socket that has unread bytes resets its connection.
        thread::sleep(Duration::from_millis(50));
        drop(peer);
        let room = memory(8);
        assert_eq!(receive(&stream, [room, room.slice(0, 0)]).await, Err(Errno::ECONNRESET));
    });
}

#[test]
fn a_sender_waits_while_its_peer_does_not_read() {
    run(async |rig| {
        let (stream, mut peer) = rig.connected().await;
        let data = memory(1 << 20);
        let pieces = [data, data.slice(0, 0)];
        let mut sent = 0;
        while let Some(result) = rig.within(200, send(&stream, pieces)).await {
            sent += result.unwrap();
        }
        assert!(sent > 0);
        let reader = thread::spawn(move || {
            let mut got = 0;
            let mut buffer = vec![0; 1 << 16];
            loop {
                match peer.read(&mut buffer).unwrap() {
                    0 => return got,
                    count => got += count,
                }
            }
        });
        sent += send(&stream, pieces).await.unwrap();
        drop(stream);
        assert_eq!(reader.join().unwrap(), sent);
    });
}

#[test]
fn linux_keeps_no_more_for_a_connection_than_the_rules_say() {
    let kept = |rules: &str| {
        let (rules, kept) = (format!("{OPEN}{rules}"), AtomicUsize::new(0));
        run_with(&rules, async |rig| {
            let listener = rig.bind(any()).unwrap();
            listener.listen(1).unwrap();
            let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            // Nearly all that it can send is kept for the guest, which does not read.
            sockopt::set_socket_send_buffer_size(&peer, 1).unwrap();
            let _stream = accept(&listener).await;
            peer.set_nonblocking(true).unwrap();
            let mut pauses = 0;
            while pauses < 5 {
                match peer.write(&[0; 1024]) {
                    Ok(count) => drop(kept.fetch_add(count, Relaxed)),
                    Err(_) => {
                        pauses += 1;
                        rig.reactor.sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        });
        kept.into_inner()
    };
    let (limited, unlimited) = (kept("socket-buffer = 16384"), kept(""));
    assert!(limited < 20_000 && unlimited > 40_000, "{limited} and {unlimited} bytes");
}

#[test]
fn a_listener_accepts_and_can_be_polled_without_accepting() {
    run(async |rig| {
        let listener = rig.bind(any()).unwrap();
        assert_eq!(
            poll_fn(|cx| listener.poll_accept(cx)).await.err(),
            Some(Errno::EINVAL),
            "it does not listen yet"
        );
        listener.listen(4).unwrap();
        listener.listen(8).unwrap();
        let address = listener.local_addr().unwrap();
        let nobody = poll_fn(|cx| listener.poll_acceptable(cx));
        assert!(rig.within(100, nobody).await.is_none(), "nobody has connected");
        let mut peer = TcpStream::connect(address).unwrap();
        for _ in 0..2 {
            poll_fn(|cx| listener.poll_acceptable(cx)).await.unwrap();
        }
        let stream = accept(&listener).await;
        peer.write_all(b"x").unwrap();
        let room = memory(4);
        assert_eq!(receive(&stream, [room, room.slice(0, 0)]).await, Ok(1));
        assert_eq!(rig.counts.sockets.get(), 2);
        drop((listener, stream));
        assert_eq!(rig.counts.sockets.get(), 0);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn guests_share_a_port_only_if_their_rules_are_of_one_section_that_says_so() {
    const RULES: &str = r#"
        [guest."web*"]
        share-ports = true
        [guest."other*"]
        share-ports = true
        [guest.alone]
        "#;
    run_with(RULES, async |rig| {
        let ids = [DomId(8), DomId(9), DomId(10)];
        let names = ["web-2", "other", "alone"];
        let mut _kept = Vec::new();
        for (id, name) in ids.into_iter().zip(names) {
            _kept.push(rig.meet(id, name).await);
        }
        let any = "127.0.0.1:0".parse().unwrap();
        // Linux chooses a free port; nobody else takes it in between.
        let port = rig.sockets.bind(GUEST, any, &Options::new()).unwrap().local_addr().unwrap();
        let bind = |id, at| {
            let bound = rig.sockets.bind(id, at, &Options::new())?;
            bound.listen(1).map(|()| bound)
        };
        let first = bind(GUEST, port).unwrap();
        let _second = bind(ids[0], port).unwrap();
        for taken in [port, format!("0.0.0.0:{}", port.port()).parse().unwrap()] {
            for id in &ids[1..] {
                assert_eq!(bind(*id, taken).err(), Some(Errno::EADDRINUSE));
            }
        }
        // A guest cannot choose to share.
        let shared = Options::new().with(SocketOption::ReusePort, 1);
        assert_eq!(rig.sockets.bind(ids[2], any, &shared).err(), Some(Errno::EPERM));
        let own = rig.sockets.bind(ids[2], any, &Options::new()).unwrap();
        assert_eq!(own.set_option(SocketOption::ReusePort, 1), Err(Errno::EPERM));
        assert_eq!(own.set_option(SocketOption::ReusePort, 0), Ok(()));
        assert_eq!(first.set_option(SocketOption::ReusePort, 1), Ok(()));
        // A socket that does not listen yet keeps its port, too.
        assert_eq!(bind(ids[1], own.local_addr().unwrap()).err(), Some(Errno::EADDRINUSE));
    });
}

#[test]
fn an_address_in_use_cannot_be_bound() {
    run(async |rig| {
        let first = rig.bind(any()).unwrap();
        first.listen(1).unwrap();
        let taken = first.local_addr().unwrap();
        assert_eq!(rig.bind(taken).err(), Some(Errno::EADDRINUSE));
        // Nor is that of another program.
        let other = TcpListener::bind(any()).unwrap();
        assert_eq!(rig.bind(other.local_addr().unwrap()).err(), Some(Errno::EADDRINUSE));
    });
}

#[test]
fn without_rules_a_guest_reaches_no_server_of_this_domain() {
    if !has_ipv6("[::]:0") {
        return;
    }
    run_with("", async |rig| {
        let server = TcpListener::bind("[::]:0").unwrap();
        let port = server.local_addr().unwrap().port();
        for ip in ["127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "127.255.0.1"] {
            let to = format!("{ip}:{port}").parse().unwrap();
            assert_eq!(rig.connect(to).await.err(), Some(Errno::EACCES), "{ip}");
        }
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let privileged = rig.bind("127.0.0.1:80".parse().unwrap());
        assert_eq!(privileged.err(), Some(Errno::EACCES));
        rig.bind(any()).unwrap();
    });
}

#[test]
fn a_port_chosen_by_linux_must_be_allowed_too() {
    run_with("[defaults]\nlisten = [80]", async |rig| {
        assert_eq!(rig.bind(any()).err(), Some(Errno::EACCES));
        assert_eq!(rig.counts.sockets.get(), 0);
    });
}

#[test]
fn a_mapped_port_is_served_elsewhere() {
    if !has_ipv6("[::]:0") {
        return;
    }
    let free = TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let rules = format!("[guest.web]\nlisten = {{ 80 = \"{free}\" }}");
    run_with(&rules, async |rig| {
        for asked in ["0.0.0.0:80", "127.0.0.7:80", "[::]:80"] {
            let listener = rig.bind(asked.parse().unwrap()).unwrap();
            listener.listen(1).unwrap();
            let peer = TcpStream::connect(free).unwrap();
            let stream = accept(&listener).await;
            let from = stream.peer_addr().unwrap();
            assert_eq!(from.is_ipv6(), asked.starts_with('['), "the family that was asked for");
            assert_eq!(from.ip().to_canonical(), peer.local_addr().unwrap().ip());
        }
        assert_eq!(rig.bind(free).err(), Some(Errno::EACCES), "the guest has no other port");
    });
}

#[test]
fn a_port_of_ipv4_can_be_mapped_to_an_address_of_ipv6() {
    if !has_ipv6("[::1]:0") {
        return;
    }
    let free = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let rules = format!("[defaults.listen]\n80 = \"{free}\"\n");
    run_with(&rules, async |rig| {
        let listener = rig.bind("0.0.0.0:80".parse().unwrap()).unwrap();
        listener.listen(1).unwrap();
        let peer = TcpStream::connect(free).unwrap();
        accept(&listener).await;
        drop(peer);
    });
}

#[test]
fn a_port_that_is_mapped_for_another_guest_cannot_be_taken_while_that_one_is_away() {
    let free = TcpListener::bind(any()).unwrap().local_addr().unwrap();
    run_with(&format!("[guest.shop]\nlisten = {{ 80 = \"{free}\" }}"), async |rig| {
        for at in [free, format!("0.0.0.0:{}", free.port()).parse().unwrap()] {
            assert_eq!(rig.bind(at).err(), Some(Errno::EACCES));
        }
        let shop = rig.meet(DomId(8), "shop").await;
        let at = "0.0.0.0:80".parse().unwrap();
        let bound = rig.sockets.bind(shop.id(), at, &Options::new()).unwrap();
        assert_eq!(bound.local_addr(), Ok(free));
    });
}

#[test]
fn new_rules_hold_for_the_next_call_and_leave_open_what_is() {
    run(async |rig| {
        let (stream, mut peer) = rig.connected().await;
        let listener = rig.bind(any()).unwrap();
        let bound = rig.bind(any()).unwrap();
        listener.listen(4).unwrap();
        rig.reload("[guest.web]\nlisten = []\nsockets = 3").await;
        assert_eq!(rig.guest.account().limits().sockets, 3);
        let server = TcpListener::bind(any()).unwrap().local_addr().unwrap();
        assert_eq!(rig.connect(server).await.err(), Some(Errno::EACCES));
        assert_eq!(rig.bind(any()).err(), Some(Errno::EACCES));
        assert_eq!(bound.listen(4), Err(Errno::EACCES));
        let data = memory(1);
        assert_eq!(send(&stream, [data, data.slice(0, 0)]).await, Ok(1));
        peer.read_exact(&mut [0]).unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        accept(&listener).await;
    });
}

#[test]
fn strict_rules_end_what_they_do_not_allow_and_nothing_else() {
    const STRICT: &str = "strict = true\n[guest.web]\nconnect = []\nlisten = [80]\n[guest.db]\n";
    run(async |rig| {
        let other = rig.meet(DomId(9), "db").await;
        let (stream, mut peer) = rig.connected().await;
        let listener = rig.bind(any()).unwrap();
        listener.listen(4).unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        let accepted = accept(&listener).await;
        let kept = rig.sockets.bind(other.id(), any(), &Options::new()).unwrap();
        kept.listen(4).unwrap();
        let room = memory(8);
        let pieces = [room, room.slice(0, 0)];
        let mut waiting = Box::pin(receive(&stream, pieces));
        assert!(rig.within(20, waiting.as_mut()).await.is_none());
        let mut next = Box::pin(accept_result(&listener));
        assert!(rig.within(20, next.as_mut()).await.is_none());

        rig.reload(STRICT).await;
        assert_eq!(waiting.await, Err(Errno::EACCES));
        assert_eq!(next.await.err(), Some(Errno::EACCES));
        assert_eq!(send(&accepted, pieces).await, Err(Errno::EACCES));
        assert_eq!(listener.listen(4), Err(Errno::EACCES));
        assert!(TcpStream::connect(address).is_err(), "clients are refused");
        drop((stream, accepted));
        for end in [&mut peer, &mut client] {
            assert!(!matches!(end.read(&mut [0]), Ok(1..)), "nothing more comes");
        }
        let _peer = TcpStream::connect(kept.local_addr().unwrap()).unwrap();
        accept(&kept).await;
    });
}

#[test]
fn a_name_that_the_guest_can_write_has_no_rules() {
    const RULES: &str = "[guest.admin]\nconnect = [\"any\"]";
    run_with(RULES, async |rig| {
        let id = DomId(8);
        let trusted = rig.meet(id, "admin").await;
        assert_eq!(trusted.to_string(), "domain 8 (admin)");
        assert!(trusted.is_connect_allowed(any()));
        // The domain owns its home, and here also what is in it.
        let node = "/local/domain/9/name";
        rig.tree.add_domain(DomId(9));
        rig.tree.write(node, "admin");
        let forged = rig.guests.meet(&rig.store, DomId(9)).await;
        assert_eq!(forged.to_string(), "domain 9");
        assert!(!forged.is_connect_allowed(any()));
    });
}

#[test]
fn the_status_of_a_guest_lists_its_sockets_and_each_can_be_ended() {
    run(async |rig| {
        let listener = rig.bind(any()).unwrap();
        listener.listen(4).unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let accepted = accept(&listener).await;
        let (stream, mut peer) = rig.connected().await;
        peer.write_all(b"hello").unwrap();
        let room = memory(8);
        let pieces = [room, room.slice(0, 0)];
        assert_eq!(receive(&stream, pieces).await, Ok(5));
        assert_eq!(send(&stream, pieces).await, Ok(8));

        let status = rig.guests.status();
        assert_eq!((status.len(), status[0].name.as_deref()), (1, Some("web")));
        let [first, second, third] = &status[0].sockets[..] else { panic!("{status:?}") };
        assert_eq!((first.kind, first.local), (Kind::Listen, Some(address)));
        assert_eq!((second.kind, second.local), (Kind::Accept, Some(address)));
        assert_eq!((third.kind, third.remote), (Kind::Connect, peer.local_addr().unwrap()));
        assert_eq!((third.bytes_in, third.bytes_out), (5, 8));

        assert!(rig.guest.close(third.number));
        assert_eq!(receive(&stream, pieces).await, Err(Errno::EACCES));
        assert_eq!(send(&stream, pieces).await, Err(Errno::EACCES));
        assert_eq!(send(&accepted, pieces).await, Ok(8), "the others stay");
        drop(stream);
        assert!(!rig.guest.close(third.number), "its number is not used again");
        assert!(rig.guest.close(first.number));
        assert!(TcpStream::connect(address).is_err());
    });
}

/// A listening socket of an earlier daemon that a guest had, and a client that waits in its queue.
fn legacy(guest: DomId, at: SocketAddr) -> (Legacy, SocketAddr, TcpStream) {
    let socket = TcpListener::bind(at).unwrap();
    socket.set_nonblocking(true).unwrap();
    let at = socket.local_addr().unwrap();
    let client = TcpStream::connect(at).unwrap();
    (Legacy { guest, asked: at, socket: socket.into() }, at, client)
}

#[test]
fn a_guest_gets_its_listening_socket_of_the_daemon_before_with_those_who_wait_there() {
    run(async |rig| {
        let (legacy, at, client) = legacy(GUEST, any());
        rig.keep(vec![legacy]).await;
        // Before the guest comes back, one daemon more may take the place of this one.
        rig.keep(rig.guest.listeners().take_kept()).await;
        let listener = rig.bind(at).unwrap();
        assert!(rig.guest.listeners().close_kept().is_empty(), "it is the guest's now");
        listener.listen(4).unwrap();
        let stream = accept(&listener).await;
        assert_eq!(stream.peer_addr(), Ok(client.local_addr().unwrap()));
        // It is left again, without what the operator has ended.
        let [left] = &rig.guests.legacies()[..] else { panic!("one socket") };
        assert_eq!((left.guest, left.asked), (GUEST, at));
        rig.guest.close(1);
        assert!(rig.guests.legacies().is_empty());
        drop(listener);
        assert!(rig.bind(at).is_ok());
    });
}

#[test]
fn a_kept_socket_is_for_no_other_guest_and_not_for_long() {
    run(async |rig| {
        let other = rig.meet(OTHER, "other").await;
        let (legacy, at, mut client) = legacy(OTHER, any());
        rig.keep(vec![legacy]).await;
        assert_eq!(rig.bind(at).err(), Some(Errno::EADDRINUSE));
        let kept = rig.guest.listeners().close_kept();
        assert_eq!(kept, [(other.to_string(), at)]);
        assert!(!matches!(client.read(&mut [0]), Ok(1..)), "the client is not kept either");
        assert!(rig.bind(at).is_ok());
    });
}

#[test]
fn a_kept_socket_that_the_rules_do_not_allow_or_whose_guest_is_gone_is_closed() {
    run(async |rig| {
        let (allowed, at, _client) = legacy(GUEST, any());
        let (other, other_at, _client) = legacy(GUEST, any());
        let (gone, gone_at, _client) = legacy(DomId(99), any());
        let (own, own_at, _client) = legacy(GUEST, any());
        let rules = format!("[defaults]\nlisten = [{}, {}]\n", at.port(), own_at.port());
        rig.reload(&rules).await;
        // The daemon itself is to listen there.
        rig.guest.listeners().reserve(Some(own_at));
        rig.keep(vec![allowed, other, gone, own]).await;
        for closed in [other_at, gone_at, own_at] {
            assert!(TcpStream::connect(closed).is_err());
        }
        let kept = rig.guest.listeners().close_kept();
        assert_eq!(kept, [(rig.guest.to_string(), at)]);
    });
}

#[test]
fn a_guest_that_shares_ports_gets_its_own_socket_back() {
    const SHARED: &str = "[guest.\"*\"]\nlisten = [\"1-65535\"]\nshare-ports = true\n";
    run(async |rig| {
        rig.reload(SHARED).await;
        let _other = rig.meet(OTHER, "other").await;
        let (one, at, _client) = legacy(GUEST, any());
        // Without `SO_REUSEPORT` it is another kind of socket, which is in the way.
        rig.keep(vec![one]).await;
        let bound = rig.bind(at).unwrap();
        bound.listen(1).unwrap();
        let theirs = rig.sockets.bind(OTHER, at, &Options::new()).unwrap();
        theirs.listen(1).unwrap();
        let left = rig.guests.legacies();
        drop((bound, theirs));
        assert_eq!(left.len(), 2);
        rig.keep(left).await;
        let client = TcpStream::connect(at).unwrap();
        // Whichever has the client.
        let all = [GUEST, OTHER].map(|id| rig.sockets.bind(id, at, &Options::new()).unwrap());
        assert!(rig.guest.listeners().close_kept().is_empty());
        all.iter().for_each(|listener| listener.listen(1).unwrap());
        let [one, other] = &all;
        let accepts = select(Box::pin(accept(one)), Box::pin(accept(other)));
        let peer = accepts.await.factor_first().0.peer_addr();
        assert_eq!(peer, Ok(client.local_addr().unwrap()));
    });
}

#[test]
fn nobody_is_accepted_once_the_daemon_leaves() {
    run(async |rig| {
        let listener = rig.bind(any()).unwrap();
        listener.listen(4).unwrap();
        let _first = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(accept(&listener).await);
        rig.guest.leaving().store(true, Relaxed);
        let _second = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(rig.within(100, accept(&listener)).await.is_none());
        assert!(rig.within(100, poll_fn(|cx| listener.poll_acceptable(cx))).await.is_none());
    });
}
