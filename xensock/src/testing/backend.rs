//! Serves a device as a backend: the handshake in xenstore, then the engine.

use super::dom0::FakeDom0;
use crate::back::{CommandLink, Limits, Violation, serve};
use crate::wire::Protocol;
use futures_util::future::{Either, select};
use std::pin::pin;
use std::sync::Arc;
use xen::xenbus::{self, OtherEnd, State, StateWatch};
use xen::xenstore::Store;
use xen::{Errno, GrantRef, Neighbour, Port, Signal};

/// Serves the device whose backend's folder is `path`, connection after connection, until xenstore
/// fails.
pub async fn backend(
    host: &FakeDom0,
    store: &Store,
    path: &str,
    protocol: Protocol,
    limits: Limits,
) -> Errno {
    loop {
        if let Err(error) = serve_once(host, store, path, protocol, limits).await {
            return error;
        }
    }
}

async fn serve_once(
    host: &FakeDom0,
    store: &Store,
    path: &str,
    protocol: Protocol,
    limits: Limits,
) -> Result<(), Errno> {
    let frontend = OtherEnd::frontend_of(store, path).await?;
    let mut watch = StateWatch::new(store, &frontend.path).await?;
    for (name, value) in protocol.backend_nodes(limits.max_ring_order) {
        store.write(&format!("{path}/{name}"), value).await?;
    }
    // No earlier backend of this frontend exists any more.
    xenbus::switch_state(store, path, State::InitWait).await?;
    watch.wait_for(|state| state == State::Initialised).await?;
    let node =
        async |name: &str| store.read_string(&format!("{}/{name}", frontend.path)).await.ok();
    let protocol = protocol.with_frontend(node).await.map_err(|reason| {
        log::error!("{reason}");
        Errno::EINVAL
    })?;
    let grant = xenbus::read_number(store, &format!("{}/ring-ref", frontend.path)).await?;
    let port = xenbus::read_number(store, &format!("{}/port", frontend.path)).await?;
    let signal = Arc::new(Signal::new());
    let link = CommandLink {
        ring: host.map(frontend.domain, &[GrantRef(grant)])?,
        channel: host.bind_port(frontend.domain, Port(port), signal.clone())?,
        signal,
    };
    xenbus::switch_state(store, path, State::Connected).await?;
    {
        let engine = pin!(serve(host, frontend.domain, link, protocol, limits));
        let left = pin!(
            watch.wait_for(|state| { !matches!(state, State::Initialised | State::Connected) })
        );
        if let Either::Left((Violation, _)) = select(engine, left).await {
            log::error!("the guest broke the protocol");
        }
    }
    // Dropping the engine has unmapped everything.
    xenbus::switch_state(store, path, State::Closing).await?;
    watch.wait_for(|state| !matches!(state, State::Connected | State::Closing)).await?;
    xenbus::switch_state(store, path, State::Closed).await
}
