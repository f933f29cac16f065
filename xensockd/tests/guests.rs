//! The life of devices: the daemon's own code and real sockets on the loopback interface, over
//! fakes of xenstored and of the guests' memory and events.

#[allow(dead_code, reason = "other tests use the rest")]
mod machine;
#[allow(dead_code, reason = "other tests use the rest")]
mod rig;

use edge_nal::{UdpReceive, UdpSend};
use embedded_io_async::{Read, Write};
use machine::{BUG, DRIVER, run, run_in, run_with};
use rig::{DOM0, Guest, OPEN, back, back_of, front, front_of};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use std::{io, thread};
use xen::{DomId, Errno};
use xensock::wire::Dialect;

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

/// A real server that sends back each datagram, until it gets an empty one.
fn datagram_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        loop {
            let (count, from) = socket.recv_from(&mut bytes).unwrap();
            socket.send_to(&bytes[..count], from).unwrap();
            if count == 0 {
                break;
            }
        }
    });
    address
}

#[test]
fn a_guest_exchanges_datagrams_with_a_real_server() {
    run(|rig| async move {
        for dialect in Dialect::ALL {
            let id = DomId(7 + dialect as u16);
            rig.tree.add_domain(id);
            let (front, back) = (front_of(id, dialect), back_of(DOM0, id, dialect));
            rig.tree.add_device((&front, id), (&back, DOM0));
            rig.tree.write(&format!("{back}/frontend"), &front);
            let (frontend, driver) = rig.boot_over(id, dialect);
            let server = datagram_echo();
            let mut socket = frontend.bind_udp("0.0.0.0:0".parse().unwrap()).await.unwrap();
            let mut got = vec![0; 1 << 16];
            for len in [1, 100, 1400, 8000, 30_000, 5, 0] {
                let sent: Vec<_> = (0..len).map(|at| at as u8).collect();
                for _ in 0..3 {
                    socket.send(server, &sent).await.unwrap();
                    let (count, from) = socket.receive(&mut got).await.unwrap();
                    assert_eq!((count, from), (len, server));
                    assert!(got[..count] == sent);
                    if len == 0 {
                        break;
                    }
                }
            }
            drop(socket);
            frontend.shutdown().await;
            assert_eq!(driver.finished().await, Some(Errno::ENODEV));
        }
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
        let [numbers] = &rig.guests.numbers()[..] else { panic!("one guest") };
        let (traffic, requests) = (&numbers.traffic, numbers.requests);
        assert_eq!((traffic.accepted.get(), traffic.connected.get()), (5, 0));
        assert_eq!((traffic.received.get(), traffic.sent.get()), (5, 5000));
        // At least these: SOCKET, BIND, LISTEN, and ACCEPT and RELEASE for each client.
        assert!((13..100).contains(&requests), "{requests}");
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
fn a_guest_that_closes_and_opens_without_end_gets_one_offer_a_second() {
    run(|rig| async move {
        let guest = DomId(7);
        rig.create(guest);
        rig.until(|| rig.state(guest) == "2").await;
        let start = Instant::now();
        for _ in 0..2 {
            for (front_state, back_state) in [("5", "5"), ("6", "2")] {
                rig.tree.write(&format!("{}/state", front(guest)), front_state);
                rig.until(|| rig.state(guest) == back_state).await;
            }
        }
        assert!(start.elapsed() > Duration::from_millis(1900), "{:?}", start.elapsed());
    });
}

#[test]
fn a_domain_that_takes_the_number_of_another_one_has_its_own_rules() {
    run_with("[guest.first]\nlisten = [\"1-65535\"]\nconnect = [\"any\"]", |rig| async move {
        let guest = DomId(7);
        rig.create(guest);
        let name = format!("/local/domain/{guest}/name");
        rig.name(guest, "first", &[guest]);
        rig.until(|| rig.state(guest) == "2").await;
        // Destroyed and created again between two looks of the daemon, which waits for a frontend.
        rig.tree.rm(&back(guest));
        rig.tree.rm(&name);
        rig.create(guest);
        rig.name(guest, "second", &[guest]);
        rig.until(|| rig.state(guest) == "2").await;
        let (frontend, driver) = rig.boot(guest);
        assert_eq!(frontend.connect(echo_server()).await.err(), Some(Errno::EACCES));
        frontend.shutdown().await;
        assert_eq!(driver.finished().await, Some(Errno::ENODEV));
    });
}

#[test]
fn a_panic_ends_the_sockets_of_one_guest_which_connects_again() {
    run(|rig| async move {
        let guests = [DomId(7), DomId(8)];
        guests.iter().for_each(|guest| rig.create(*guest));
        let [(one, driver), (other, second)] = guests.map(|guest| rig.boot(guest));
        let mut stream = other.connect(echo_server()).await.unwrap();
        assert!(one.connect(([127, 0, 0, 1], BUG).into()).await.is_err());
        talk(&one).await;
        // The other guest's connection has not noticed.
        stream.write_all(b"still").await.unwrap();
        let mut got = [0; 5];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"still");
        drop(stream);
        for (frontend, driver) in [(one, driver), (other, second)] {
            frontend.shutdown().await;
            assert_eq!(driver.finished().await, Some(Errno::ENODEV));
        }
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
        let (front, back) =
            (front_of(guest, Dialect::Draft1), back_of(DOM0, guest, Dialect::Draft1));
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

#[test]
fn in_a_driver_domain_the_backend_removes_what_the_toolstack_ends() {
    run_in(DRIVER, OPEN, |rig| async move {
        let guests = [DomId(7), DomId(8)];
        guests.iter().for_each(|guest| rig.create(*guest));
        let booted = guests.map(|guest| rig.boot(guest));
        for (frontend, _) in &booted {
            talk(frontend).await;
        }
        // The second one was destroyed.
        rig.tree.rm("/local/domain/8");
        for guest in guests {
            let back = rig.back(guest);
            rig.tree.write(&format!("{back}/online"), "0");
            rig.tree.write(&format!("{back}/state"), "5");
            rig.until(|| rig.tree.read(&back).is_none()).await;
        }
        assert_eq!(rig.counts.guests.get(), 0);
        rig.tree.rm(&front(guests[0]));
        for (frontend, driver) in booted {
            frontend.shutdown().await;
            assert_eq!(driver.finished().await, Some(Errno::ENODEV));
        }
    });
}

/// Rules with which a guest that is not known may do nothing.
fn with_an_entry() -> String {
    format!("{OPEN}[guest.worse]\nconnect = []\nlisten = []\n")
}

#[test]
fn a_guest_whose_name_is_hidden_may_do_nothing_if_there_are_entries() {
    run_in(DRIVER, &with_an_entry(), |rig| async move {
        let guest = DomId(7);
        rig.create(guest);
        rig.name(guest, "web", &[guest]);
        let (frontend, driver) = rig.boot(guest);
        assert_eq!(frontend.connect(echo_server()).await.err(), Some(Errno::EACCES));
        let any = "127.0.0.1:0".parse().unwrap();
        assert_eq!(frontend.bind(any).await.err(), Some(Errno::EACCES));
        frontend.shutdown().await;
        assert_eq!(driver.finished().await, Some(Errno::ENODEV));
    });
}

#[test]
fn a_name_counts_that_becomes_readable_while_the_guest_connects() {
    run_in(DRIVER, &with_an_entry(), |rig| async move {
        let guest = DomId(7);
        rig.create(guest);
        rig.name(guest, "web", &[guest]);
        let (frontend, driver) = rig.boot(guest);
        rig.until(|| rig.tree.read(&format!("{}/state", front(guest))).as_deref() == Some("3"))
            .await;
        rig.name(guest, "web", &[guest, DRIVER]);
        talk(&frontend).await;
        frontend.shutdown().await;
        assert_eq!(driver.finished().await, Some(Errno::ENODEV));
    });
}

#[test]
fn without_entries_a_guest_needs_no_name() {
    run_in(DRIVER, OPEN, |rig| async move {
        let guest = DomId(7);
        rig.create(guest);
        rig.name(guest, "web", &[guest]);
        let (frontend, driver) = rig.boot(guest);
        talk(&frontend).await;
        frontend.shutdown().await;
        assert_eq!(driver.finished().await, Some(Errno::ENODEV));
    });
}
