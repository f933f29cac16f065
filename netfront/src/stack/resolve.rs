//! Names to addresses (RFC 1035), over UDP.

use super::Stack;
use super::state::Inner;
use crate::ResolveError;
use core::future::poll_fn;
use core::net::IpAddr;
use core::task::Poll;
use edge_nal::{AddrType, Dns};
use smoltcp::socket::dns::{self, GetQueryResultError, QueryHandle, StartQueryError};
use smoltcp::wire::DnsQueryType;

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

async fn ask(inner: &Inner, name: &str, kind: DnsQueryType) -> Result<IpAddr, ResolveError> {
    let handle = inner.with(|state| {
        if state.addresses.dns.is_empty() {
            return Err(ResolveError::NoServer);
        }
        let context = state.interface.context();
        let socket = state.sockets.get_mut::<dns::Socket<'_>>(state.dns);
        socket.start_query(context, name, kind).map_err(|error| match error {
            StartQueryError::NoFreeSlot => ResolveError::Busy,
            StartQueryError::InvalidName | StartQueryError::NameTooLong => ResolveError::NotAName,
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
                    Poll::Ready(done.map_err(|_| ResolveError::NoAnswer))
                }
            }
        })
    })
    .await?;
    addresses.first().map(|&address| address.into()).ok_or(ResolveError::NotFound)
}

impl Dns for Stack {
    type Error = ResolveError;

    /// Asks the DNS servers, once there is an address to ask from.
    async fn get_host_by_name(&self, host: &str, kind: AddrType) -> Result<IpAddr, ResolveError> {
        if let Ok(address) = host.parse() {
            return Ok(address);
        }
        self.configured().await;
        match kind {
            AddrType::IPv4 => ask(&self.0, host, DnsQueryType::A).await,
            AddrType::IPv6 => ask(&self.0, host, DnsQueryType::Aaaa).await,
            AddrType::Either => match ask(&self.0, host, DnsQueryType::A).await {
                Err(ResolveError::NotFound | ResolveError::NoAnswer) => {
                    ask(&self.0, host, DnsQueryType::Aaaa).await
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
