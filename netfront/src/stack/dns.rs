//! DNS over UDP (RFC 1035), by smoltcp's client.

use super::Stack;
use super::state::Inner;
use crate::ResolveError;
use core::future::poll_fn;
use core::net::IpAddr;
use core::task::Poll;
use edge_nal::{AddrType, Dns};
use smoltcp::socket::dns::{self, GetQueryResultError, QueryHandle, StartQueryError};
use smoltcp::wire::DnsQueryType;

/// A query, cancelled when dropped before it is answered.
struct Query<'a> {
    inner: &'a Inner,
    handle: Option<QueryHandle>,
}

impl Inner {
    fn with_dns<T>(&self, work: impl FnOnce(&mut dns::Socket<'static>) -> T) -> T {
        self.with(|state| work(state.sockets.get_mut(state.addresses.dns)))
    }
}

impl Drop for Query<'_> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.inner.with_dns(|socket| socket.cancel_query(handle));
        }
    }
}

async fn query(inner: &Inner, host: &str, kind: DnsQueryType) -> Result<IpAddr, ResolveError> {
    let handle = inner.with(|state| {
        if !state.addresses.has_dns_server() {
            return Err(ResolveError::NoServer);
        }
        let socket = state.sockets.get_mut::<dns::Socket<'_>>(state.addresses.dns);
        socket.start_query(state.interface.context(), host, kind).map_err(|error| match error {
            StartQueryError::NoFreeSlot => ResolveError::Busy,
            StartQueryError::InvalidName | StartQueryError::NameTooLong => ResolveError::NotAName,
        })
    })?;
    let mut query = Query { inner, handle: Some(handle) };
    inner.kick();
    let result = poll_fn(|cx| {
        inner.with_dns(|socket| match socket.get_query_result(handle) {
            Err(GetQueryResultError::Pending) => {
                socket.register_query_waker(handle, cx.waker());
                Poll::Pending
            }
            result => Poll::Ready(result),
        })
    })
    .await;
    // smoltcp has freed the query.
    query.handle = None;
    let addresses = result.map_err(|_| ResolveError::NoAnswer)?;
    addresses.first().map(|&address| address.into()).ok_or(ResolveError::NotFound)
}

impl Dns for Stack {
    type Error = ResolveError;

    /// Queries the DNS servers as soon as the interface has an address.
    async fn get_host_by_name(&self, host: &str, kind: AddrType) -> Result<IpAddr, ResolveError> {
        if let Ok(address) = host.parse() {
            return Ok(address);
        }
        self.configured().await;
        match kind {
            AddrType::IPv4 => query(&self.0, host, DnsQueryType::A).await,
            AddrType::IPv6 => query(&self.0, host, DnsQueryType::Aaaa).await,
            AddrType::Either => match query(&self.0, host, DnsQueryType::A).await {
                Err(ResolveError::NotFound | ResolveError::NoAnswer) => {
                    query(&self.0, host, DnsQueryType::Aaaa).await
                }
                answer => answer,
            },
        }
    }

    /// Not supported.
    async fn get_host_by_address(&self, _: IpAddr, _: &mut [u8]) -> Result<usize, ResolveError> {
        Err(ResolveError::Unsupported)
    }
}
