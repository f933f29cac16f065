//! Servers of datagrams (UDP), beside those of streams.
//!
//! A stack may have no datagrams, or lose its socket: a server then tries again now and then, and
//! the app's other servers go on meanwhile.

use crate::Context;
use core::convert::Infallible;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use edge_nal::{UdpBind, UdpReceive, UdpSend};
use embassy_time::{Duration, Timer};
use xen::yield_now;

/// Datagrams of any length that a stack delivers.
const LONGEST: usize = 1 << 16;

/// The most failures in a row of a socket that is still used. An error is mostly one of an earlier
/// datagram.
const MAX_FAILURES: u32 = 16;

/// The first pause before another attempt, and the longest. Each pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// After how many datagrams in a row the source lets others run.
const BATCH: u32 = 16;

/// What a server does with the datagrams that it receives.
#[derive(Clone, Copy, Debug)]
pub enum Server {
    /// Discards them.
    Sink,
    /// Sends them back.
    Echo,
    /// Sends as many as a datagram requests: a count and a length, two u32 in network order. Each
    /// begins with its number.
    Source,
}

/// Binds to `port` of all addresses: of both families, as in Linux, or of IPv4 if the stack has no
/// other.
async fn bind<S: UdpBind>(stack: &S, port: u16) -> Result<S::Socket<'_>, S::Error> {
    match stack.bind((Ipv6Addr::UNSPECIFIED, port).into()).await {
        Ok(socket) => Ok(socket),
        Err(_) => stack.bind((Ipv4Addr::UNSPECIFIED, port).into()).await,
    }
}

/// Serves on `port` of all addresses.
pub async fn serve<S: UdpBind>(
    stack: &S,
    port: u16,
    server: Server,
    context: &Context,
) -> Infallible {
    let mut pause = FIRST_PAUSE;
    loop {
        match bind(stack, port).await {
            Ok(mut socket) => {
                log::debug!("datagrams: {server:?} on port {port}");
                if run(&mut socket, server, context).await {
                    pause = FIRST_PAUSE;
                }
            }
            Err(error) if pause == FIRST_PAUSE => {
                log::warn!("no datagrams on port {port}: {error}");
            }
            Err(_) => {}
        }
        Timer::after(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// Serves until the socket keeps failing. Returns whether it has received a datagram.
async fn run(socket: &mut (impl UdpReceive + UdpSend), server: Server, context: &Context) -> bool {
    let Some(mut buffer) = context.buffer(LONGEST) else { return false };
    let (mut received, mut failures) = (false, 0);
    loop {
        let (length, peer) = match socket.receive(&mut buffer).await {
            Ok(datagram) => datagram,
            Err(error) => {
                failures += 1;
                log::debug!("datagrams: {error}");
                if failures == MAX_FAILURES {
                    return received;
                }
                continue;
            }
        };
        (received, failures) = (true, 0);
        let length = length.min(buffer.len());
        context.counters.bytes_in.add(length);
        let sent = match server {
            Server::Sink => Ok(()),
            Server::Echo => {
                context.counters.bytes_out.add(length);
                socket.send(peer, &buffer[..length]).await
            }
            Server::Source => send_all(socket, peer, &mut buffer, length).await,
        };
        if let Err(error) = sent {
            log::debug!("datagrams: {peer}: {error}");
        }
    }
}

/// Sends what a request in the buffer asks for.
async fn send_all<S: UdpSend>(
    socket: &mut S,
    peer: SocketAddr,
    buffer: &mut [u8],
    length: usize,
) -> Result<(), S::Error> {
    let &mut [a, b, c, d, e, f, g, h, ..] = &mut buffer[..length] else { return Ok(()) };
    let (count, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    let data = &mut buffer[..(length as usize).clamp(4, LONGEST)];
    for number in 0..count {
        data[..4].copy_from_slice(&number.to_be_bytes());
        socket.send(peer, data).await?;
        if number % BATCH == 0 {
            yield_now().await;
        }
    }
    Ok(())
}
