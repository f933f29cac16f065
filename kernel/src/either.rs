//! The sockets of both stacks as one type, so that an image with both contains the apps only once.

use core::net::{IpAddr, SocketAddr};
use core::task::{Context, Poll};
use edge_nal::{AddrType, Close, Dns, TcpAccept, TcpBind, TcpConnect};
use kernel::machine::Domain;
use netfront::{ResolveError, Resolver, stack};
use xen::Errno;
use xensock::front::{self, Frontend};
use xensock_stream::{PollSocket, Stream};

/// A stack, or a part of it: of sockets in dom0, or of the guest's own.
pub enum Either<X, N> {
    XenSock(X),
    NetFront(N),
}

/// A stack.
pub type Stack = Either<Frontend<Domain>, stack::Stack>;

/// What resolves host names.
pub type Names<'a> = Either<Resolver<'a, Frontend<Domain>>, stack::Stack>;

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

impl Dns for Names<'_> {
    type Error = ResolveError;

    async fn get_host_by_name(&self, host: &str, kind: AddrType) -> Result<IpAddr, ResolveError> {
        either!(self, names => names.get_host_by_name(host, kind).await)
    }

    async fn get_host_by_address(
        &self,
        address: IpAddr,
        name: &mut [u8],
    ) -> Result<usize, ResolveError> {
        either!(self, names => names.get_host_by_address(address, name).await)
    }
}
