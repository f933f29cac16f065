//! Real sockets on the loopback interface, through the traits of the engine.

use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use std::{io::Read, io::Write, thread};
use xen::testing::memory;
use xen::{DomId, Errno, Shared};
use xen_linux::runtime::{Reactor, Runtime, timeout};
use xensock::back::{Listener, Network, Socket as _, Stream};
use xensock::wire::Options;
use xensockd::counts::Counts;
use xensockd::sockets::{Bound, Connected, Sockets};

const GUEST: DomId = DomId(7);

const LONG: Duration = Duration::from_secs(60);

fn run<F: Future<Output = ()>>(test: impl FnOnce(Rig) -> F) {
    let mut runtime = Runtime::new().unwrap();
    let (reactor, counts) = (runtime.reactor().clone(), Counts::default());
    let sockets = Sockets::new(&reactor, counts.sockets.clone(), false);
    let test = test(Rig { reactor: reactor.clone(), counts, sockets });
    let test = async { timeout(&reactor, LONG, test).await.expect("the test takes too long") };
    runtime.block_on(test).unwrap();
}

struct Rig {
    reactor: Reactor,
    counts: Counts,
    sockets: Sockets,
}

impl Rig {
    async fn connect(&self, addr: SocketAddr) -> Result<Connected, Errno> {
        self.sockets.connect(GUEST, addr, &Options::new()).await
    }

    /// A connection, and its peer.
    async fn connected(&self) -> (Connected, TcpStream) {
        let server = TcpListener::bind(any()).unwrap();
        let stream = self.connect(server.local_addr().unwrap()).await.unwrap();
        (stream, server.accept().unwrap().0)
    }

    fn bind(&self, addr: SocketAddr) -> Result<Bound, Errno> {
        self.sockets.bind(GUEST, addr, &Options::new())
    }

    /// The result of `future`, unless it takes this long.
    async fn within<T>(&self, millis: u64, future: impl Future<Output = T>) -> Option<T> {
        timeout(&self.reactor, Duration::from_millis(millis), future).await
    }
}

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
    poll_fn(|cx| listener.poll_accept(cx)).await.unwrap()
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
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
fn an_address_in_use_cannot_be_bound_unless_ports_are_shared() {
    run(async |rig| {
        let first = rig.bind(any()).unwrap();
        first.listen(1).unwrap();
        let taken = first.local_addr().unwrap();
        assert_eq!(rig.bind(taken).err(), Some(Errno::EADDRINUSE));

        let sharing = Sockets::new(&rig.reactor, Counts::default().sockets, true);
        let first = sharing.bind(GUEST, any(), &Options::new()).unwrap();
        first.listen(1).unwrap();
        let second = sharing.bind(GUEST, first.local_addr().unwrap(), &Options::new()).unwrap();
        second.listen(1).unwrap();
    });
}
