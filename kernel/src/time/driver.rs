//! The driver behind `embassy-time`, over Xen's clock and timer.
//!
//! Its ticks are microseconds since the kernel started. Tasks are woken by the executor's loop
//! ([`expire`]) after Xen's timer has fired; there is no periodic tick.

use super::timers::Timers;
use crate::machine;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;
use embassy_time_driver::{Driver, TICK_HZ, time_driver_impl};
use spin::Mutex;

/// Nanoseconds of a tick.
const TICK: u64 = 1_000_000_000 / TICK_HZ;

/// How often all tasks are woken at most when the time of one has come, in ticks.
const CLEARING: u64 = 10 * TICK_HZ;

struct XenTime(Mutex<Timers>);

time_driver_impl!(static DRIVER: XenTime = XenTime(Mutex::new(Timers::new())));

/// Whether Xen's timer has fired.
static FIRED: AtomicBool = AtomicBool::new(false);

impl Driver for XenTime {
    fn now(&self) -> u64 {
        machine::guest().map_or(0, |guest| guest.uptime().as_nanos() as u64 / TICK)
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        // The executor's loop sets Xen's timer before it sleeps.
        self.0.lock().schedule(at, waker);
    }
}

/// Xen's timer has fired.
pub fn note_timer() {
    FIRED.store(true, Ordering::Relaxed);
}

/// If Xen's timer has fired, wakes the tasks whose time has come (and all, if there are suspiciously
/// many, see [`Timers`]); to be called in each turn of the executor. `now` is in nanoseconds since the
/// kernel's start. Returns whether it has fired.
pub fn expire(now: impl Fn() -> u64) -> bool {
    let crowd = DRIVER.0.lock().sweep();
    crowd.into_iter().flatten().for_each(Waker::wake);
    if !FIRED.swap(false, Ordering::Relaxed) {
        return false;
    }
    let now = now() / TICK;
    let all = DRIVER.0.lock().clear(now, CLEARING);
    all.into_iter().flatten().for_each(Waker::wake);
    // A function, so that the lock is not held while a waker runs. Tasks come back only after they were
    // polled, so this ends.
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
