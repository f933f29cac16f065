//! The life of devices: the daemon's own code and real sockets on the loopback interface, over
//! fakes of xenstored and of the guests' memory and events.

#[allow(dead_code, reason = "other tests use the rest")]
mod rig;

use embedded_io_async::{Read, Write};
use futures_util::future::{Either, join, select};
use rig::{
    DOM0, Guest, OPEN, back, back_of, backend, client, front, front_of, frontend_of, guests,
};
use std::cell::Cell;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use std::{io, thread};
use xen::testing::{FakeStore, World};
use xen::{DomId, Errno, Flag};
use xen_linux::runtime::{Reactor, Runtime, Spawner, Task, timeout};
use xensock::wire::Dialect;
use xensockd::counts::Counts;
use xensockd::finder::Finder;
use xensockd::sockets::Sockets;
use xensockd::threads::Placement;

/// The longest time for a test, even on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A machine with a daemon.
struct Rig {
    world: World,
    tree: FakeStore,
    counts: Counts,
    stop: Rc<Flag>,
    daemon: Task,
    reactor: Reactor,
    spawner: Spawner,
}

/// Runs a test, and checks that the daemon holds nothing afterwards.
fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<Rig>) -> F) {
    run_with(OPEN, test);
}

fn run_with<F: Future<Output = ()>>(rules: &str, test: impl FnOnce(Rc<Rig>) -> F) {
    let mut runtime = Runtime::new().unwrap();
    let (reactor, spawner) = (runtime.reactor().clone(), runtime.spawner().clone());
    let (world, tree) = (World::new(), FakeStore::new());
    tree.add_domain(DOM0);
    let counts = Counts::default();
    let stop = Rc::new(Flag::default());
    let guests = guests(rules);
    let sockets = Sockets::new(&reactor, counts.sockets.clone(), guests.clone());
    let store = client(&tree, DOM0, &spawner);
    let seat = Placement::new(1).seat(0);
    let backend = backend(&world, store, sockets, guests, &counts, &stop, seat);
    let [mut finder, mut second] =
        Dialect::ALL.map(|dialect| Finder::new(backend.clone(), &spawner, dialect));
    let stopping = stop.clone();
    let daemon = spawner.spawn(async move {
        {
            let finding = select(Box::pin(finder.run()), Box::pin(second.run()));
            if let Either::Left(_) = select(finding, pin!(stopping.raised())).await {
                panic!("a finder failed");
            }
        }
        join(finder.stopped(), second.stopped()).await;
    });
    let rig = Rc::new(Rig { world, tree, counts, stop, daemon, reactor, spawner });
    let whole = async {
        timeout(&rig.reactor, LIMIT, test(rig.clone())).await.expect("the test takes too long");
        rig.stop.raise();
        rig.daemon.finished().await;
        assert_eq!(rig.counts.to_string(), "guests=0 sockets=0 mappings=0 ports=0");
        rig.world.assert_clean();
    };
    runtime.block_on(whole).unwrap();
}

/// The driver of a guest's frontend.
struct Driver {
    task: Task,
    ended: Rc<Cell<Option<Errno>>>,
}

impl Driver {
    async fn finished(self) -> Option<Errno> {
        self.task.finished().await;
        self.ended.get()
    }
}

impl Rig {
    /// Creates a domain with a device, as the toolstack does.
    fn create(&self, guest: DomId) {
        self.tree.add_domain(guest);
        self.create_with_frontend(guest, &front(guest));
    }

    fn create_with_frontend(&self, guest: DomId, frontend: &str) {
        let (front, back) = (front(guest), back(guest));
        self.tree.add_device((&front, guest), (&back, DOM0));
        self.tree.write(&format!("{back}/frontend"), frontend);
    }

    /// Boots a guest with a frontend.
    fn boot(&self, guest: DomId) -> (Guest, Driver) {
        self.boot_over(guest, Dialect::PvCalls)
    }

    fn boot_over(&self, guest: DomId, dialect: Dialect) -> (Guest, Driver) {
        let store = client(&self.tree, guest, &self.spawner);
        let (frontend, driver) = frontend_of(&self.world, store, guest, dialect);
        let ended = Rc::new(Cell::new(None));
        let end = ended.clone();
        let task = self.spawner.spawn(async move { end.set(Some(driver.run().await)) });
        (frontend, Driver { task, ended })
    }

    async fn sleep(&self, time: Duration) {
        self.reactor.sleep(time).await;
    }

    fn state(&self, guest: DomId) -> String {
        self.tree.read(&format!("{}/state", back(guest))).unwrap_or_default()
    }

    async fn until(&self, mut done: impl FnMut() -> bool) {
        while !done() {
            self.sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A real server that echoes one connection.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        io::copy(&mut peer.try_clone().unwrap(), &mut peer).unwrap();
    });
    address
}

async fn talk(frontend: &Guest) {
    let mut stream = frontend.connect(echo_server()).await.unwrap();
    for round in 0..20u8 {
        let sent = [round; 3000];
        stream.write_all(&sent).await.unwrap();
        let mut got = [0; 3000];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(got, sent);
    }
}

#[test]
fn a_guest_exchanges_data_with_a_real_server() {
    run(|rig| async move {
        rig.create(DomId(7));
        let (frontend, driver) = rig.boot(DomId(7));
        talk(&frontend).await;
        assert_eq!(rig.state(DomId(7)), "4");
        assert_eq!(rig.counts.guests.get(), 1);
        frontend.shutdown().await;
        assert_eq!(driver.finished().await, Some(Errno::ENODEV));
        rig.until(|| rig.state(DomId(7)) == "2").await;
    });
}

#[test]
fn a_guest_listens_on_a_real_port() {
    run(|rig| async move {
        rig.create(DomId(7));
        let (frontend, driver) = rig.boot(DomId(7));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = frontend.bind(port).await.unwrap();
        for round in 0..5u8 {
            let asking = thread::spawn(move || {
                let mut peer = TcpStream::connect(port).unwrap();
                io::Write::write_all(&mut peer, &[round]).unwrap();
                peer.shutdown(std::net::Shutdown::Write).unwrap();
                let mut all = Vec::new();
                io::Read::read_to_end(&mut peer, &mut all).unwrap();
                all
            });
            let mut stream = listener.accept().await.unwrap();
            let mut got = [0; 8];
            assert_eq!(stream.read(&mut got).await, Ok(1));
            assert_eq!(stream.read(&mut got[1..]).await, Ok(0), "the client has closed");
            // The client still receives.
            stream.write_all(&[got[0]; 1000]).await.unwrap();
            drop(stream);
            rig.until(|| asking.is_finished()).await;
            assert_eq!(asking.join().unwrap(), [round; 1000]);
        }
        drop(listener);
        frontend.shutdown().await;
        assert_eq!(driver.finished().await, Some(Errno::ENODEV));
    });
}

#[test]
fn several_guests_are_served_and_a_destroyed_one_leaves_nothing() {
    run(|rig| async move {
        let guests = [DomId(3), DomId(4), DomId(5)];
        guests.iter().for_each(|guest| rig.create(*guest));
        let booted: Vec<_> = guests.iter().map(|guest| rig.boot(*guest)).collect();
        for (frontend, _) in &booted {
            talk(frontend).await;
        }
        assert_eq!(rig.counts.guests.get(), 3);
        let _open = booted[0].0.connect(echo_server()).await.unwrap();
        // The toolstack removes the nodes of a domain that it destroyed.
        rig.tree.rm(&back(guests[0]));
        rig.until(|| rig.counts.guests.get() == 2).await;
        assert_eq!(rig.counts.sockets.get(), 0);
        // A domain that was destroyed before its nodes are removed.
        let home = format!("/local/domain/{}", guests[1]);
        rig.tree.rm(&home);
        rig.tree.fire("@releaseDomain");
        rig.until(|| rig.counts.guests.get() == 1).await;
        talk(&booted[2].0).await;
        for (frontend, driver) in booted {
            frontend.shutdown().await;
            assert_eq!(driver.finished().await, Some(Errno::ENODEV));
        }
    });
}

#[test]
fn a_guest_with_invalid_nodes_is_closed_and_can_connect_later() {
    run(|rig| async move {
        let guest = DomId(7);
        rig.create(guest);
        rig.until(|| rig.state(guest) == "2").await;
        let nonsense = [
            ("version", "2", "5"),
            ("ring-ref", "-1", "5"),
            ("port", "99999999999", "5"),
            ("ring-ref", "no number at all", "5"),
            ("ring-ref", "12345", "5"),
            ("state", "banana", "2"),
        ];
        for (node, value, expected) in nonsense {
            for (name, good) in [("version", "1"), ("ring-ref", "8"), ("port", "1")] {
                rig.tree.write(&format!("{}/{name}", front(guest)), good);
            }
            rig.tree.write(&format!("{}/{node}", front(guest)), value);
            if node != "state" {
                rig.tree.write(&format!("{}/state", front(guest)), "3");
            }
            rig.until(|| rig.state(guest) == expected).await;
            rig.tree.write(&format!("{}/state", front(guest)), "6");
            rig.until(|| rig.state(guest) == "2").await;
        }
        let (frontend, driver) = rig.boot(guest);
        talk(&frontend).await;
        frontend.shutdown().await;
        assert_eq!(driver.finished().await, Some(Errno::ENODEV));
    });
}

#[test]
fn a_frontend_in_another_domain_s_folder_is_not_served() {
    run(|rig| async move {
        rig.tree.add_domain(DomId(7));
        rig.tree.add_domain(DomId(71));
        for wrong in [front(DomId(71)), "/local/domain/7".into(), "device/pvcalls/0".into()] {
            rig.create_with_frontend(DomId(7), &wrong);
            rig.sleep(Duration::from_millis(50)).await;
            assert_eq!(rig.state(DomId(7)), "1", "{wrong}");
            rig.tree.rm(&back(DomId(7)));
            rig.sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn the_toolstack_can_detach_the_device_of_a_guest_that_runs() {
    run(|rig| async move {
        let guest = DomId(7);
        rig.create(guest);
        let (frontend, driver) = rig.boot(guest);
        talk(&frontend).await;
        rig.tree.write(&format!("{}/online", back(guest)), "0");
        rig.tree.write(&format!("{}/state", back(guest)), "5");
        rig.until(|| rig.state(guest) == "6").await;
        assert_eq!(rig.counts.guests.get(), 0);
        rig.tree.rm(&back(guest));
        rig.tree.rm(&front(guest));
        frontend.shutdown().await;
        assert_eq!(driver.finished().await, Some(Errno::ENODEV));
    });
}

#[test]
fn a_guest_that_does_not_close_cannot_prevent_the_removal_of_its_device() {
    run(|rig| async move {
        let guest = DomId(7);
        rig.create(guest);
        rig.tree.write(&format!("{}/state", front(guest)), "4");
        rig.until(|| rig.state(guest) == "5").await;
        rig.tree.write(&format!("{}/online", back(guest)), "0");
        // The frontend never closes; after a few seconds the backend closes without it.
        rig.until(|| rig.state(guest) == "6").await;
    });
}

#[test]
fn a_guest_of_a_killed_daemon_connects_to_the_next() {
    run(|rig| async move {
        let guest = DomId(7);
        // The nodes that a killed daemon leaves behind: both ends are in Connected.
        rig.tree.add_domain(guest);
        let (front, back) = (front(guest), back(guest));
        rig.tree.write(&format!("{front}/state"), "4");
        rig.create_with_frontend(guest, &front);
        rig.tree.write(&format!("{front}/state"), "4");
        rig.tree.write(&format!("{back}/state"), "4");
        rig.until(|| rig.state(guest) == "5").await;
        let (frontend, driver) = rig.boot(guest);
        talk(&frontend).await;
        frontend.shutdown().await;
        assert_eq!(driver.finished().await, Some(Errno::ENODEV));
    });
}

#[test]
fn stopping_the_daemon_closes_sockets_and_devices() {
    run(|rig| async move {
        let guest = DomId(7);
        rig.create(guest);
        let (frontend, driver) = rig.boot(guest);
        let mut stream = frontend.connect(echo_server()).await.unwrap();
        rig.stop.raise();
        rig.until(|| rig.state(guest) == "6").await;
        assert_eq!(rig.counts.to_string(), "guests=0 sockets=0 mappings=0 ports=0");
        assert!(stream.write_all(&[0; 100_000]).await.is_err());
        drop(stream);
        frontend.shutdown().await;
        assert_eq!(driver.finished().await, Some(Errno::ENODEV));
    });
}

#[test]
fn limits_hold_for_all_devices_of_a_guest_together() {
    run_with(&format!("{OPEN}sockets = 3"), |rig| async move {
        let guest = DomId(7);
        rig.create(guest);
        let (front, back) = (front_of(guest, Dialect::Draft1), back_of(guest, Dialect::Draft1));
        rig.tree.add_device((&front, guest), (&back, DOM0));
        let (first, driver) = rig.boot(guest);
        let (second, other) = rig.boot_over(guest, Dialect::Draft1);
        let any = "127.0.0.1:0".parse().unwrap();
        let mut held = vec![first.bind(any).await.unwrap(), second.bind(any).await.unwrap()];
        held.push(first.bind(any).await.unwrap());
        for frontend in [&first, &second] {
            assert_eq!(frontend.bind(any).await.err(), Some(Errno::EMFILE));
        }
        drop(held.pop());
        // Any device may have the socket that the other one gave back.
        let retried = async {
            loop {
                match second.bind(any).await {
                    Err(Errno::EMFILE) => rig.sleep(Duration::from_millis(2)).await,
                    result => return result,
                }
            }
        };
        held.push(retried.await.unwrap());
        drop(held);
        for (frontend, driver) in [(first, driver), (second, other)] {
            frontend.shutdown().await;
            assert_eq!(driver.finished().await, Some(Errno::ENODEV));
        }
    });
}
