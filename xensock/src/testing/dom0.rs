//! A backend's domain in a world of fakes.

use super::net::FakeNet;
use crate::back::{Host, Network};
use std::sync::Arc;
use std::time::Duration;
use xen::testing::{BoundPort, MappedPages, Peer, World};
use xen::{DomId, Errno, GrantRef, Mapping, Neighbour, Port, Signal};

/// The domain of the backends: its memory and events are fakes, and so are its sockets unless `N`
/// is another network.
#[derive(Clone)]
pub struct FakeDom0<N = FakeNet> {
    peer: Peer,
    net: N,
}

impl<N> FakeDom0<N> {
    /// A domain with backends, whose sockets are on `net`.
    pub fn new(world: &World, id: DomId, net: N) -> Self {
        FakeDom0 { peer: world.peer(id), net }
    }
}

impl<N> Neighbour for FakeDom0<N> {
    type Mapping = MappedPages;
    type Channel = BoundPort;

    fn map(&self, owner: DomId, refs: &[GrantRef]) -> Result<MappedPages, Errno> {
        self.peer.map(owner, refs)
    }

    fn bind_port(&self, owner: DomId, port: Port, signal: Arc<Signal>) -> Result<BoundPort, Errno> {
        self.peer.bind_port(owner, port, signal)
    }
}

impl<N: Network + 'static> Host for FakeDom0<N> {
    type Network = N;

    fn network(&self) -> &N {
        &self.net
    }

    async fn sleep(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        embassy_time::Timer::after_micros(micros).await;
    }

    fn now(&self) -> Duration {
        Duration::from_micros(embassy_time::Instant::now().as_micros())
    }

    fn copy(&self, guest: DomId, page: GrantRef, to: &mut [u8]) -> Result<(), Errno> {
        self.peer.map(guest, &[page])?.shared().read(0, to);
        Ok(())
    }
}
