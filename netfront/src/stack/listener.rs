//! A listening socket.

use super::backlog::Backlog;
use super::state::Inner;
use super::stream::{Connection, Stream};
use alloc::rc::Rc;
use core::net::{Ipv4Addr, SocketAddr};
use edge_nal::{Readable, TcpAccept};
use embassy_time::Instant;
use embedded_io_async::ErrorType;
use smoltcp::wire::IpListenEndpoint;
use xen::Errno;

/// A listening socket. Connections wait in its backlog; dropping the listener resets them.
///
/// ```
/// use embedded_io_async::{BufRead, Write};
/// use netfront::stack::Listener;
///
/// /// Sends everything back, to one client after the other.
/// async fn echo(listener: Listener) -> Result<(), xen::Errno> {
///     loop {
///         let mut stream = listener.accept().await?;
///         let (mut reader, mut writer) = edge_nal::TcpSplit::split(&mut stream);
///         while let bytes @ [_, ..] = reader.fill_buf().await? {
///             let count = writer.write(bytes).await?;
///             reader.consume(count);
///         }
///     }
/// }
/// ```
pub struct Listener {
    inner: Rc<Inner>,
    backlog: Rc<Backlog>,
}

/// Listens at an address.
pub(super) fn bind(inner: &Rc<Inner>, local: SocketAddr) -> Result<Listener, Errno> {
    let backlog = inner.with(|state| {
        let port =
            if local.port() == 0 { state.free_tcp_port(&inner.config)? } else { local.port() };
        let addr = (!local.ip().is_unspecified()).then(|| local.ip().into());
        if addr.is_some_and(|addr| !state.interface.has_ip_addr(addr)) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        state.listen(&inner.config, IpListenEndpoint { addr, port })
    })?;
    Ok(Listener { inner: inner.clone(), backlog })
}

impl Listener {
    /// Waits for a connection.
    pub async fn accept(&self) -> Result<Stream, Errno> {
        let taken = || self.inner.with(|state| self.backlog.accept(&mut state.sockets));
        let handle = self.backlog.arrived.until(taken).await;
        let connection = Connection::new(&self.inner, handle);
        // The backlog has room again, and another task may accept the next connection.
        self.inner.kick();
        Ok(Stream::new(connection))
    }

    /// The listening address. An unspecified address is returned as IPv4's.
    pub fn local_addr(&self) -> SocketAddr {
        let IpListenEndpoint { addr, port } = self.backlog.addr;
        SocketAddr::new(addr.map_or(Ipv4Addr::UNSPECIFIED.into(), Into::into), port)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let until = Instant::now() + self.inner.config.linger;
        self.inner.with(|state| {
            for handle in self.backlog.take() {
                state.tcp(handle).abort();
                state.retire(handle, until);
            }
        });
        self.inner.kick();
    }
}

impl TcpAccept for Listener {
    type Error = Errno;
    type Socket<'a> = Stream;

    async fn accept(&self) -> Result<(SocketAddr, Stream), Errno> {
        let stream = Listener::accept(self).await?;
        let unknown = (Ipv4Addr::UNSPECIFIED, 0).into();
        Ok((stream.peer_addr().unwrap_or(unknown), stream))
    }
}

impl ErrorType for Listener {
    type Error = Errno;
}

impl Readable for Listener {
    async fn readable(&mut self) -> Result<(), Errno> {
        let ready = || self.inner.with(|state| self.backlog.is_ready(&state.sockets)).then_some(());
        self.backlog.arrived.until(ready).await;
        Ok(())
    }
}
