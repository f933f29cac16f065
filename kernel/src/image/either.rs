//! The sockets of both stacks as one type, so that an image with both contains the apps only once.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::task::{Context, Poll};
use edge_nal::{Close, TcpAccept, TcpBind, TcpConnect, UdpBind, UdpConnect};
use kernel::machine::Domain;
use netfront::{NameServers, stack};
use xen::Errno;
use xensock::front::{self, Frontend};
use xensock_stream::{Datagrams, Group, PollDatagrams, PollSocket, Stream};

/// A stack, or a part of it: of sockets in dom0, or of the guest's own.
pub enum Either<X, N> {
    XenSock(X),
    NetFront(N),
}

/// A stack.
pub type Stack = Either<Frontend<Domain>, stack::Stack>;

/// The DNS servers: those of the command line, or those that the guest's own stack knows.
pub type Servers = Either<Vec<IpAddr>, stack::Stack>;

/// Calls a method of either part.
macro_rules! either {
    ($either:expr, $part:ident => $call:expr) => {
        match $either {
            Either::XenSock($part) => $call,
            Either::NetFront($part) => $call,
        }
    };
}

pub struct Listener(Either<front::Listener<Domain>, stack::Listener>);

pub struct Socket(Either<front::Connection<Domain>, stack::Connection>);

impl TcpBind for Stack {
    type Error = Errno;
    type Accept<'a> = Listener;

    async fn bind(&self, local: SocketAddr) -> Result<Listener, Errno> {
        Ok(Listener(match self {
            Either::XenSock(stack) => Either::XenSock(stack.bind(local).await?),
            Either::NetFront(stack) => Either::NetFront(stack.bind(local).await?),
        }))
    }
}

impl TcpAccept for Listener {
    type Error = Errno;
    type Socket<'a> = Stream<Socket>;

    async fn accept(&self) -> Result<(SocketAddr, Stream<Socket>), Errno> {
        Ok(match &self.0 {
            Either::XenSock(listener) => {
                let (peer, stream) = TcpAccept::accept(listener).await?;
                (peer, stream.map(|socket| Socket(Either::XenSock(socket))))
            }
            Either::NetFront(listener) => {
                let (peer, stream) = TcpAccept::accept(listener).await?;
                (peer, stream.map(|socket| Socket(Either::NetFront(socket))))
            }
        })
    }
}

impl TcpConnect for Stack {
    type Error = Errno;
    type Socket<'a> = Stream<Socket>;

    async fn connect(&self, remote: SocketAddr) -> Result<Stream<Socket>, Errno> {
        Ok(match self {
            Either::XenSock(stack) => {
                stack.connect(remote).await?.map(|socket| Socket(Either::XenSock(socket)))
            }
            Either::NetFront(stack) => {
                stack.connect(remote).await?.map(|socket| Socket(Either::NetFront(socket)))
            }
        })
    }
}

impl PollSocket for Socket {
    type Error = Errno;

    fn poll_read(&self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<Result<usize, Errno>> {
        either!(&self.0, socket => socket.poll_read(cx, to))
    }

    fn poll_write(&self, cx: &mut Context<'_>, from: &[u8]) -> Poll<Result<usize, Errno>> {
        either!(&self.0, socket => socket.poll_write(cx, from))
    }

    fn check_writable(&self) -> Result<(), Errno> {
        either!(&self.0, socket => socket.check_writable())
    }

    async fn close(&self, what: Close) -> Result<(), Errno> {
        either!(&self.0, socket => socket.close(what).await)
    }

    async fn abort(&self) -> Result<(), Errno> {
        either!(&self.0, socket => socket.abort().await)
    }
}

pub struct UdpSocket(Either<front::UdpSocket<Domain>, stack::UdpSocket>);

impl Stack {
    /// Binds a socket, or connects it.
    async fn open_udp(
        &self,
        local: SocketAddr,
        remote: Option<SocketAddr>,
    ) -> Result<Datagrams<UdpSocket>, Errno> {
        macro_rules! open {
            ($stack:expr, $part:path) => {
                match remote {
                    None => $stack.bind_udp(local).await?,
                    Some(remote) => $stack.connect_udp(local, remote).await?,
                }
                .map(|socket| UdpSocket($part(socket)))
            };
        }
        Ok(match self {
            Either::XenSock(stack) => open!(stack, Either::XenSock),
            Either::NetFront(stack) => open!(stack, Either::NetFront),
        })
    }
}

impl UdpBind for Stack {
    type Error = Errno;
    type Socket<'a> = Datagrams<UdpSocket>;

    async fn bind(&self, local: SocketAddr) -> Result<Datagrams<UdpSocket>, Errno> {
        self.open_udp(local, None).await
    }
}

impl UdpConnect for Stack {
    type Error = Errno;
    type Socket<'a> = Datagrams<UdpSocket>;

    async fn connect(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<Datagrams<UdpSocket>, Errno> {
        self.open_udp(local, Some(remote)).await
    }
}

impl PollDatagrams for UdpSocket {
    type Error = Errno;

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<Result<(usize, SocketAddr), Errno>> {
        either!(&self.0, socket => socket.poll_receive(cx, to))
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        either!(&self.0, socket => socket.poll_readable(cx))
    }

    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        to: SocketAddr,
        data: &[u8],
    ) -> Poll<Result<(), Errno>> {
        either!(&self.0, socket => socket.poll_send(cx, to, data))
    }

    async fn join(&self, group: Group) -> Result<(), Errno> {
        either!(&self.0, socket => socket.join(group).await)
    }

    async fn leave(&self, group: Group) -> Result<(), Errno> {
        either!(&self.0, socket => socket.leave(group).await)
    }
}

impl NameServers for Servers {
    async fn name_servers(&self) -> Vec<IpAddr> {
        either!(self, servers => servers.name_servers().await)
    }
}
