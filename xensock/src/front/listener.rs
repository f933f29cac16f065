//! A listening socket.
//!
//! At most one ACCEPT is under way, as backends take no second one for the same socket. It belongs to
//! the listener, not to the call that started it: whoever calls `accept` next gets the connection.

use super::device::{Attachment, Device};
use super::socket::{Names, Socket, make, preparations};
use super::stream::Stream;
use super::wait::WaitList;
use crate::Machine;
use crate::wire::{Call, Family, Options};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::net::SocketAddr;
use core::pin::pin;
use embassy_time::{Duration, Timer};
use futures_util::future::{Either, select};
use xen::Errno;

/// How long the answer to an ACCEPT may take after its listener was released. Some backends never
/// send it.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// A socket that takes connections. Dropping it closes it.
pub struct Listener<M: Machine + 'static>(Rc<Passive<M>>);

struct Passive<M: Machine + 'static> {
    device: Rc<Device<M>>,
    name: u64,
    at: Attachment,
    /// Connections, or errors, that nobody has fetched yet.
    accepted: RefCell<VecDeque<Result<Stream<M>, Errno>>>,
    /// Told when there is one.
    waiters: WaitList,
    /// Whether a job accepts.
    accepting: Cell<bool>,
    /// Whether the backend has answered the listener's RELEASE.
    released: Cell<bool>,
    /// Told then.
    given_up: WaitList,
}

impl<M: Machine> Listener<M> {
    /// Waits for a connection. Calls may wait side by side; a call that is dropped loses nothing.
    ///
    /// [`Errno::ENETDOWN`]: the backend went away, and the listener with it.
    pub async fn accept(&self) -> Result<Stream<M>, Errno> {
        let passive = &self.0;
        passive
            .waiters
            .until(|| {
                if let Some(result) = passive.accepted.borrow_mut().pop_front() {
                    return Some(result);
                }
                if !passive.device.is_in_session(passive.at.session) {
                    return Some(Err(Errno::ENETDOWN));
                }
                if !passive.accepting.replace(true) {
                    passive.device.spawn(accept_all(passive.clone()));
                }
                None
            })
            .await
    }
}

impl<M: Machine> Drop for Listener<M> {
    fn drop(&mut self) {
        let passive = self.0.clone();
        passive.device.counters.listeners_open.sub(1);
        // Streams that nobody fetched are closed by being dropped.
        drop(passive.accepted.take());
        let unbinding = &self.0.device.unbinding;
        unbinding.set(unbinding.get() + 1);
        self.0.device.spawn(async move {
            let device = &passive.device;
            release(device, passive.at.session, passive.name).await;
            device.unbinding.set(device.unbinding.get() - 1);
            device.unbound.wake_all();
            passive.released.set(true);
            passive.given_up.wake_all();
        });
    }
}

/// Accepts as long as somebody waits for a connection: a job.
async fn accept_all<M: Machine>(passive: Rc<Passive<M>>) {
    loop {
        let result = accept(&passive).await;
        if Rc::strong_count(&passive) == 1 {
            // The listener is gone: a stream is closed by being dropped.
            return;
        }
        passive.accepted.borrow_mut().push_back(result);
        passive.waiters.wake_one();
        if passive.waiters.is_empty() {
            passive.accepting.set(false);
            return;
        }
    }
}

async fn accept<M: Machine>(passive: &Passive<M>) -> Result<Stream<M>, Errno> {
    let Passive { device, name, at, .. } = passive;
    let (ring, offer) = device.memory.open_ring(at, at.ring_order)?;
    let new = device.name_socket();
    let answer = pin!(device.call(at.session, *name, Call::Accept { new, ring: offer }));
    let given_up = pin!(async {
        passive.given_up.until(|| passive.released.get().then_some(())).await;
        Timer::after(LAST_ANSWER).await;
    });
    let result = match select(answer, given_up).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err(Errno::ECONNABORTED),
    };
    match result {
        Ok(reply) => {
            let names = Names { local: None, peer: reply.name };
            Ok(Stream::new(Socket::new(device, new, *at, ring, names)))
        }
        Err(error) => {
            device.memory.close_ring(ring);
            Err(error)
        }
    }
}

/// Opens a socket, binds it and listens: a job.
pub(super) async fn bind<M: Machine>(
    device: &Rc<Device<M>>,
    addr: SocketAddr,
) -> Result<Listener<M>, Errno> {
    let at = device.attached().await?;
    // Whoever has just dropped a listener may want its address again.
    device.unbound.until(|| (device.unbinding.get() == 0).then_some(())).await;
    let name = device.name_socket();
    let mut calls = preparations(&at, Family::of(addr), &Options::new());
    calls.extend([Call::Bind { addr }, Call::Listen { backlog: device.config.backlog }]);
    if let Err(error) = make(device, &at, name, calls).await {
        release(device, at.session, name).await;
        return Err(error);
    }
    device.counters.listeners_open.add(1);
    Ok(Listener(Rc::new(Passive {
        device: device.clone(),
        name,
        at,
        accepted: RefCell::default(),
        waiters: WaitList::default(),
        accepting: Cell::new(false),
        released: Cell::new(false),
        given_up: WaitList::default(),
    })))
}

async fn release<M: Machine>(device: &Device<M>, session: u32, name: u64) {
    if let Err(error) = device.call(session, name, Call::Release { reuse: false }).await {
        log::warn!("releasing listener {name} failed: {error}");
    }
}
