//! The frontend as a network of `edge-nal`.

use super::{Frontend, Listener, Stream};
use core::net::{Ipv4Addr, SocketAddr};
use edge_nal::{Readable, TcpAccept, TcpBind, TcpConnect};
use embedded_io_async::ErrorType;
use xen::Errno;
use xen::Machine;

impl<M: Machine> TcpConnect for Frontend<M> {
    type Error = Errno;
    type Socket<'a> = Stream<M>;

    async fn connect(&self, remote: SocketAddr) -> Result<Stream<M>, Errno> {
        Frontend::connect(self, remote).await
    }
}

impl<M: Machine> TcpBind for Frontend<M> {
    type Error = Errno;
    type Accept<'a> = Listener<M>;

    async fn bind(&self, local: SocketAddr) -> Result<Listener<M>, Errno> {
        Frontend::bind(self, local).await
    }
}

impl<M: Machine> TcpAccept for Listener<M> {
    type Error = Errno;
    type Socket<'a> = Stream<M>;

    /// The address is unspecified (`0.0.0.0:0`) where the backend does not tell who connected.
    async fn accept(&self) -> Result<(SocketAddr, Stream<M>), Errno> {
        let stream = Listener::accept(self).await?;
        let peer = stream.peer_addr().unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
        Ok((peer, stream))
    }
}

impl<M: Machine> ErrorType for Listener<M> {
    type Error = Errno;
}

impl<M: Machine> Readable for Listener<M> {
    async fn readable(&mut self) -> Result<(), Errno> {
        Listener::readable(self).await
    }
}
