//! The servers of benchmarks over real sockets.

mod loopback;

use loopback::{Server, connect, is_closed, rest};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

/// The servers, and their addresses in the order of their ports.
fn start(words: &str) -> (Server, [SocketAddr; 4]) {
    let server = Server::start(&format!("app=bench max-connections=100 {words}"));
    let next = || server.next_address();
    let addresses = [server.address, next(), next(), next()];
    (server, addresses)
}

#[test]
fn the_sink_takes_all_bytes_and_closes_after_the_client() {
    let (_server, [sink, _, _, http]) = start("");
    let mut client = connect(sink);
    for _ in 0..100 {
        client.write_all(&[7; 100_000]).unwrap();
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client), "");
    let mut client = connect(http);
    client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let metrics = rest(&mut client);
    let received = metrics.lines().find_map(|line| line.strip_prefix(RECEIVED));
    let received: usize = received.expect("the bytes are counted").parse().unwrap();
    assert!((10_000_000..10_001_000).contains(&received), "{received}");
}

const RECEIVED: &str = "xensock_app_received_bytes_total ";

#[test]
fn the_echo_is_complete_while_its_buffer_grows() {
    let (_server, [_, echo, ..]) = start("");
    let mut client = connect(echo);
    // A whole small buffer, the first large one, and both limits.
    for length in [1, 64, 1023, 1024, 1025, 65_535, 65_536, 65_537, 1_000_000, 64] {
        let sent: Vec<u8> = (0..length).map(|at: usize| (at % 251) as u8).collect();
        let mut half = client.try_clone().unwrap();
        let message = sent.clone();
        let sending = std::thread::spawn(move || half.write_all(&message).unwrap());
        let mut got = vec![0; length];
        client.read_exact(&mut got).unwrap();
        sending.join().unwrap();
        assert!(got == sent, "{length} bytes came back changed");
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert!(is_closed(&mut client));
}

#[test]
fn the_source_sends_its_mebibytes_to_each_client_and_closes() {
    let (_server, [_, _, source, _]) = start("mb=3");
    let mut clients = [connect(source), connect(source)];
    for client in &mut clients {
        assert_eq!(rest(client).len(), 3 << 20);
    }
}

#[test]
fn idle_clients_are_dropped_by_each_server_but_not_without_a_limit() {
    let (_server, [sink, echo, ..]) = start("idle-timeout=1");
    assert!(is_closed(&mut connect(sink)));
    assert!(is_closed(&mut connect(echo)));
    let (_server, [_, echo, ..]) = start("idle-timeout=0");
    let mut client = connect(echo);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn requests_are_answered_on_the_last_port() {
    let (_server, [.., http]) = start("");
    let mut client = connect(http);
    client.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    assert!(rest(&mut client).ends_with("\r\n\r\nok\n"));
}
