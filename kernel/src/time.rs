//! The driver of `embassy-time`, over Xen's clock and timer.
//!
//! Its ticks are microseconds since the kernel started. The executor's loop wakes tasks
//! ([`expire`]) after Xen's timer has fired; there is no periodic tick.

use crate::cpu::OneCpu;
use crate::timers::Timers;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;
use core::time::Duration;
use embassy_time_driver::{Driver, TICK_HZ, time_driver_impl};
use spin::{Mutex, Once};
use xen::clock::Clock;
use xen::event::EventHandler;

/// Nanoseconds of a tick.
const TICK: u64 = 1_000_000_000 / TICK_HZ;

/// How often all tasks are woken at most when the time of one has come, in ticks.
const CLEARING: u64 = 10 * TICK_HZ;

struct XenTime(Mutex<Timers>);

time_driver_impl!(static DRIVER: XenTime = XenTime(Mutex::new(Timers::new())));

/// Xen's clock, and its nanoseconds when the kernel started.
static CLOCK: Once<OneCpu<(&'static Clock, u64)>> = Once::new();

/// Whether Xen's timer has fired.
static FIRED: AtomicBool = AtomicBool::new(false);

/// Starts the time at 0. `started` is what the clock said when the kernel started.
pub fn start(clock: &'static Clock, started: u64) {
    CLOCK.call_once(|| OneCpu::new((clock, started)));
}

/// The time since the kernel started, without the time for which the domain was saved. 0 before
/// [`start`].
pub fn uptime() -> Duration {
    Duration::from_nanos(nanoseconds())
}

fn nanoseconds() -> u64 {
    let Some((clock, started)) = CLOCK.get().map(OneCpu::get) else { return 0 };
    clock.now().saturating_sub(*started)
}

impl Driver for XenTime {
    fn now(&self) -> u64 {
        nanoseconds() / TICK
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        // The executor's loop sets Xen's timer before it sleeps.
        self.0.lock().schedule(at, waker);
    }
}

/// Receives the timer's events.
#[derive(Debug)]
pub struct TimerEvents;

impl EventHandler for TimerEvents {
    fn raise(&self) {
        FIRED.store(true, Ordering::Relaxed);
    }
}

/// If Xen's timer has fired, wakes the tasks whose time has come, and returns true. Wakes all
/// tasks if there are suspiciously many (see [`Timers`]). To be called in each turn of the
/// executor.
pub fn expire() -> bool {
    let crowd = DRIVER.0.lock().sweep();
    crowd.into_iter().flatten().for_each(Waker::wake);
    if !FIRED.swap(false, Ordering::Relaxed) {
        return false;
    }
    let now = nanoseconds() / TICK;
    let all = DRIVER.0.lock().clear(now, CLEARING);
    all.into_iter().flatten().for_each(Waker::wake);
    // A function, so that the lock is not held while a waker runs. Tasks come back only after
    // they were polled, so this ends.
    let pop = || DRIVER.0.lock().pop(now);
    while let Some(waker) = pop() {
        waker.wake();
    }
    true
}

/// When the next task is to be woken, in nanoseconds since the kernel's start.
pub fn next_deadline() -> Option<u64> {
    DRIVER.0.lock().next().map(|tick| tick.saturating_mul(TICK))
}

/// The number of tasks that wait for their time.
pub fn waiting() -> usize {
    DRIVER.0.lock().waiting()
}
