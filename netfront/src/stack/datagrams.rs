//! Sockets of datagrams (UDP).

use super::port::Port;
use super::state::{Inner, State};
use alloc::rc::Rc;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::task::{Context, Poll};
use edge_nal::{UdpBind, UdpConnect};
use embassy_time::with_timeout;
use smoltcp::iface::MulticastError;
use smoltcp::socket::udp;
use smoltcp::wire::{IpAddress, IpEndpoint, IpListenEndpoint};
use xen::Errno;
use xensock_stream::{Group, PollDatagrams};

/// The headers before a datagram's data.
const UDP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// Datagrams of a port; its own operations are those of [`UdpSocket`].
///
/// ```
/// use edge_nal::{UdpReceive, UdpSend};
/// use netfront::stack::Stack;
/// use std::net::{Ipv4Addr, SocketAddr};
///
/// /// Sends each datagram back.
/// async fn echo(stack: &Stack) -> Result<(), xen::Errno> {
///     let mut socket = stack.bind_udp((Ipv4Addr::UNSPECIFIED, 7).into()).await?;
///     let mut data = [0; 2048];
///     loop {
///         let (length, peer) = socket.receive(&mut data).await?;
///         if let Some(whole) = data.get(..length) {
///             socket.send(peer, whole).await?;
///         }
///     }
/// }
/// ```
pub type Datagrams = xensock_stream::Datagrams<UdpSocket>;

/// The socket of [`Datagrams`].
///
/// Dropping it frees the port. What was accepted for sending is sent, unless it waits for a
/// neighbour that does not answer.
pub struct UdpSocket {
    inner: Rc<Inner>,
    port: Rc<Port>,
}

/// The error for a family of addresses that does not match.
fn check_family(local: IpAddr, remote: IpAddr) -> Result<(), Errno> {
    if local.is_ipv4() == remote.is_ipv4() { Ok(()) } else { Err(Errno::EAFNOSUPPORT) }
}

/// Binds a socket.
pub(super) fn bind(inner: &Rc<Inner>, local: SocketAddr) -> Result<Datagrams, Errno> {
    inner.with(|state| open(inner, state, local, None))
}

/// Binds a socket that has one peer.
pub(super) async fn connect(
    inner: &Rc<Inner>,
    mut local: SocketAddr,
    remote: SocketAddr,
) -> Result<Datagrams, Errno> {
    if remote.port() == 0 || remote.ip().is_unspecified() {
        return Err(Errno::EINVAL);
    }
    check_family(local.ip(), remote.ip())?;
    let ready = || inner.with(|state| state.has_address(remote.is_ipv6())).then_some(());
    let waiting = with_timeout(inner.config.connect_within, inner.changed.until(ready));
    waiting.await.map_err(|_| Errno::ETIMEDOUT)?;
    inner.with(|state| {
        if local.ip().is_unspecified() {
            local.set_ip(state.source(remote.ip())?);
        }
        open(inner, state, local, Some(remote.into()))
    })
}

fn open(
    inner: &Rc<Inner>,
    state: &mut State,
    local: SocketAddr,
    peer: Option<IpEndpoint>,
) -> Result<Datagrams, Errno> {
    let addr = (!local.ip().is_unspecified()).then(|| IpAddress::from(local.ip()));
    if addr.is_some_and(|addr| !state.interface.has_ip_addr(addr)) {
        return Err(Errno::EADDRNOTAVAIL);
    }
    let port = match local.port() {
        0 => state.free_udp_port(&inner.config)?,
        port => port,
    };
    let only_v4 = local.ip() == Ipv4Addr::UNSPECIFIED;
    let local = IpListenEndpoint { addr, port };
    let port = state.bind_port(&inner.config, local, peer, only_v4)?;
    inner.count(|statistics| statistics.datagram_sockets_open += 1);
    Ok(Datagrams::new(UdpSocket { inner: inner.clone(), port }))
}

impl UdpSocket {
    /// The address of this end, which may be unspecified.
    pub fn local_addr(&self) -> SocketAddr {
        let IpListenEndpoint { addr, port } = self.port.local;
        let any: IpAddr = match self.port.only_v4 {
            true => Ipv4Addr::UNSPECIFIED.into(),
            false => core::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(addr.map_or(any, Into::into), port)
    }

    /// The only peer of a connected socket.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.port.peer.map(Into::into)
    }

    /// The address to send from, if a datagram can be sent.
    fn source(&self, state: &State, to: SocketAddr, length: usize) -> Result<IpAddress, Errno> {
        if to.port() == 0 || to.ip().is_unspecified() {
            return Err(Errno::EINVAL);
        }
        check_family(self.local_addr().ip(), to.ip()).or_else(|error| {
            // IPv6's unspecified address is that of both families, as in Linux.
            let both = self.port.local.addr.is_none() && !self.port.only_v4;
            if both { Ok(()) } else { Err(error) }
        })?;
        let header = if to.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
        let room = state.mtu.saturating_sub(header + UDP_HEADER);
        if length > room.min(self.inner.config.datagram_transmit_buffer) {
            return Err(Errno::EMSGSIZE);
        }
        let source = state.source(to.ip())?;
        match self.port.local.addr {
            Some(addr) if !state.interface.has_ip_addr(addr) => Err(Errno::ENETDOWN),
            Some(addr) => Ok(addr),
            None => Ok(source.into()),
        }
    }

    /// Waits for a datagram that is for this socket, and discards all before it.
    fn poll_next<T>(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut udp::Socket<'static>) -> Option<T>,
    ) -> Poll<T> {
        self.inner.with(|state| {
            let socket: &mut udp::Socket<'_> = state.sockets.get_mut(self.port.socket);
            while let Ok((_, metadata)) = socket.peek() {
                if !self.port.accepts(metadata.endpoint) {
                    let _ = socket.recv();
                } else if let Some(value) = take(socket) {
                    return Poll::Ready(value);
                }
            }
            socket.register_recv_waker(cx.waker());
            *self.port.receiver.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// The address of a group, if the interface is this stack's.
    fn group(&self, group: Group) -> Result<IpAddress, Errno> {
        match group {
            Group::V4 { group, interface } => {
                let is_ours = |state: &mut State| state.interface.has_ip_addr(interface);
                if !interface.is_unspecified() && !self.inner.with(is_ours) {
                    return Err(Errno::ENODEV);
                }
                Ok(group.into())
            }
            Group::V6 { group, interface: 0 | 1 } => Ok(group.into()),
            Group::V6 { .. } => Err(Errno::ENODEV),
        }
    }
}

impl PollDatagrams for UdpSocket {
    type Error = Errno;

    /// Waits for a datagram. A connected socket whose peer has no such port returns
    /// [`Errno::ECONNREFUSED`], as in Linux.
    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<Result<(usize, SocketAddr), Errno>> {
        if let Some(error) = self.port.error.take() {
            return Poll::Ready(Err(error));
        }
        let received = self.poll_next(cx, |socket| {
            let (data, metadata) = socket.recv().ok()?;
            let fits = to.len().min(data.len());
            to[..fits].copy_from_slice(&data[..fits]);
            Some((data.len(), metadata.endpoint.into()))
        });
        if received.is_ready() {
            self.inner.count(|statistics| statistics.datagrams_received += 1);
        }
        received.map(Ok)
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        // The error is kept for `poll_receive`.
        let error = self.port.error.take();
        self.port.error.set(error);
        if error.is_some() {
            return Poll::Ready(Ok(()));
        }
        self.poll_next(cx, |_| Some(())).map(Ok)
    }

    /// Queues a datagram.
    ///
    /// # Errors
    ///
    /// [`Errno::EMSGSIZE`] for more than the interface's MTU allows: datagrams are not fragmented.
    /// [`Errno::ENETUNREACH`] without a route, [`Errno::ENETDOWN`] if the socket's address is lost,
    /// [`Errno::EAFNOSUPPORT`] if the address is of the other family.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        to: SocketAddr,
        data: &[u8],
    ) -> Poll<Result<(), Errno>> {
        if let Some(error) = self.port.error.take() {
            return Poll::Ready(Err(error));
        }
        let to = self.peer_addr().unwrap_or(to);
        let sent = self.inner.with(|state| match self.source(state, to, data.len()) {
            Ok(source) => {
                self.port.poll_send(cx, &self.inner.config, state, source, to.into(), data)
            }
            Err(error) => Poll::Ready(Err(error)),
        });
        if let Poll::Ready(Ok(())) = sent {
            self.inner.count(|statistics| statistics.datagrams_sent += 1);
            self.inner.kick();
        }
        sent
    }

    /// Joins a group. The stack has one interface: that of IPv6 has the number 1.
    ///
    /// # Errors
    ///
    /// [`Errno::EADDRINUSE`] if the socket has joined it, [`Errno::EINVAL`] if it is no group,
    /// [`Errno::ENODEV`] for another interface, [`Errno::ENOBUFS`] for too many groups.
    async fn join(&self, group: Group) -> Result<(), Errno> {
        let group = self.group(group)?;
        if self.port.groups.borrow().contains(&group) {
            return Err(Errno::EADDRINUSE);
        }
        self.inner.with(|state| state.interface.join_multicast_group(group)).map_err(|error| {
            match error {
                MulticastError::GroupTableFull => Errno::ENOBUFS,
                MulticastError::Unaddressable => Errno::EINVAL,
            }
        })?;
        self.port.groups.borrow_mut().push(group);
        self.inner.kick();
        Ok(())
    }

    /// Leaves a group.
    ///
    /// # Errors
    ///
    /// [`Errno::EADDRNOTAVAIL`] if the socket has not joined it.
    async fn leave(&self, group: Group) -> Result<(), Errno> {
        let group = self.group(group)?;
        let mut groups = self.port.groups.borrow_mut();
        let at = groups.iter().position(|&joined| joined == group);
        groups.swap_remove(at.ok_or(Errno::EADDRNOTAVAIL)?);
        drop(groups);
        self.inner.with(|state| state.leave_groups(&[group]));
        self.inner.kick();
        Ok(())
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.inner.count(|statistics| statistics.datagram_sockets_open -= 1);
        self.inner.with(|state| state.close_port(&self.port));
        self.inner.kick();
    }
}

impl UdpBind for super::Stack {
    type Error = Errno;
    type Socket<'a> = Datagrams;

    async fn bind(&self, local: SocketAddr) -> Result<Datagrams, Errno> {
        self.bind_udp(local).await
    }
}

impl UdpConnect for super::Stack {
    type Error = Errno;
    type Socket<'a> = Datagrams;

    async fn connect(&self, local: SocketAddr, remote: SocketAddr) -> Result<Datagrams, Errno> {
        self.connect_udp(local, remote).await
    }
}
