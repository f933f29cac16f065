//! Tests of what the datagrams of all stacks have in common, through their traits. The other end is
//! `tests/examples/datagrams.rs`.

use crate::{Outcome, expect, failed};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use edge_nal::{Readable, UdpBind, UdpConnect, UdpReceive, UdpSend, UdpSplit};
use embassy_time::{Duration, Timer, with_timeout};
use futures_util::future::join;
use xen::Errno;

/// A stack, the address where datagrams are returned, and a free port of the stack.
pub struct Exchange<'a, S> {
    pub stack: &'a S,
    pub peer: SocketAddr,
    pub port: u16,
}

/// A stack with datagrams.
pub trait Stack: UdpBind<Error = Errno> + UdpConnect<Error = Errno> {}
impl<T: UdpBind<Error = Errno> + UdpConnect<Error = Errno>> Stack for T {}

/// The time limit for what must arrive, however busy the machine is.
const SOON: Duration = Duration::from_secs(30);

impl<S: Stack> Exchange<'_, S> {
    fn any(&self, port: u16) -> SocketAddr {
        let any: IpAddr = match self.peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        (any, port).into()
    }

    fn near(&self, offset: u16) -> SocketAddr {
        (self.peer.ip(), self.peer.port() + offset).into()
    }

    async fn bound(&self, port: u16) -> Result<<S as UdpBind>::Socket<'_>, String> {
        UdpBind::bind(self.stack, self.any(port)).await.map_err(failed("bind"))
    }

    async fn connected(&self, to: SocketAddr) -> Result<<S as UdpConnect>::Socket<'_>, String> {
        UdpConnect::connect(self.stack, self.any(0), to).await.map_err(failed("connect"))
    }
}

async fn receive(
    socket: &mut impl UdpReceive<Error = Errno>,
) -> Result<(Vec<u8>, SocketAddr), String> {
    let mut data = vec![0; 2000];
    let received = with_timeout(SOON, socket.receive(&mut data)).await;
    let (length, from) = received.map_err(|_| "nothing arrives")?.map_err(failed("receive"))?;
    data.truncate(length);
    Ok((data, from))
}

/// Sends a datagram and expects it back.
async fn echo<S>(socket: &mut S, to: SocketAddr, data: &[u8]) -> Outcome
where
    S: UdpSend<Error = Errno> + UdpReceive<Error = Errno>,
{
    socket.send(to, data).await.map_err(failed("send"))?;
    expect("the answer", receive(socket).await?, (data.to_vec(), to))
}

pub async fn datagrams_keep_their_bounds_and_name_their_sender(
    exchange: &Exchange<'_, impl Stack>,
) -> Outcome {
    let mut bound = exchange.bound(0).await?;
    let mut connected = exchange.connected(exchange.peer).await?;
    for length in [1, 0, 1400, 0, 77] {
        let data = vec![length as u8; length];
        echo(&mut bound, exchange.peer, &data).await?;
        echo(&mut connected, exchange.peer, &data).await?;
    }
    Ok(())
}

pub async fn a_datagram_that_does_not_fit_is_cut(exchange: &Exchange<'_, impl Stack>) -> Outcome {
    let mut socket = exchange.bound(0).await?;
    for data in ["a long one", "a longer one"] {
        socket.send(exchange.peer, data.as_bytes()).await.map_err(failed("send"))?;
    }
    let mut some = [0; 4];
    for length in [10, 12] {
        with_timeout(SOON, socket.readable())
            .await
            .map_err(|_| "not readable")?
            .map_err(failed("poll"))?;
        let received = socket.receive(&mut some).await;
        expect("the length and the sender", received, Ok((length, exchange.peer)))?;
        expect("the start", &some, b"a lo")?;
    }
    Ok(())
}

pub async fn a_connected_socket_receives_from_its_peer_alone(
    exchange: &Exchange<'_, impl Stack>,
) -> Outcome {
    let (peer, stranger) = (exchange.peer, exchange.near(1));
    let mut bound = exchange.bound(0).await?;
    bound.send(peer, b"elsewhere").await.map_err(failed("send"))?;
    expect("the stranger's", receive(&mut bound).await?, (b"elsewhere".to_vec(), stranger))?;
    let mut connected = exchange.connected(peer).await?;
    connected.send(peer, b"elsewhere").await.map_err(failed("send"))?;
    // The address is ignored.
    connected.send(stranger, b"here").await.map_err(failed("send"))?;
    expect("the peer's", receive(&mut connected).await?, (b"here".to_vec(), peer))?;
    let early = with_timeout(Duration::from_millis(200), connected.readable()).await;
    expect("silence after that", early.is_err(), true)
}

pub async fn a_connected_socket_learns_that_its_peer_has_no_such_port(
    exchange: &Exchange<'_, impl Stack>,
) -> Outcome {
    let nobody = exchange.near(2);
    let mut socket = exchange.connected(nobody).await?;
    socket.send(nobody, b"x").await.map_err(failed("send"))?;
    let refused = with_timeout(SOON, socket.receive(&mut [])).await;
    expect("receive", refused, Ok(Err(Errno::ECONNREFUSED)))?;
    // The socket is as before, and so is one that is not connected.
    socket.send(nobody, b"x").await.map_err(failed("send"))?;
    let mut bound = exchange.bound(0).await?;
    bound.send(nobody, b"x").await.map_err(failed("send"))?;
    Timer::after_millis(100).await;
    echo(&mut bound, exchange.peer, b"still here").await
}

pub async fn binding_a_datagram_port_in_use_fails(exchange: &Exchange<'_, impl Stack>) -> Outcome {
    let mut first = exchange.bound(exchange.port).await?;
    let second = UdpBind::bind(exchange.stack, exchange.any(exchange.port)).await;
    expect("bind", second.map(drop), Err(Errno::EADDRINUSE))?;
    echo(&mut first, exchange.peer, b"the first").await?;
    drop(first);
    // dom0 may have to close the socket first.
    let freed = async {
        loop {
            match exchange.bound(exchange.port).await {
                Ok(next) => return next,
                Err(_) => Timer::after_millis(20).await,
            }
        }
    };
    let mut next = with_timeout(SOON, freed).await.map_err(|_| "the port stays in use")?;
    echo(&mut next, exchange.peer, b"the next").await
}

pub async fn a_datagram_is_sent_after_its_socket_is_dropped(
    exchange: &Exchange<'_, impl Stack>,
) -> Outcome {
    let mut socket = exchange.bound(0).await?;
    socket.send(exchange.peer, b"keep the last words").await.map_err(failed("send"))?;
    drop(socket);
    let mut socket = exchange.connected(exchange.peer).await?;
    // The second question is for the first datagram to be first at the peer.
    for _ in 0..2 {
        socket.send(exchange.peer, b"kept").await.map_err(failed("send"))?;
        let (data, _) = receive(&mut socket).await?;
        if data == b"keep the last words" {
            return Ok(());
        }
    }
    Err("they did not arrive".to_string())
}

pub async fn a_datagram_beyond_64_kib_is_refused(exchange: &Exchange<'_, impl Stack>) -> Outcome {
    let mut socket = exchange.connected(exchange.peer).await?;
    let sent = socket.send(exchange.peer, &vec![0; 65_536]).await;
    expect("send", sent, Err(Errno::EMSGSIZE))?;
    echo(&mut socket, exchange.peer, b"a short one").await
}

pub async fn datagrams_go_both_ways_at_once(exchange: &Exchange<'_, impl Stack>) -> Outcome {
    let mut socket = exchange.connected(exchange.peer).await?;
    let (mut reading, mut writing) = socket.split();
    let sending = async {
        for number in 0..100 {
            writing.send(exchange.peer, &[number; 500]).await.map_err(failed("send"))?;
            // The other end has room for so many.
            if number % 20 == 0 {
                Timer::after_millis(20).await;
            }
        }
        Ok(())
    };
    let receiving = async {
        let mut last = None;
        // Some may be lost, but none is changed, and those of one path keep their order.
        while last != Some(99) {
            let Ok((data, _)) = receive(&mut reading).await else { break };
            expect("the length", data.len(), 500)?;
            expect("the bytes", data.iter().all(|byte| *byte == data[0]), true)?;
            expect("the order", last < Some(data[0]), true)?;
            last = Some(data[0]);
        }
        expect("most arrive", last > Some(50), true)
    };
    let (sent, received): (Outcome, Outcome) = join(sending, receiving).await;
    sent.and(received)
}
