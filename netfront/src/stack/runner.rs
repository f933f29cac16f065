//! The future that moves packets.

use super::neighbours::{Neighbours, ask};
use super::state::{Inner, interface, now};
use crate::{Link, Nic};
use alloc::rc::Rc;
use core::convert::Infallible;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use embassy_time::{Duration, Instant, Timer};
use futures_util::future::select;
use smoltcp::iface::{PollIngressSingleResult, PollResult};
use smoltcp::phy::Device;
use smoltcp::time::Duration as Delay;

/// How many frames are received before other tasks run.
const BATCH: usize = 64;

/// The delay before a retry of work that is due but made no progress.
const RETRY_DELAY: Delay = Delay::from_millis(10);

/// Moves the packets of a [`Stack`](super::Stack); see [`run`](Runner::run).
pub struct Runner<D, N> {
    inner: Rc<Inner>,
    device: D,
    nic: N,
    link: Link,
    neighbours: Neighbours,
}

/// When the runner has to run again.
enum Next {
    /// After other tasks have run.
    Soon,
    /// When something happens, or at this time.
    Wait(Option<Instant>),
}

impl<D: Device, N: Nic> Runner<D, N> {
    pub(super) fn new(inner: Rc<Inner>, device: D, nic: N) -> Self {
        Runner { inner, device, nic, link: Link::Down, neighbours: Neighbours::default() }
    }

    /// Moves packets for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        loop {
            let next = self.turn();
            self.wait(next).await;
        }
    }

    fn turn(&mut self) -> Next {
        self.follow_link();
        let Runner { inner, device, nic, neighbours, .. } = self;
        let next = inner.with(|state| {
            let time = now();
            let mut batch_is_full = true;
            for _ in 0..BATCH {
                let received =
                    state.interface.poll_ingress_single(time, device, &mut state.sockets);
                if let PollIngressSingleResult::None = received {
                    batch_is_full = false;
                    break;
                }
                // A listener whose socket got a connection needs another socket before the next
                // frame.
                state.update_listeners(&inner.config);
            }
            state.report_refused();
            if state.addresses.follow_dhcp(&mut state.sockets) {
                state.apply_addresses(nic.hardware_address());
                inner.changed.wake_all();
            }
            let mut sent = false;
            while let PollResult::SocketStateChanged =
                state.interface.poll_egress(time, device, &mut state.sockets)
            {
                sent = true;
            }
            state.interface.poll_maintenance(time);
            let has_room = device.transmit(time).is_some();
            let (discarded, waiting) = state.update_ports(has_room);
            inner.count(|statistics| statistics.unanswered_neighbours += discarded);
            neighbours.update(&state.waiting_neighbours());
            if has_room {
                while let Some(neighbour) = neighbours.next()
                    && let Some(token) = device.transmit(time)
                {
                    if let Ok(source) = state.source(neighbour) {
                        ask(token, nic.hardware_address(), source, neighbour);
                    }
                }
            }
            let asked = neighbours.due().filter(|_| has_room);
            let deadlines = [state.reap(), state.addresses.unconfirmed, waiting, asked];
            state.update_listeners(&inner.config);
            let delay = match state.interface.poll_delay(time, &state.sockets) {
                // Without room to transmit, only the interface can end the wait.
                Some(Delay::ZERO) if !has_room => None,
                Some(Delay::ZERO) if !sent => Some(RETRY_DELAY),
                delay => delay,
            };
            if batch_is_full || delay == Some(Delay::ZERO) {
                return Next::Soon;
            }
            let due =
                delay.map(|delay| Instant::now() + Duration::from_micros(delay.total_micros()));
            Next::Wait(deadlines.into_iter().chain([due]).flatten().min())
        });
        nic.flush();
        next
    }

    /// Reinitialises the interface when the link has come up: the device's capabilities and the
    /// network may have changed.
    fn follow_link(&mut self) {
        let link = self.nic.link();
        if link == self.link {
            return;
        }
        self.link = link;
        if link == Link::Down {
            log::info!("net: the link is down");
            return;
        }
        let Runner { inner, device, nic, .. } = self;
        let mac = nic.hardware_address();
        inner.with(|state| {
            let seed = inner.config.seed ^ Instant::now().as_ticks();
            state.replace_interface(interface(device, mac, seed), device.capabilities().ip_mtu());
            // The addresses stay until the DHCP server assigns others.
            state.addresses.restart_dhcp(&mut state.sockets);
            state.addresses.apply(&mut state.interface, mac);
        });
        log::info!("net: the link is up");
    }

    async fn wait(&self, next: Next) {
        let Runner { inner, nic, .. } = self;
        let mut slept = false;
        let woken = poll_fn(|cx| {
            if core::mem::replace(&mut slept, true) || inner.take_work() {
                inner.take_work();
                return Poll::Ready(());
            }
            match next {
                Next::Soon => cx.waker().wake_by_ref(),
                Next::Wait(_) => {
                    inner.set_runner(cx.waker());
                    nic.register(cx.waker());
                }
            }
            Poll::Pending
        });
        if let Next::Wait(Some(due)) = next {
            let _ = select(woken, pin!(Timer::at(due))).await;
        } else {
            woken.await;
        }
    }
}
