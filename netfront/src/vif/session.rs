//! The interface's sessions: negotiation in xenstore, then the rings.

use super::config::Config;
use super::features::{Features, negotiate, read_address, read_mtu};
use super::interface::Interface;
use super::queue::Queue;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::pin::pin;
use embassy_time::Duration;
use futures_util::future::{Either, select};
use xen::frontend::{Handshake, Lifecycle, PagePool, SessionEnd, SessionHandler};
use xen::xenbus::State;
use xen::xenstore::Store;
use xen::{Errno, Machine};

impl<M: Machine> SessionHandler for Interface<M> {
    type Machine = M;

    fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    fn pages(&self) -> &PagePool<M> {
        &self.pages
    }

    fn close_timeout(&self) -> Duration {
        self.config.linger
    }

    async fn session(&self, handshake: &mut Handshake<'_>) -> Result<SessionEnd, Errno> {
        let (store, path) = (handshake.store, handshake.path);
        let (domain, backend) = (handshake.backend.domain, handshake.backend.path.clone());
        let negotiated = async {
            let address = read_address(store, path).await?;
            Ok((address, negotiate(&self.config, store, path, &backend).await?))
        };
        let (address, features) = match negotiated.await {
            // The nodes may differ for another backend, or after the device was created again.
            Err(Errno::EPROTO | Errno::EOPNOTSUPP) => {
                handshake.close().await;
                let state = handshake.wait_for(|state| state != State::InitWait).await?;
                return Ok(state.map_or(SessionEnd::Shutdown, |_| SessionEnd::BackendGone));
            }
            negotiated => negotiated?,
        };
        self.address.set(address);
        let queue = Queue::open(&self.pages, domain, &features, &self.config, &self.signal)?;
        let nodes = frontend_nodes(&queue, &features, &self.config);
        self.open(queue);
        if let Some(end) = handshake.connect(&nodes, State::Connected).await? {
            return Ok(end);
        }
        self.go_up(features);
        log::info!(
            "{path}: connected, {address}, MTU {}{}{}{}",
            features.mtu,
            if features.segments_v4 { ", segmentation" } else { "" },
            if features.checksum_v4 { ", checksums" } else { "" },
            if features.split_events { ", two event channels" } else { "" },
        );
        let work = async {
            let nodes = pin!(watch_nodes(self, store, path, &backend));
            match select(pin!(self.broken()), nodes).await {
                Either::Left(_) => Ok(SessionEnd::BackendGone),
                Either::Right((error, _)) => Err(error),
            }
        };
        let end = handshake.until_over(work).await;
        handshake.close().await;
        end
    }

    fn leave_session(&self, _: Errno) {
        self.close();
    }
}

fn frontend_nodes(
    queue: &Queue,
    features: &Features,
    config: &Config,
) -> Vec<(&'static str, String)> {
    let yes = || "1".to_string();
    let segmentation = || if config.segmentation { "1" } else { "0" }.to_string();
    let mut nodes = Vec::from([
        ("tx-ring-ref", queue.tx.grant().to_string()),
        ("rx-ring-ref", queue.rx.grant().to_string()),
        ("request-rx-copy", yes()),
        ("feature-rx-notify", yes()),
        ("feature-sg", yes()),
        ("feature-gso-tcpv4", segmentation()),
        ("feature-gso-tcpv6", segmentation()),
        ("feature-ipv6-csum-offload", yes()),
    ]);
    if features.split_events {
        nodes.push(("event-channel-tx", queue.tx_port.0.to_string()));
        nodes.push(("event-channel-rx", queue.rx_port.0.to_string()));
    } else {
        nodes.push(("event-channel", queue.tx_port.0.to_string()));
    }
    nodes
}

/// Follows the backend's `carrier` node, which counts as 1 if it is missing, and this end's `mtu`
/// node, which a script may write only after the session has begun. Returns the error of a failed
/// read.
async fn watch_nodes<M: Machine>(
    interface: &Interface<M>,
    store: &Store,
    path: &str,
    backend: &str,
) -> Errno {
    let carrier = format!("{backend}/carrier");
    let watches =
        async { Ok((store.watch(&carrier).await?, store.watch(&format!("{path}/mtu")).await?)) };
    let (mut carriers, mut mtus) = match watches.await {
        Ok(watches) => watches,
        Err(error) => return error,
    };
    loop {
        match select(pin!(carriers.next()), pin!(mtus.next())).await {
            Either::Left(_) => {
                let carrier = store.read_string(&carrier).await;
                interface.set_carrier(!matches!(carrier.as_deref(), Ok("0")));
            }
            Either::Right(_) => match read_mtu(store, path).await {
                Ok(Some(mtu)) => interface.set_mtu(mtu),
                Ok(None) => {}
                Err(error) => return error,
            },
        }
    }
}
