//! Backends that are killed, close and return, and devices that are detached and attached again.

mod rig;

use embassy_time::{Duration, Timer, with_timeout};
use embedded_io_async::{Read, Write};
use futures_util::future::join;
use rig::{
    BACK, DOM0, FRONT, GUEST, Rig, address, config, connect, limits, of, pattern, protocols,
    with_frontend,
};
use std::rc::Rc;
use xen::xenbus::{self, State};
use xen::xenstore::{Access, Permission};
use xensock::Errno;
use xensock::front::{Config, Listener};
use xensock::wire::Protocol;

const SOON: Duration = Duration::from_millis(300);

/// Runs a test with PV Calls with all extensions and with plain draft 1. The test starts the
/// backend.
fn with_protocols<F: Future<Output = ()>>(test: impl Fn(Rc<Rig>, Protocol) -> F) {
    let protocols = protocols()
        .filter(|protocol| protocol.dialect.has_socket_command() != protocol.extensions.is_empty());
    for protocol in protocols {
        println!("with {protocol:?}");
        let config = Config { dialect: protocol.dialect, ..config() };
        with_frontend(config, |rig| test(rig, protocol));
    }
}

/// A client that sends something to the listener's next connection.
async fn served(rig: &Rig, listener: &Listener<xen::testing::FakeMachine>) {
    let asked = async {
        rig.until(|| rig.net.bound_sockets() == 1).await;
        let client = rig.net.connect(address(80)).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        client
    };
    let (stream, _client) = join(listener.accept(), asked).await;
    let mut bytes = [0; 5];
    stream.unwrap().read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn a_listener_listens_again_after_its_backend_was_killed() {
    with_protocols(|rig, protocol| async move {
        let backend = rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        served(&rig, &listener).await;
        backend.kill();
        rig.until(|| rig.net.bound_sockets() == 0).await;
        rig.start_backend(protocol, limits());
        // No call of `accept` waits, but it listens again all the same.
        rig.until(|| rig.net.bound_sockets() == 1).await;
        served(&rig, &listener).await;
        assert_eq!(rig.frontend.statistics().listeners_open, 1);
    });
}

#[test]
fn accept_waits_until_the_backend_returns() {
    with_protocols(|rig, protocol| async move {
        let backend = rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        let (accepted, _client) = join(listener.accept(), async {
            backend.kill();
            rig.until(|| rig.net.bound_sockets() == 0).await;
            rig.start_backend(protocol, limits());
            rig.until(|| rig.net.bound_sockets() == 1).await;
            rig.net.connect(address(80)).await.unwrap()
        })
        .await;
        accepted.unwrap();
    });
}

#[test]
fn streams_end_with_enetdown_and_connect_waits_for_the_link() {
    with_protocols(|rig, protocol| async move {
        let server = rig.net.listen(address(80)).unwrap();
        let backend = rig.start_backend(protocol, limits());
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        stream.write_all(&pattern(1000)).await.unwrap();
        drop(socket);
        backend.kill();
        rig.start_backend(protocol, limits());
        // The bytes that the killed backend put into the ring can still be read.
        let mut some = [0; 100];
        let error = loop {
            match stream.read(&mut some).await {
                Ok(0) => break Errno::ENETDOWN,
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error, Errno::ENETDOWN);
        let mut stream = rig.frontend.connect(address(80)).await.unwrap();
        let socket = server.accept().await;
        stream.write_all(b"x").await.unwrap();
        assert_eq!(socket.read(&mut some).await, Ok(1));
        assert_eq!(rig.frontend.statistics().streams_open, 1);
    });
}

/// Saves and restores the domain: no reply of xenstore is outstanding, the nodes are new, and the
/// backend is not there yet.
async fn restore(rig: &Rig, protocol: Protocol) {
    rig.guest_store.quiesce().await;
    let (front, back) = (of(protocol.dialect, FRONT), of(protocol.dialect, BACK));
    rig.store.rm(&front);
    rig.store.rm(&back);
    rig.store.add_device((&front, GUEST), (&back, DOM0));
    rig.frontend.resume().await;
    assert_eq!(rig.store.read(&format!("{front}/state")).as_deref(), Some("1"), "it was closed");
    rig.guest_store.release();
}

#[test]
fn in_a_restored_domain_streams_end_with_enetdown_and_listeners_listen_again() {
    with_protocols(|rig, protocol| async move {
        let server = rig.net.listen(address(90)).unwrap();
        let backend = rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        let mut stream = rig.frontend.connect(address(90)).await.unwrap();
        let _socket = server.accept().await;
        backend.kill();
        restore(&rig, protocol).await;
        assert_eq!(stream.read(&mut [0; 8]).await, Err(Errno::ENETDOWN));
        assert_eq!(stream.write(b"x").await, Err(Errno::ENETDOWN));
        rig.start_backend(protocol, limits());
        rig.frontend.connect(address(90)).await.unwrap();
        drop(server);
        served(&rig, &listener).await;
    });
}

#[test]
fn a_domain_may_be_saved_at_any_point_of_the_handshake() {
    with_protocols(|rig, protocol| async move {
        // Without a backend, with a new backend, and shortly before the backend connects.
        for millis in 0..6 {
            let backend = (millis > 0).then(|| rig.start_backend(protocol, limits()));
            Timer::after_millis(millis).await;
            if let Some(backend) = backend {
                backend.kill();
            }
            restore(&rig, protocol).await;
        }
        rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        served(&rig, &listener).await;
    });
}

#[test]
fn an_address_that_was_taken_in_the_meantime_is_retried_and_then_an_error() {
    with_protocols(|rig, protocol| async move {
        let backend = rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        backend.kill();
        rig.until(|| rig.net.bound_sockets() == 0).await;
        let thief = rig.net.listen(address(80)).unwrap();
        rig.start_backend(protocol, limits());
        // The frontend retries for longer than this.
        assert!(with_timeout(SOON * 8, listener.accept()).await.is_err());
        drop(thief);
        rig.until(|| rig.net.bound_sockets() == 1).await;
        served(&rig, &listener).await;
    });
}

#[test]
fn a_listener_dropped_while_its_backend_is_away_does_not_return() {
    with_protocols(|rig, protocol| async move {
        let backend = rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        let other = rig.frontend.bind(address(81)).await.unwrap();
        backend.kill();
        rig.until(|| rig.net.bound_sockets() == 0).await;
        drop(listener);
        rig.start_backend(protocol, limits());
        rig.until(|| rig.net.bound_sockets() == 1).await;
        // The other listener is served, so the dropped one would have returned by now, too.
        let (accepted, client) = join(other.accept(), rig.net.connect(address(81))).await;
        assert!(accepted.is_ok() && client.is_ok());
        assert_eq!(rig.net.bound_sockets(), 1);
        assert_eq!(rig.frontend.statistics().listeners_open, 1);
    });
}

#[test]
fn a_port_that_the_backend_chose_stays_the_same() {
    with_protocols(|rig, protocol| async move {
        let backend = rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(0)).await.unwrap();
        let chosen = listener.local_addr();
        backend.kill();
        rig.until(|| rig.net.bound_sockets() == 0).await;
        if chosen.port() == 0 {
            // Without the extension the backend does not report addresses.
            return;
        }
        let _lower = rig.net.listen(address(chosen.port() - 1));
        rig.start_backend(protocol, limits());
        rig.until(|| rig.net.bound_sockets() == 2).await;
        let (accepted, client) = join(listener.accept(), rig.net.connect(chosen)).await;
        assert!(accepted.is_ok() && client.is_ok());
    });
}

#[test]
fn a_shortage_when_the_backend_returns_is_survived() {
    with_protocols(|rig, protocol| async move {
        let backend = rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        backend.kill();
        rig.until(|| rig.net.bound_sockets() == 0).await;
        rig.start_backend(protocol, limits());
        rig.until(|| rig.world.ports() == 0).await;
        rig.world.limit_ports(0);
        let accepted = with_timeout(SOON * 8, listener.accept()).await;
        assert!(accepted.is_err(), "{:?}", accepted.map(|stream| stream.map(drop)));
        rig.world.limit_ports(100);
        served(&rig, &listener).await;
    });
}

#[test]
fn a_device_can_be_detached_and_attached_again() {
    with_protocols(|rig, protocol| async move {
        let (front, back) = (of(protocol.dialect, FRONT), of(protocol.dialect, BACK));
        let backend = rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        served(&rig, &listener).await;
        backend.kill();
        rig.store.rm(&front);
        rig.store.rm(&back);
        rig.until(|| rig.world.ports() == 0).await;
        assert!(with_timeout(SOON, rig.frontend.connected()).await.is_err());
        assert_eq!(rig.driver_ended(), None);
        rig.store.add_device((&front, GUEST), (&back, DOM0));
        rig.start_backend(protocol, limits());
        served(&rig, &listener).await;
    });
}

#[test]
fn a_device_can_be_closed_and_created_again() {
    with_protocols(|rig, protocol| async move {
        let (front, back) = (of(protocol.dialect, FRONT), of(protocol.dialect, BACK));
        let backend = rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        backend.kill();
        let store = connect(&rig.store, DOM0, &rig.spawner);
        xenbus::switch_state(&store, &back, State::Closing).await.unwrap();
        rig.until(|| rig.store.read(&format!("{front}/state")) == Some("6".into())).await;
        rig.store.rm(&front);
        rig.store.rm(&back);
        rig.store.add_device((&front, GUEST), (&back, DOM0));
        rig.start_backend(protocol, limits());
        served(&rig, &listener).await;
    });
}

#[test]
fn the_frontend_waits_until_it_may_read_the_backend_s_nodes() {
    with_protocols(|rig, protocol| async move {
        let (front, back) = (of(protocol.dialect, FRONT), of(protocol.dialect, BACK));
        // The toolstack creates the nodes first, then permits the guest to read them.
        let all = ["", "/state", "/frontend", "/frontend-id"].map(|node| format!("{back}{node}"));
        let allow = |access| {
            let own = Permission { access: Access::None, domain: DOM0 };
            for node in &all {
                rig.store.set_permissions(node, &[own, Permission { access, domain: GUEST }]);
            }
        };
        rig.store.rm(&front);
        rig.store.rm(&back);
        Timer::after(SOON).await;
        rig.store.add_device((&front, GUEST), (&back, DOM0));
        allow(Access::None);
        Timer::after(SOON).await;
        assert_eq!(rig.driver_ended(), None);
        allow(Access::Read);
        rig.store.fire(&format!("{back}/state"));
        rig.start_backend(protocol, limits());
        let listener = rig.frontend.bind(address(80)).await.unwrap();
        served(&rig, &listener).await;
    });
}
