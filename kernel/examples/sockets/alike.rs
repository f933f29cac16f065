//! Tests of what the sockets of all stacks have in common, through their traits.

use crate::{Outcome, expect, failed, pattern, transfer};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use edge_nal::{Close, TcpAccept, TcpBind, TcpConnect, TcpShutdown, TcpSplit};
use embedded_io_async::{Read, Write};
use futures_util::future::{join, join_all};
use xen::Errno;

/// A stack that connects, a stack that listens, and the listener's address for the first.
pub struct Setup<'a, N, F> {
    pub near: &'a N,
    pub far: &'a F,
    pub to: IpAddr,
    pub port: u16,
}

impl<N: TcpConnect<Error = Errno>, F: TcpBind<Error = Errno>> Setup<'_, N, F> {
    fn address(&self, offset: u16) -> SocketAddr {
        (self.to, self.port + offset).into()
    }

    async fn bind(&self) -> Result<F::Accept<'_>, Errno> {
        let any: IpAddr = match self.to {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.far.bind((any, self.port).into()).await
    }

    async fn listen(&self) -> Result<F::Accept<'_>, String> {
        self.bind().await.map_err(failed("bind"))
    }

    /// Both ends of a connection.
    async fn pair<'n, 'l, L: TcpAccept<Error = Errno>>(
        &'n self,
        listener: &'l L,
    ) -> Result<(N::Socket<'n>, L::Socket<'l>), String> {
        let (near, far) = join(self.near.connect(self.address(0)), listener.accept()).await;
        let (_, far) = far.map_err(failed("accept"))?;
        Ok((near.map_err(failed("connect"))?, far))
    }
}

/// A stack that connects.
pub trait Near: TcpConnect<Error = Errno> {}
impl<T: TcpConnect<Error = Errno>> Near for T {}

/// A stack that listens.
pub trait Far: TcpBind<Error = Errno> {}
impl<T: TcpBind<Error = Errno>> Far for T {}

pub async fn bytes_go_both_ways(setup: &Setup<'_, impl Near, impl Far>) -> Outcome {
    let listener = setup.listen().await?;
    let (mut near, mut far) = setup.pair(&listener).await?;
    let (there, back) = (pattern(700_000), pattern(600_001));
    {
        let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
            (near.split(), far.split());
        let (one, other) = join(
            transfer(&mut near_write, &mut far_read, &there),
            transfer(&mut far_write, &mut near_read, &back),
        )
        .await;
        one.and(other)?;
    }
    near.close(Close::Both).await.map_err(failed("close"))?;
    expect("the end", far.read(&mut [0]).await, Ok(0))
}

pub async fn a_refused_connection_fails(setup: &Setup<'_, impl Near, impl Far>) -> Outcome {
    let refused = setup.near.connect(setup.address(1)).await.map(drop);
    expect("connect", refused, Err(Errno::ECONNREFUSED))
}

pub async fn several_connections_are_accepted_at_once(
    setup: &Setup<'_, impl Near, impl Far>,
) -> Outcome {
    let listener = setup.listen().await?;
    let accepting = join_all((0..5).map(|_| listener.accept()));
    let connecting = join_all((0..5).map(|_| setup.near.connect(setup.address(0))));
    let (accepted, connected) = join(accepting, connecting).await;
    // All stay open until the last byte has arrived.
    let mut open = Vec::new();
    for (number, stream) in (0u8..).zip(connected) {
        let mut stream = stream.map_err(failed("connect"))?;
        stream.write_all(&[number]).await.map_err(failed("write"))?;
        stream.flush().await.map_err(failed("flush"))?;
        open.push(stream);
    }
    let mut seen = Vec::new();
    for stream in accepted {
        let mut byte = [0];
        let (_, mut stream) = stream.map_err(failed("accept"))?;
        stream.read_exact(&mut byte).await.map_err(failed("read"))?;
        seen.push(byte[0]);
    }
    seen.sort_unstable();
    expect("the clients", seen, vec![0, 1, 2, 3, 4])
}

pub async fn binding_an_address_in_use_fails(setup: &Setup<'_, impl Near, impl Far>) -> Outcome {
    let _listener = setup.listen().await?;
    expect("bind", setup.bind().await.map(drop), Err(Errno::EADDRINUSE))
}

pub async fn written_data_arrives_after_the_stream_is_dropped(
    setup: &Setup<'_, impl Near, impl Far>,
) -> Outcome {
    let listener = setup.listen().await?;
    let (mut near, mut far) = setup.pair(&listener).await?;
    near.write_all(b"the last words").await.map_err(failed("write"))?;
    near.flush().await.map_err(failed("flush"))?;
    drop(near);
    let mut got = [0; 14];
    far.read_exact(&mut got).await.map_err(failed("read"))?;
    expect("the bytes", &got, b"the last words")?;
    expect("the end", far.read(&mut [0]).await, Ok(0))
}

pub async fn one_direction_closes_alone(setup: &Setup<'_, impl Near, impl Far>) -> Outcome {
    let listener = setup.listen().await?;
    let (mut near, mut far) = setup.pair(&listener).await?;
    let data = pattern(300_000);
    let asking = async {
        near.write_all(&data).await.map_err(failed("write"))?;
        near.close(Close::Write).await.map_err(failed("half-close"))?;
        expect("a write after that", near.write(b"x").await, Err(Errno::EPIPE))?;
        let mut answer = [0; 6];
        near.read_exact(&mut answer).await.map_err(failed("read"))?;
        expect("the answer", &answer, b"answer")
    };
    let answering = async {
        let (mut got, mut some) = (Vec::new(), vec![0; 8192]);
        loop {
            match far.read(&mut some).await.map_err(failed("read"))? {
                0 => break,
                count => got.extend_from_slice(&some[..count]),
            }
        }
        expect("the bytes", got == data, true)?;
        far.write_all(b"answer").await.map_err(failed("write"))?;
        far.flush().await.map_err(failed("flush"))
    };
    let (asked, answered) = join(asking, answering).await;
    asked.and(answered)
}

pub async fn an_abort_resets_the_connection(setup: &Setup<'_, impl Near, impl Far>) -> Outcome {
    let listener = setup.listen().await?;
    let (mut near, mut far) = setup.pair(&listener).await?;
    near.write_all(b"x").await.map_err(failed("write"))?;
    near.abort().await.map_err(failed("abort"))?;
    let mut some = [0; 8];
    let end = loop {
        match far.read(&mut some).await {
            Ok(1..) => {}
            end => break end,
        }
    };
    expect("what the other end sees", end, Err(Errno::ECONNRESET))
}
