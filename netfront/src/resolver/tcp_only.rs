//! A stack without datagrams.

use core::convert::Infallible;
use core::net::SocketAddr;
use core::task::{Context, Poll};
use edge_nal::{TcpConnect, UdpConnect};
use embedded_io_async::{Error, ErrorKind};
use thiserror::Error;
use xensock_stream::{Datagrams, Group, PollDatagrams};

/// A stack that has streams only, for a [`Resolver`](crate::Resolver), which then uses those.
#[derive(Clone, Copy, Debug)]
pub struct TcpOnly<S>(pub S);

/// The stack has no datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("datagrams are not supported")]
pub struct NoDatagrams;

impl Error for NoDatagrams {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unsupported
    }
}

/// There is none.
pub struct NoSocket(Infallible);

impl<S: TcpConnect> TcpConnect for TcpOnly<S> {
    type Error = S::Error;
    type Socket<'a>
        = S::Socket<'a>
    where
        S: 'a;

    async fn connect(&self, remote: SocketAddr) -> Result<S::Socket<'_>, S::Error> {
        self.0.connect(remote).await
    }
}

impl<S> UdpConnect for TcpOnly<S> {
    type Error = NoDatagrams;
    type Socket<'a>
        = Datagrams<NoSocket>
    where
        S: 'a;

    async fn connect(
        &self,
        _: SocketAddr,
        _: SocketAddr,
    ) -> Result<Datagrams<NoSocket>, NoDatagrams> {
        Err(NoDatagrams)
    }
}

impl PollDatagrams for NoSocket {
    type Error = NoDatagrams;

    fn poll_receive(
        &self,
        _: &mut Context<'_>,
        _: &mut [u8],
    ) -> Poll<Result<(usize, SocketAddr), NoDatagrams>> {
        match self.0 {}
    }

    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<Result<(), NoDatagrams>> {
        match self.0 {}
    }

    fn poll_send(
        &self,
        _: &mut Context<'_>,
        _: SocketAddr,
        _: &[u8],
    ) -> Poll<Result<(), NoDatagrams>> {
        match self.0 {}
    }

    async fn join(&self, _: Group) -> Result<(), NoDatagrams> {
        match self.0 {}
    }

    async fn leave(&self, _: Group) -> Result<(), NoDatagrams> {
        match self.0 {}
    }
}
