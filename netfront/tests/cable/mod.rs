//! A cable between two interfaces, with the faults that networks have.

use embassy_time::{Duration, with_timeout};
use futures_executor::LocalPool;
use futures_util::task::LocalSpawnExt;
use netfront::stack::{Config, Ipv4, Ipv4Cidr, Ipv6Cidr, Stack};
use netfront::{Link, Nic};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
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

/// No test takes longer, even on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Each of so many frames, or none: lost, sent twice, sent once more after the next one, sent only after the
/// next one, or with another byte.
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
    /// Frames on their way to either end.
    ways: [RefCell<VecDeque<Vec<u8>>>; 2],
    wakers: [RefCell<Option<Waker>>; 2],
    /// A frame that the next one overtakes.
    held: [RefCell<Option<Vec<u8>>>; 2],
    frames: Cell<usize>,
    faults: Cell<usize>,
    looks: Cell<usize>,
    unplugged: Cell<bool>,
    generation: Cell<u32>,
}

/// What a test does to the cable.
#[derive(Clone, Default)]
pub struct Cable(Rc<State>);

impl Cable {
    pub fn unplug(&self) {
        self.0.unplugged.set(true);
        self.wake();
    }

    pub fn plug(&self) {
        self.0.unplugged.set(false);
        self.0.generation.set(self.0.generation.get() + 1);
        self.wake();
    }

    /// How many frames came to harm.
    pub fn faults(&self) -> usize {
        self.0.faults.get()
    }

    /// How often a stack has looked for frames.
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

/// One end of the cable.
#[derive(Clone)]
pub struct End {
    cable: Cable,
    side: usize,
    faults: Faults,
}

impl End {
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
        let mut way = state.ways[other].borrow_mut();
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
            way.push_back(frame.clone());
        }
        let repeated = hit(self.faults.repeat).then(|| frame.clone());
        way.push_back(frame);
        way.extend(core::mem::replace(&mut *state.held[other].borrow_mut(), repeated));
        drop(way);
        if let Some(waker) = state.wakers[other].borrow_mut().take() {
            waker.wake();
        }
    }
}

pub struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub struct TxToken<'a>(&'a End);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.put(frame);
        result
    }
}

impl Device for End {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken, TxToken<'_>)> {
        let frame = self.cable.0.ways[self.side].borrow_mut().pop_front()?;
        Some((RxToken(frame), TxToken(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        (!self.cable.0.unplugged.get()).then_some(TxToken(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl Nic for End {
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
        if !state.ways[self.side].borrow().is_empty() {
            waker.wake_by_ref();
        }
    }

    fn flush(&self) {}
}

/// Runs a test with a stack at either end of a cable.
pub fn with_stacks<F: Future<Output = ()>>(
    faults: Faults,
    test: impl FnOnce(Stack, Stack, Cable) -> F,
) {
    let mut pool = LocalPool::new();
    let cable = Cable::default();
    let [left, right] = [(0, LEFT, LEFT_V6), (1, RIGHT, RIGHT_V6)].map(|(side, v4, v6)| {
        let config = Config {
            ipv4: Ipv4::Static { address: Ipv4Cidr::new(v4, 24), gateway: None },
            ipv6: Some((Ipv6Cidr::new(v6, 64), None)),
            connect_within: Duration::from_secs(5),
            seed: side as u64 + 1,
            ..Config::default()
        };
        let end = End { cable: cable.clone(), side, faults };
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
