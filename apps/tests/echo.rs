//! The echo app over real sockets.

mod loopback;

use loopback::{PATIENCE, Server, is_closed};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, UdpSocket};
use std::time::{Duration, Instant};

/// Bytes that reveal losses, repetitions and swaps.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2654435761) >> 13) as u8).collect()
}

#[test]
fn sent_bytes_are_returned_at_once() {
    let server = Server::start("app=echo");
    let mut client = server.connect();
    for message in [b"a".as_slice(), b"hello", &bytes(5000)] {
        client.write_all(message).unwrap();
        let mut echo = vec![0; message.len()];
        client.read_exact(&mut echo).unwrap();
        assert_eq!(echo, message);
    }
}

#[test]
fn a_client_that_closed_its_half_gets_all_of_ten_megabytes() {
    let server = Server::start("app=echo");
    let mut client = server.connect();
    let sent = bytes(10_000_000);
    let mut sender = client.try_clone().unwrap();
    let data = sent.clone();
    let sending = std::thread::spawn(move || {
        sender.write_all(&data).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    // The reader starts late: bytes that the server cannot send yet must not be lost.
    std::thread::sleep(Duration::from_millis(300));
    let mut echo = Vec::new();
    client.read_to_end(&mut echo).unwrap();
    sending.join().unwrap();
    assert!(echo == sent, "{} bytes of {} came back", echo.len(), sent.len());
}

#[test]
fn an_empty_conversation_ends() {
    let server = Server::start("app=echo");
    assert_eq!(server.exchange(""), "");
}

#[test]
fn a_hundred_clients_are_served_at_once() {
    let server = Server::start("app=echo max-connections=100");
    let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        write!(client, "{number:04}").unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate().rev() {
        let mut echo = [0; 4];
        client.read_exact(&mut echo).unwrap();
        assert_eq!(echo, *format!("{number:04}").as_bytes());
    }
}

#[test]
fn a_client_over_the_limit_waits_until_another_leaves() {
    let server = Server::start("app=echo max-connections=1");
    let mut first = server.connect();
    first.write_all(b"1").unwrap();
    first.read_exact(&mut [0]).unwrap();
    let mut second = server.connect();
    second.write_all(b"2").unwrap();
    second.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(second.read(&mut [0]).is_err(), "the second client was served");
    drop(first);
    second.set_read_timeout(Some(loopback::PATIENCE)).unwrap();
    second.read_exact(&mut [0]).unwrap();
}

#[test]
fn an_idle_client_is_dropped_and_an_active_one_is_not() {
    let server = Server::start("app=echo idle-timeout=5");
    // It is older than the silent one, so its own first limit passes first.
    let mut talking = server.connect();
    let mut silent = server.connect();
    silent.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let start = Instant::now();
    while !is_closed(&mut silent) {
        assert!(start.elapsed() < PATIENCE, "the silent client is not dropped");
        talking.write_all(b"x").unwrap();
        talking.read_exact(&mut [0]).unwrap();
    }
    talking.write_all(b"x").unwrap();
    talking.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_reset_does_not_end_the_server() {
    let server = Server::start("app=echo");
    let mut rude = server.connect();
    rude.write_all(&bytes(100_000)).unwrap();
    // Unread bytes at the close make it a reset.
    std::thread::sleep(Duration::from_millis(100));
    drop(rude);
    assert_eq!(server.exchange("still there?"), "still there?");
}

#[test]
fn each_datagram_is_returned_whole() {
    let server = Server::start("app=echo");
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.connect(server.next_address()).unwrap();
    for length in [1, 0, 1400, 65507, 3] {
        let (message, mut echo) = (bytes(length), vec![1; 65536]);
        client.send(&message).unwrap();
        assert_eq!(client.recv(&mut echo).unwrap(), length);
        assert!(echo[..length] == message, "{length} bytes");
    }
}
