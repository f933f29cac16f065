//! The daemon runs out of files. A limit of this process stands for that of the daemon, so this is
//! the only test of its program.

#[allow(dead_code, reason = "other tests use the rest")]
mod rig;

use rig::{DOM0, OPEN, client, guests};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::time::Duration;
use std::{fs::File, io::Read, io::Write};
use xen::testing::{FakeStore, memory};
use xen::{DomId, Errno};
use xen_linux::runtime::{Runtime, timeout};
use xensock::back::{Listener, Network, Socket as _, Stream};
use xensock::wire::Options;
use xensockd::counts::Counts;
use xensockd::sockets::{Connected, Sockets};

const GUEST: DomId = DomId(7);

/// The log.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Lets this process open so many more files.
fn permit_files(more: u64) {
    let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(next + more), maximum }).unwrap();
}

async fn echo(stream: &Connected, peer: &mut TcpStream) {
    peer.write_all(b"x").unwrap();
    let room = memory(8);
    let pieces = [room, room.slice(0, 0)];
    assert_eq!(poll_fn(|cx| stream.poll_recv(cx, pieces)).await, Ok(1));
    let data = [room.slice(0, 1), room.slice(0, 0)];
    assert_eq!(poll_fn(|cx| stream.poll_send(cx, data)).await, Ok(1));
    peer.read_exact(&mut [0]).unwrap();
}

#[test]
fn without_files_new_sockets_are_refused_open_ones_go_on_and_the_log_says_so_now_and_then() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let mut runtime = Runtime::new().unwrap();
    let (reactor, counts, guests) = (runtime.reactor().clone(), Counts::default(), guests(OPEN));
    let sockets = Sockets::new(&reactor, counts.sockets.clone(), guests.clone());
    let tree = FakeStore::new();
    tree.add_domain(GUEST);
    let store = client(&tree, DOM0, runtime.spawner());
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let test = async {
        let _guest = guests.meet(&store, GUEST).await;
        let none = Options::new();
        let connect = |to| sockets.connect(GUEST, to, &none);
        let bind = || sockets.bind(GUEST, any, &none);
        let listener = bind().unwrap();
        listener.listen(8).unwrap();
        let accept = || poll_fn(|cx| listener.poll_accept(cx));
        let server = TcpListener::bind(any).unwrap();
        let stream = connect(server.local_addr().unwrap()).await.unwrap();
        let mut peer = server.accept().unwrap().0;
        // Clients that the listener has no files for yet.
        let address = listener.local_addr().unwrap();
        let clients = [(); 2].map(|()| TcpStream::connect(address).unwrap());

        permit_files(1);
        let last = bind().unwrap();
        for _ in 0..1000 {
            assert_eq!(connect(address).await.err(), Some(Errno::EMFILE));
            assert_eq!(bind().err(), Some(Errno::EMFILE));
            assert_eq!(accept().await.err(), Some(Errno::EMFILE));
        }
        echo(&stream, &mut peer).await;
        // A socket that ends makes room for one of them, and then for the other.
        drop(last);
        for client in &clients {
            let accepted = accept().await.unwrap();
            assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
            assert_eq!(connect(address).await.err(), Some(Errno::EMFILE));
        }
        permit_files(64);
        // The daemon keeps some for itself.
        counts.sockets.set_most(counts.sockets.get());
        assert_eq!(connect(address).await.err(), Some(Errno::EMFILE));
        assert_eq!(bind().err(), Some(Errno::EMFILE));
        let mut late = TcpStream::connect(address).unwrap();
        assert_eq!(accept().await.err(), Some(Errno::EMFILE));
        counts.sockets.set_most(u64::MAX);
        echo(&accept().await.unwrap(), &mut late).await;
        let again = connect(server.local_addr().unwrap()).await.unwrap();
        echo(&again, &mut server.accept().unwrap().0).await;
        echo(&stream, &mut peer).await;
    };
    let whole = timeout(&reactor, Duration::from_secs(60), test);
    runtime.block_on(whole).unwrap().expect("the test takes too long");
    assert_eq!(counts.sockets.get(), 0);
    let lines = LINES.0.lock().unwrap();
    let short = |line: &&String| line.contains("a socket is refused: the daemon has no more files");
    let count = lines.iter().filter(short).count();
    assert!((1..=7).contains(&count), "{count} lines: {lines:?}");
}
