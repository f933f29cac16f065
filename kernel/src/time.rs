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

/// Nanoseconds per tick.
const TICK: u64 = 1_000_000_000 / TICK_HZ;

/// The shortest time between two wake-ups of all tasks, in ticks.
const CLEARING: u64 = 10 * TICK_HZ;

struct XenTime(Mutex<Timers>);

time_driver_impl!(static DRIVER: XenTime = XenTime(Mutex::new(Timers::new())));

/// Xen's clock, and its nanoseconds at the start of the kernel.
static CLOCK: Once<OneCpu<(&'static Clock, u64)>> = Once::new();

/// Whether Xen's timer has fired.
static FIRED: AtomicBool = AtomicBool::new(false);

/// Starts the time at 0. `started` is the clock's time at the start of the kernel.
pub fn start(clock: &'static Clock, started: u64) {
    CLOCK.call_once(|| OneCpu::new((clock, started)));
}

/// The time since the kernel started, except the time during which the domain was saved. 0 before
/// [`start`].
pub fn uptime() -> Duration {
    Duration::from_nanos(nanoseconds())
}

/// The wall clock: the time since the Unix epoch, as the host has it, or as
/// [`System::set_wall_clock`](crate::System::set_wall_clock) has corrected it. `None` if Xen keeps
/// changing its numbers while they are read, and before the clock is started.
pub fn wall_clock() -> Option<Duration> {
    CLOCK.get()?.get().0.wall_clock_now().ok()
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

/// The handler of the timer's events.
#[derive(Debug)]
pub struct TimerEvents;

impl EventHandler for TimerEvents {
    fn raise(&self) {
        FIRED.store(true, Ordering::Relaxed);
    }
}

/// Called in each turn of the executor. If Xen's timer has fired, wakes the tasks that are due
/// and returns true. Sometimes wakes all tasks: see [`crate::timers`].
pub fn expire() -> bool {
    let swept = DRIVER.0.lock().sweep();
    swept.into_iter().flatten().for_each(Waker::wake);
    if !FIRED.swap(false, Ordering::Relaxed) {
        return false;
    }
    let now = nanoseconds() / TICK;
    let all = DRIVER.0.lock().clear(now, CLEARING);
    all.into_iter().flatten().for_each(Waker::wake);
    // A function, so that the lock is free while a waker runs. The loop ends because tasks
    // schedule again only when they are polled.
    let pop = || DRIVER.0.lock().pop(now);
    while let Some(waker) = pop() {
        waker.wake();
    }
    true
}

/// The time of the next task, in nanoseconds since the kernel started.
pub fn next_deadline() -> Option<u64> {
    DRIVER.0.lock().next().map(|tick| tick.saturating_mul(TICK))
}

/// The number of pending timers.
pub fn waiting() -> usize {
    DRIVER.0.lock().waiting()
}
