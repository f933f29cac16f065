//! Both ends of a connection in memory.

use edge_nal::{Close, TcpShutdown};
use embedded_io_async::{Read, Write};
use futures_executor::block_on;
use futures_util::future::join;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tls::testing::{Authority, End, Key, VALID};
use tls::{BUFFER, Client, Error, Server, ServerName, Stream};

fn clock() -> Option<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok()
}

/// Both ends, before their handshake.
fn pair() -> (Stream<End>, Stream<End>) {
    let authority = Authority::new("an authority", Key::P256);
    let file = authority.issue("DNS:localhost", Key::P256, VALID).file();
    let client = Client::new(authority.root().as_bytes(), clock).unwrap();
    let server = Server::new(file.as_bytes()).unwrap();
    let (near, far) = End::pair();
    let (name, buffer) = (ServerName::try_from("localhost").unwrap(), || vec![0; BUFFER].into());
    let near = Stream::client(near, &client, name, buffer()).unwrap();
    (near, Stream::server(far, &server, buffer()).unwrap())
}

/// Bytes that reveal losses, repetitions and swaps.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2654435761) >> 13) as u8).collect()
}

#[test]
fn text_arrives_whole_both_ways_at_once_and_ends() {
    let (mut near, mut far) = pair();
    let text = bytes(300_007);
    // Each end sends all before it reads, and what comes in meanwhile waits.
    let exchange = async |end: &mut Stream<End>| {
        end.write_all(&text).await.unwrap();
        end.flush().await.unwrap();
        end.close(Close::Write).await.unwrap();
        let (mut got, mut part) = (Vec::new(), vec![0; 5000]);
        loop {
            match end.read(&mut part).await.unwrap() {
                0 => return got,
                count => got.extend_from_slice(&part[..count]),
            }
        }
    };
    let (one, other) = block_on(join(exchange(&mut near), exchange(&mut far)));
    assert!(one == text && other == text, "{} and {} bytes", one.len(), other.len());
    // Closing again, after both ends, does nothing.
    block_on(near.close(Close::Both)).unwrap();
    assert_eq!(block_on(far.read(&mut [0])), Ok(0));
}

#[test]
fn an_end_may_write_after_the_other_has_ended() {
    let (mut near, mut far) = pair();
    let ends = async {
        near.handshake().await.unwrap();
        near.close(Close::Write).await.unwrap();
        let mut got = [0; 5];
        near.read_exact(&mut got).await.unwrap();
        got
    };
    let answers = async {
        assert_eq!(far.read(&mut [0; 10]).await, Ok(0));
        far.write_all(b"later").await.unwrap();
        far.flush().await.unwrap();
    };
    assert_eq!(&block_on(join(ends, answers)).0, b"later");
}

#[test]
fn a_stream_that_another_has_cut_is_an_error() {
    let (mut near, mut far) = pair();
    let (shaken, accepted) = block_on(join(near.handshake(), far.handshake()));
    assert_eq!((shaken, accepted), (Ok(()), Ok(())));
    block_on(far.write_all(b"text")).unwrap();
    block_on(far.flush()).unwrap();
    // Without the word of TLS.
    drop(far);
    let mut got = [0; 10];
    assert_eq!(block_on(near.read(&mut got)), Ok(4));
    assert_eq!(block_on(near.read(&mut got)), Err(Error::Cut));
}
