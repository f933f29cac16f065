//! Datagrams over tokio's sockets.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use xensock_stream::{Group, PollDatagrams};

/// A socket.
pub struct Udp(pub UdpSocket);

impl PollDatagrams for Udp {
    type Error = io::Error;

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buffer = ReadBuf::new(to);
        let received = self.0.poll_recv_from(cx, &mut buffer);
        received.map_ok(|peer| (buffer.filled().len(), peer))
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_recv_ready(cx)
    }

    fn poll_send(&self, cx: &mut Context<'_>, to: SocketAddr, data: &[u8]) -> Poll<io::Result<()>> {
        self.0.poll_send_to(cx, data, to).map_ok(drop)
    }

    async fn join(&self, _: Group) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn leave(&self, _: Group) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
