//! A thread that is confined as those of the daemon, with real sockets.

use super::rig::{DOM0, OPEN, client, guests, policy};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::resume_unwind;
use std::path::Path;
use std::rc::Rc;
use std::thread;
use std::time::Duration;
use xen::testing::FakeStore;
use xen::xenstore::{Access, Permission, Store};
use xen::{DomId, Errno};
use xen_linux::runtime::{Reactor, Runtime, timeout};
use xensock::back::Network;
use xensock::wire::Options;
use xensockd::counts::Counts;
use xensockd::guests::{Guest, Guests};
use xensockd::handover::Legacy;
use xensockd::sandbox::{Files, confine};
use xensockd::sockets::{Bound, Connected, Sockets};

pub const GUEST: DomId = DomId(7);
pub const OTHER: DomId = DomId(8);

const LONG: Duration = Duration::from_secs(60);

/// Whether sockets can be bound to this address of IPv6. If not, says why the test is skipped.
pub fn has_ipv6(at: &str) -> bool {
    let bound = TcpListener::bind(at);
    let why = |error: &_| eprintln!("skipped: this machine has no IPv6: {at}: {error}");
    bound.inspect_err(why).is_ok()
}

pub fn run<F: Future<Output = ()>>(test: impl FnOnce(Rig) -> F + Send) {
    run_with(OPEN, test);
}

/// Runs a test with these rules and a guest, whose name is `web`, in a thread that is confined as
/// those of the daemon.
pub fn run_with<F: Future<Output = ()>>(rules: &str, test: impl FnOnce(Rig) -> F + Send) {
    let ended = thread::scope(|scope| {
        let confined = scope.spawn(|| {
            let none = Path::new("/nowhere/at/all");
            confine(&Files { rules: none, control: none }).unwrap();
            run_confined(rules, test);
        });
        confined.join()
    });
    ended.unwrap_or_else(|panic| resume_unwind(panic));
}

fn run_confined<F: Future<Output = ()>>(rules: &str, test: impl FnOnce(Rig) -> F) {
    let mut runtime = Runtime::new().unwrap();
    let (reactor, counts, guests) = (runtime.reactor().clone(), Counts::default(), guests(rules));
    let sockets = Sockets::new(&reactor, counts.sockets.clone(), guests.clone());
    let tree = FakeStore::new();
    let store = client(&tree, DOM0, runtime.spawner());
    let test = async {
        let guest = meet(&tree, &store, &guests, GUEST, "web").await;
        let rig = Rig { reactor: reactor.clone(), counts, sockets, guests, tree, store, guest };
        timeout(&reactor, LONG, test(rig)).await.expect("the test takes too long")
    };
    runtime.block_on(test).unwrap();
}

/// A guest with this name.
async fn meet(
    tree: &FakeStore,
    store: &Store,
    guests: &Guests,
    id: DomId,
    name: &str,
) -> Rc<Guest> {
    tree.add_domain(id);
    let node = format!("/local/domain/{id}/name");
    tree.write(&node, name);
    let readable = [(Access::None, DOM0), (Access::Read, id)];
    let readable = readable.map(|(access, domain)| Permission { access, domain });
    tree.set_permissions(&node, &readable);
    guests.meet(store, id).await
}

pub struct Rig {
    pub reactor: Reactor,
    pub counts: Counts,
    pub sockets: Sockets,
    pub guests: Guests,
    pub tree: FakeStore,
    pub store: Store,
    pub guest: Rc<Guest>,
}

impl Rig {
    pub async fn meet(&self, id: DomId, name: &str) -> Rc<Guest> {
        meet(&self.tree, &self.store, &self.guests, id, name).await
    }

    pub async fn reload(&self, rules: &str) {
        self.guests.apply(&self.store, policy(rules)).await;
    }

    pub async fn connect(&self, addr: SocketAddr) -> Result<Connected, Errno> {
        self.sockets.connect(GUEST, addr, &Options::new()).await
    }

    /// A connection, and its peer.
    pub async fn connected(&self) -> (Connected, TcpStream) {
        let server = TcpListener::bind(any()).unwrap();
        let stream = self.connect(server.local_addr().unwrap()).await.unwrap();
        (stream, server.accept().unwrap().0)
    }

    /// Keeps sockets of an earlier daemon, as one does that starts.
    pub async fn keep(&self, legacies: Vec<Legacy>) {
        self.guest.listeners().keep(legacies);
        self.guests.check_kept(&self.store).await;
    }

    pub fn bind(&self, addr: SocketAddr) -> Result<Bound, Errno> {
        self.sockets.bind(GUEST, addr, &Options::new())
    }

    /// The result of `future`, unless it takes this long.
    pub async fn within<T>(&self, millis: u64, future: impl Future<Output = T>) -> Option<T> {
        timeout(&self.reactor, Duration::from_millis(millis), future).await
    }
}

/// Any port of the loopback interface.
pub fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}
