//! Names to addresses (RFC 1035), over UDP.

use super::Stack;
use super::state::Inner;
use core::future::poll_fn;
use core::net::IpAddr;
use core::task::Poll;
use edge_nal::{AddrType, Dns};
use smoltcp::socket::dns::{self, GetQueryResultError, QueryHandle, StartQueryError};
use smoltcp::wire::DnsQueryType;
use xen::Errno;

/// A question that was asked; taken back if nobody waits for the answer.
struct Query<'a> {
    inner: &'a Inner,
    handle: Option<QueryHandle>,
}

impl Drop for Query<'_> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.inner.with(|state| {
                state.sockets.get_mut::<dns::Socket<'_>>(state.dns).cancel_query(handle);
            });
        }
    }
}

async fn ask(inner: &Inner, name: &str, kind: DnsQueryType) -> Result<IpAddr, Errno> {
    let handle = inner.with(|state| {
        if state.addresses.dns.is_empty() {
            return Err(Errno::ENETUNREACH);
        }
        let context = state.interface.context();
        let socket = state.sockets.get_mut::<dns::Socket<'_>>(state.dns);
        socket.start_query(context, name, kind).map_err(|error| match error {
            StartQueryError::NoFreeSlot => Errno::ENOMEM,
            StartQueryError::InvalidName | StartQueryError::NameTooLong => Errno::EINVAL,
        })
    })?;
    let mut query = Query { inner, handle: Some(handle) };
    inner.kick();
    let addresses = poll_fn(|cx| {
        inner.with(|state| {
            let socket = state.sockets.get_mut::<dns::Socket<'_>>(state.dns);
            match socket.get_query_result(handle) {
                Err(GetQueryResultError::Pending) => {
                    socket.register_query_waker(handle, cx.waker());
                    Poll::Pending
                }
                done => {
                    // Its place is free again.
                    query.handle = None;
                    Poll::Ready(done.map_err(|_| Errno::ENOENT))
                }
            }
        })
    })
    .await?;
    addresses.first().map(|&address| address.into()).ok_or(Errno::ENOENT)
}

impl Dns for Stack {
    type Error = Errno;

    /// Asks the DNS servers, once there is an address to ask from. [`Errno::ENOENT`] when they know no such
    /// name or do not answer, [`Errno::EINVAL`] for what cannot be a name, [`Errno::ENETUNREACH`] when there is
    /// no server.
    async fn get_host_by_name(&self, host: &str, kind: AddrType) -> Result<IpAddr, Errno> {
        if let Ok(address) = host.parse() {
            return Ok(address);
        }
        self.configured().await;
        match kind {
            AddrType::IPv4 => ask(&self.0, host, DnsQueryType::A).await,
            AddrType::IPv6 => ask(&self.0, host, DnsQueryType::Aaaa).await,
            AddrType::Either => match ask(&self.0, host, DnsQueryType::A).await {
                Err(Errno::ENOENT) => ask(&self.0, host, DnsQueryType::Aaaa).await,
                answer => answer,
            },
        }
    }

    /// Not supported.
    async fn get_host_by_address(&self, _: IpAddr, _: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
}
