//! The other end of the tests of datagrams, which runs in dom0.
//!
//! `datagrams PORT` returns what comes to PORT over IPv4 and IPv6, except for what begins with one
//! of these words: `elsewhere` is returned from PORT + 1, `keep` is kept, and `kept` is answered by
//! what was kept last. No socket has PORT + 2.

use std::io::Result;
use std::net::{Ipv6Addr, UdpSocket};

fn main() -> Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok());
    let port: u16 = port.expect("usage: datagrams PORT");
    let bind = |port| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port));
    let (socket, elsewhere) = (bind(port)?, bind(port + 1)?);
    println!("ready");
    let (mut data, mut kept) = (vec![0; 65536], Vec::new());
    loop {
        // An error is that of an earlier datagram, whose sender has closed its socket.
        let Ok((length, sender)) = socket.recv_from(&mut data) else { continue };
        let data = &data[..length];
        if data.starts_with(b"kept") {
            socket.send_to(&kept, sender)?;
        } else if data.starts_with(b"keep") {
            kept = data.to_vec();
        } else if data.starts_with(b"elsewhere") {
            elsewhere.send_to(data, sender)?;
        } else {
            socket.send_to(data, sender)?;
        }
    }
}
