//! Serves the clients of a listening socket, each of which sends one request.

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustix::net::{SocketFlags, accept_with};
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use xen::Side;
use xen_linux::runtime::{Reactor, SOCKET, Watched, timeout};

/// How long a client may take to send its request and to take the reply.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest request.
const MAX_REQUEST: usize = 4096;

/// The most clients at a time. Others wait until they are accepted.
const MAX_CLIENTS: usize = 16;

/// Runs `serve` for each client, until the kernel fails. `what` names the socket in the log.
pub async fn serve_all(
    reactor: &Reactor,
    socket: &Watched,
    what: &str,
    serve: impl AsyncFn(&Watched) -> io::Result<()>,
) -> io::Result<Infallible> {
    let mut clients = FuturesUnordered::new();
    loop {
        if clients.len() >= MAX_CLIENTS {
            clients.next().await;
            continue;
        }
        let accepted = {
            let ended = async {
                match clients.is_empty() {
                    true => pending().await,
                    false => clients.next().await,
                }
            };
            match select(pin!(accept(socket)), pin!(ended)).await {
                Either::Left((client, _)) => client,
                Either::Right(_) => continue,
            }
        };
        match accepted.and_then(|client| reactor.watch(Rc::new(client), SOCKET)) {
            Ok(client) => clients.push(timeout(reactor, PATIENCE, {
                let serve = &serve;
                async move { serve(&client).await }
            })),
            Err(error) => {
                log::warn!("{what}: {error}");
                reactor.sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn accept(socket: &Watched) -> io::Result<OwnedFd> {
    poll_fn(|cx| {
        socket.poll_io(cx, Side::Rx, |socket| {
            Ok(accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
        })
    })
    .await
}

/// Receives until the request is complete, too long, or the client ends it.
pub async fn receive(client: &Watched, is_complete: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    while !is_complete(&request) && request.len() < MAX_REQUEST {
        let mut bytes = [0; 512];
        let mut read = |file: &OwnedFd| Ok(rustix::io::read(file, &mut bytes)?);
        let count = poll_fn(|cx| client.poll_io(cx, Side::Rx, &mut read)).await?;
        if count == 0 {
            break;
        }
        request.extend(&bytes[..count]);
    }
    Ok(request)
}

/// Sends a whole reply.
pub async fn send(client: &Watched, mut reply: &[u8]) -> io::Result<()> {
    while !reply.is_empty() {
        let write =
            |file: &OwnedFd| Ok(rustix::net::send(file, reply, rustix::net::SendFlags::NOSIGNAL)?);
        let count = poll_fn(|cx| client.poll_io(cx, Side::Tx, write)).await?;
        reply = &reply[count..];
    }
    Ok(())
}
