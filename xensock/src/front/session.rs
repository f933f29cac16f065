//! The frontend's sessions: negotiation with the backend in xenstore, then the command ring.

use super::config::Config;
use super::link::{Link, Session};
use super::state::Core;
use crate::wire::Protocol;
use alloc::format;
use alloc::string::ToString;
use core::future::Future;
use futures_util::future::join_all;
use xen::frontend::{Handshake, Lifecycle, PagePool, SessionEnd, SessionHandler};
use xen::xenbus::State;
use xen::{Errno, Machine};

impl<M: Machine> SessionHandler for Core<M> {
    type Machine = M;

    fn lifecycle(&self) -> &Lifecycle {
        &self.link.lifecycle
    }

    fn pages(&self) -> &PagePool<M> {
        &self.pages
    }

    async fn session(&self, handshake: &mut Handshake<'_>) -> Result<SessionEnd, Errno> {
        let (path, backend) = (handshake.path, &handshake.backend);
        let Config { dialect, extensions, .. } = self.config;
        let wish = Protocol { dialect, extensions };
        let read = async |(name, _)| {
            let value = handshake.store.read_string(&format!("{}/{name}", backend.path)).await;
            (name, value.ok())
        };
        // All requests leave before the first reply comes.
        let nodes = join_all(wish.backend_nodes(0).into_iter().map(read)).await;
        let node = async |name: &str| nodes.iter().find(|(one, _)| *one == name)?.1.clone();
        let (protocol, orders) = match wish.with_backend(node).await {
            Ok(agreed) => agreed,
            Err(message) => {
                log::error!("{path}: {message}");
                // A mismatch with the first backend is for the user to correct.
                let is_first = handshake.session == 0;
                return if is_first { Err(Errno::EOPNOTSUPP) } else { Ok(SessionEnd::BadOffer) };
            }
        };
        let (ring_order, max_ring_order) = self.config.ring_orders(&protocol, &orders).into_inner();
        let session = Session {
            number: handshake.session,
            backend: backend.domain,
            protocol,
            orders,
            ring_order,
            max_ring_order,
            datagram_order: self.config.datagram_order(&protocol, &orders),
        };
        let channel = self.link.open(session)?;
        let mut nodes = protocol.frontend_nodes();
        nodes.extend(channel.map(|(name, value)| (name, value.to_string())));
        if let Some(end) = handshake.connect(&nodes, State::Initialised).await? {
            return Ok(end);
        }
        self.link.set_up(true);
        for member in self.members() {
            member.link_up();
        }
        let broken = async {
            self.link.receive().await;
            Ok(SessionEnd::BackendGone)
        };
        let end = handshake.until_over(broken).await;
        self.link.set_up(false);
        handshake.close().await;
        end
    }

    fn leave_session(&self, error: Errno) {
        self.link.set_up(false);
        for member in self.members() {
            member.link_lost(error);
        }
        self.rings.end_session();
        self.link.close();
    }

    fn work(&self) -> impl Future<Output = ()> {
        Link::work(&self.link)
    }
}
