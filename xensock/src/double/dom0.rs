//! A backend's domain in the double.

use super::net::{Acceptor, Net, Socket};
use super::world::World;
use crate::Signal;
use crate::back::{Channel, Host, Mapping, Stream};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use xen::{DomId, Errno, GrantRef, PAGE_SIZE, Port, Shared};

/// The domain with the backends and the network.
#[derive(Clone)]
pub struct Dom0 {
    world: World,
    id: DomId,
    net: Net,
}

/// A guest's pages, mapped.
pub struct MappedPages {
    world: World,
    guest: DomId,
    refs: Vec<GrantRef>,
    start: *mut u8,
}

/// A guest's port, bound.
pub struct BoundPort {
    world: World,
    guest: DomId,
    port: Port,
}

impl Dom0 {
    pub(super) fn new(world: World, id: DomId, net: Net) -> Dom0 {
        Dom0 { world, id, net }
    }
}

impl Mapping for MappedPages {
    fn shared(&self) -> Shared<'_> {
        // SAFETY: while they are mapped the guest cannot revoke their grants, so not free them, and
        // nobody makes references to pages.
        unsafe { Shared::new(self.start, self.refs.len() * PAGE_SIZE) }
    }
}

impl Drop for MappedPages {
    fn drop(&mut self) {
        self.world.state.unmap(self.guest, &self.refs);
    }
}

impl Channel for BoundPort {
    fn notify(&self) {
        self.world.state.notify_guest(self.guest, self.port);
    }
}

impl Drop for BoundPort {
    fn drop(&mut self) {
        self.world.state.unbind_port(self.guest, self.port);
    }
}

impl Stream for Socket {
    fn poll_recv(&self, cx: &mut Context<'_>, room: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        self.poll_take(cx, |bytes| crate::ring::copy_in(&room, bytes))
    }

    fn poll_send(&self, cx: &mut Context<'_>, data: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        self.poll_put(cx, |bytes| crate::ring::copy_out(&data, bytes))
    }
}

impl Host for Dom0 {
    type Mapping = MappedPages;
    type Channel = BoundPort;
    type Stream = Socket;
    type Listener = Acceptor;

    async fn sleep(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        embassy_time::Timer::after_micros(micros).await;
    }

    fn map(&self, guest: DomId, refs: &[GrantRef]) -> Result<MappedPages, Errno> {
        let start = self.world.state.map(self.id, guest, refs)?;
        Ok(MappedPages { world: self.world.clone(), guest, refs: refs.to_vec(), start })
    }

    fn bind_port(&self, guest: DomId, port: Port, signal: Arc<Signal>) -> Result<BoundPort, Errno> {
        self.world.state.bind_port(self.id, guest, port, signal)?;
        Ok(BoundPort { world: self.world.clone(), guest, port })
    }

    async fn connect(&self, _: DomId, to: SocketAddr) -> Result<Socket, Errno> {
        self.net.connect(to).await
    }

    fn bind(&self, _: DomId, at: SocketAddr) -> Result<Acceptor, Errno> {
        self.net.bind(at)
    }

    fn listen(&self, socket: &Acceptor, backlog: u32) -> Result<(), Errno> {
        socket.listen(backlog as usize);
        Ok(())
    }

    fn poll_acceptable(&self, cx: &mut Context<'_>, socket: &Acceptor) -> Poll<Result<(), Errno>> {
        socket.poll_acceptable(cx).map(Ok)
    }

    fn poll_accept(&self, cx: &mut Context<'_>, socket: &Acceptor) -> Poll<Result<Socket, Errno>> {
        socket.poll_accept(cx).map(Ok)
    }
}
