//! A cable between two interfaces, with the faults of networks.

use super::{LIMIT, RxToken, TxToken};
use embassy_time::{Duration, with_timeout};
use futures_executor::LocalPool;
use futures_util::task::LocalSpawnExt;
use netfront::stack::{Config, Ipv4, Ipv4Cidr, Ipv6Cidr, Stack};
use netfront::{Link, Nic};
use smoltcp::phy::{Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::task::Waker;

pub const LEFT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const RIGHT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const LEFT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
pub const RIGHT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// The faults of a cable: each hits one of this many frames, or none if it is 0. The frame is lost,
/// sent twice, sent again after the next frame, sent only after the next frame, or changed in a
/// byte.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub lose: usize,
    pub double: usize,
    pub repeat: usize,
    pub swap: usize,
    pub spoil: usize,
}

#[derive(Default)]
struct State {
    /// Frames on their queue to each end.
    queues: [RefCell<VecDeque<Vec<u8>>>; 2],
    wakers: [RefCell<Option<Waker>>; 2],
    /// A frame to be sent after the next one.
    held: [RefCell<Option<Vec<u8>>>; 2],
    frames: Cell<usize>,
    faults: Cell<usize>,
    looks: Cell<usize>,
    unplugged: Cell<bool>,
    generation: Cell<u32>,
}

/// A cable with an interface at each end.
#[derive(Clone, Default)]
pub struct FakeCable(Rc<State>);

impl FakeCable {
    pub fn unplug(&self) {
        self.0.unplugged.set(true);
        self.wake();
    }

    pub fn plug(&self) {
        self.0.unplugged.set(false);
        self.0.generation.set(self.0.generation.get() + 1);
        self.wake();
    }

    /// How many faults there were.
    pub fn faults(&self) -> usize {
        self.0.faults.get()
    }

    /// How often a stack has registered for frames.
    pub fn looks(&self) -> usize {
        self.0.looks.get()
    }

    fn wake(&self) {
        for waker in &self.0.wakers {
            if let Some(waker) = waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

/// The interface at one end of a cable.
#[derive(Clone)]
pub struct FakeNic {
    cable: FakeCable,
    side: usize,
    faults: Faults,
}

impl FakeNic {
    fn token(&self) -> TxToken<'_> {
        TxToken(Box::new(|frame| self.put(frame)))
    }

    fn put(&self, mut frame: Vec<u8>) {
        let state = &self.cable.0;
        let number = state.frames.get() + 1;
        state.frames.set(number);
        let hit = |each: usize| {
            let hit = each > 0 && number.is_multiple_of(each);
            state.faults.set(state.faults.get() + usize::from(hit));
            hit
        };
        let other = 1 - self.side;
        let mut queue = state.queues[other].borrow_mut();
        if state.unplugged.get() || hit(self.faults.lose) {
            return;
        }
        if hit(self.faults.spoil) {
            let last = frame.len() - 1;
            frame[last] ^= 0x10;
        }
        if hit(self.faults.swap) && state.held[other].borrow().is_none() {
            *state.held[other].borrow_mut() = Some(frame);
            return;
        }
        if hit(self.faults.double) {
            queue.push_back(frame.clone());
        }
        let repeated = hit(self.faults.repeat).then(|| frame.clone());
        queue.push_back(frame);
        queue.extend(core::mem::replace(&mut *state.held[other].borrow_mut(), repeated));
        drop(queue);
        if let Some(waker) = state.wakers[other].borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Device for FakeNic {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken, TxToken<'_>)> {
        let frame = self.cable.0.queues[self.side].borrow_mut().pop_front()?;
        Some((RxToken(frame), self.token()))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        (!self.cable.0.unplugged.get()).then(|| self.token())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl Nic for FakeNic {
    fn hardware_address(&self) -> EthernetAddress {
        EthernetAddress([2, 0, 0, 0, 0, self.side as u8 + 1])
    }

    fn link(&self) -> Link {
        let state = &self.cable.0;
        if state.unplugged.get() { Link::Down } else { Link::Up(state.generation.get()) }
    }

    fn register(&self, waker: &Waker) {
        let state = &self.cable.0;
        state.looks.set(state.looks.get() + 1);
        *state.wakers[self.side].borrow_mut() = Some(waker.clone());
        if !state.queues[self.side].borrow().is_empty() {
            waker.wake_by_ref();
        }
    }

    fn flush(&self) {}
}

/// Runs a test with a stack at either end of a cable.
pub fn with_stacks<F: Future<Output = ()>>(
    faults: Faults,
    test: impl FnOnce(Stack, Stack, FakeCable) -> F,
) {
    let mut pool = LocalPool::new();
    let cable = FakeCable::default();
    let [left, right] = [(0, LEFT, LEFT_V6), (1, RIGHT, RIGHT_V6)].map(|(side, v4, v6)| {
        let config = Config {
            ipv4: Ipv4::Static { address: Ipv4Cidr::new(v4, 24), gateway: None },
            ipv6: Some((Ipv6Cidr::new(v6, 64), None)),
            connect_within: Duration::from_secs(5),
            seed: side as u64 + 1,
            ..Config::default()
        };
        let end = FakeNic { cable: cable.clone(), side, faults };
        let (stack, runner) = Stack::new(end.clone(), end, config);
        pool.spawner()
            .spawn_local(async move {
                runner.run().await;
            })
            .unwrap();
        stack
    });
    let running = test(left, right, cable);
    pool.run_until(async { with_timeout(LIMIT, running).await.expect("the test takes too long") });
}
