//! What is agreed on with the backend in xenstore, and the command ring while the session lasts.

use super::Config;
use super::calls::Calls;
use super::device::{Attachment, Device, Link, Session};
use crate::wire::Protocol;
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use futures_util::future::{Either, select};
use xen::frontend::{Meeting, SessionEnd};
use xen::xenbus::State;
use xen::{Errno, Machine, Side, Signal};

/// Serves a session with a backend that waits for this end's nodes.
pub(super) async fn serve<M: Machine>(
    device: &Device<M>,
    meeting: &mut Meeting<'_, Device<M>>,
) -> Result<SessionEnd, Errno> {
    let (path, backend) = (meeting.path, &meeting.backend);
    let Config { dialect, extensions, .. } = device.config;
    let wish = Protocol { dialect, extensions };
    let node = async |name: &str| {
        meeting.store.read_string(&format!("{}/{name}", backend.path)).await.ok()
    };
    let (protocol, orders) = match wish.with_backend(node).await {
        Ok(agreed) => agreed,
        Err(message) => {
            log::error!("{path}: {message}");
            // What was like this from the start is for the user to mend.
            let is_first = meeting.number == 0;
            return if is_first { Err(Errno::EOPNOTSUPP) } else { Ok(SessionEnd::BadOffer) };
        }
    };
    let ring_order = device.config.ring_order.unwrap_or(orders.default);
    let attachment = Attachment {
        session: meeting.number,
        backend: backend.domain,
        protocol,
        orders,
        ring_order: ring_order.clamp(orders.min, orders.max),
    };
    let session = open(device, attachment)?;
    let (signal, port, grant) = (session.signal.clone(), session.port, session.page.grants()[0]);
    let mut nodes = protocol.frontend_nodes();
    nodes.push(("port", port.0.to_string()));
    nodes.push(("ring-ref", grant.0.to_string()));
    let mut offered = Offered { device, session: Some(session) };
    if let Some(end) = meeting.connect(&nodes, State::Initialised).await? {
        return Ok(end);
    }
    let Some(session) = offered.session.take() else { return Ok(SessionEnd::BackendGone) };
    device.go_up(session);
    let end = match select(pin!(responses(device, &signal)), pin!(meeting.over())).await {
        Either::Left(_) => Ok(SessionEnd::BackendGone),
        Either::Right((end, _)) => end,
    };
    if let Link::Up(session) = device.set_link(Link::Waiting) {
        offered.session = Some(*session);
    }
    meeting.close().await;
    let is_shutdown = end == Ok(SessionEnd::Shutdown);
    device.end_sockets(if is_shutdown { Errno::ENODEV } else { Errno::ENETDOWN });
    end
}

/// A session while it is not in the device's link: it is freed with this value.
struct Offered<'d, M: Machine + 'static> {
    device: &'d Device<M>,
    session: Option<Session>,
}

impl<M: Machine> Drop for Offered<'_, M> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.device.free(session);
        }
    }
}

/// Allocates the command ring.
fn open<M: Machine>(device: &Device<M>, attachment: Attachment) -> Result<Session, Errno> {
    let page = device.memory.grant_page(attachment.backend)?;
    let signal = Arc::new(Signal::new());
    let port = match device.memory.open_port(attachment.backend, signal.clone()) {
        Ok(port) => port,
        Err(error) => {
            device.memory.withdraw(page);
            return Err(error);
        }
    };
    let calls = Calls::new(attachment.protocol, page.pages.shared());
    Ok(Session { attachment, calls, page, port, signal })
}

/// Hands responses to those who wait for them, until the backend breaks the protocol.
async fn responses<M: Machine>(device: &Device<M>, signal: &Signal) {
    poll_fn(|cx| {
        signal.register(Side::Rx, cx.waker());
        let mut link = device.link.borrow_mut();
        let Link::Up(session) = &mut *link else { return Poll::Ready(()) };
        let received = session.calls.receive(session.page.pages.shared());
        device.send(session);
        match received {
            Ok(()) => Poll::Pending,
            Err(error) => {
                log::error!("the backend's command ring: {error}; all of its sockets are closed");
                Poll::Ready(())
            }
        }
    })
    .await;
}
