//! The future that moves packets.

use super::state::{Inner, interface, now};
use crate::{Link, Nic};
use alloc::rc::Rc;
use core::convert::Infallible;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use embassy_time::{Duration, Instant, Timer};
use futures_util::future::{Either, select};
use smoltcp::iface::{PollIngressSingleResult, PollResult};
use smoltcp::phy::Device;

/// Frames that are taken in before others have a turn.
const BATCH: usize = 64;

/// How soon there is another look at something that is due and cannot be done.
const STUCK: Duration = Duration::from_millis(10);

/// The engine of a [`Stack`](super::Stack); see [`run`](Runner::run).
pub struct Runner<D, N> {
    inner: Rc<Inner>,
    device: D,
    nic: N,
    link: Link,
}

/// When to look again.
enum Next {
    /// At once, after others had a turn.
    Soon,
    /// When something happens, or then.
    Wait(Option<Instant>),
}

impl<D: Device, N: Nic> Runner<D, N> {
    pub(super) fn new(inner: Rc<Inner>, device: D, nic: N) -> Self {
        Runner { inner, device, nic, link: Link::Down }
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
        let Runner { inner, device, nic, .. } = self;
        let (mut soon, mut reaped) = (false, None);
        let delay = inner.with(|state| {
            let time = now();
            for count in 0.. {
                if count == BATCH {
                    soon = true;
                    break;
                }
                let done = state.interface.poll_ingress_single(time, device, &mut state.sockets);
                if let PollIngressSingleResult::None = done {
                    break;
                }
                // A connection that came in needs another socket to listen before the next one comes.
                for listener in state.listeners() {
                    listener.attend(inner, state);
                }
            }
            let mac = nic.hardware_address();
            if state.follow_dhcp(mac) {
                inner.changed.wake_all();
            }
            let mut sent = false;
            while let PollResult::SocketStateChanged =
                state.interface.poll_egress(time, device, &mut state.sockets)
            {
                sent = true;
            }
            state.interface.poll_maintenance(time);
            reaped = [state.reap(), state.unconfirmed].into_iter().flatten().min();
            for listener in state.listeners() {
                listener.attend(inner, state);
            }
            let delay = state.interface.poll_delay(time, &state.sockets);
            // What cannot be sent for lack of room waits for the interface alone.
            match delay {
                Some(smoltcp::time::Duration::ZERO) if device.transmit(time).is_none() => None,
                Some(smoltcp::time::Duration::ZERO) if !sent => {
                    Some(smoltcp::time::Duration::from_micros(STUCK.as_micros()))
                }
                delay => delay,
            }
        });
        nic.flush();
        if soon || delay == Some(smoltcp::time::Duration::ZERO) {
            return Next::Soon;
        }
        let due = delay.map(|delay| Instant::now() + Duration::from_micros(delay.total_micros()));
        Next::Wait([due, reaped].into_iter().flatten().min())
    }

    /// Begins anew with a link that has come up again: what it can do may be different, and who is there.
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
        let address = nic.hardware_address();
        inner.with(|state| {
            // Addresses stay until the DHCP server has others.
            let seed = inner.config.seed ^ Instant::now().as_ticks();
            state.interface = interface(device, address, seed);
            state.restart_dhcp();
            state.configure(address);
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
        match next {
            Next::Wait(Some(due)) => match select(woken, pin!(Timer::at(due))).await {
                Either::Left(_) | Either::Right(_) => {}
            },
            _ => woken.await,
        }
    }
}
