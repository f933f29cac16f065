//! The timers of a thread, on one timer file. The clock is read only when a timer is set or has
//! expired.

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Waker;
use std::time::{Duration, Instant};

/// A timer's deadline and number.
pub(super) type Key = (Instant, u64);

/// The pending timers.
pub(super) struct Timers {
    file: OwnedFd,
    pending: BTreeMap<Key, Waker>,
    next: u64,
    /// When the file expires.
    set: Option<Instant>,
}

impl Timers {
    /// No timers.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let file = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Timers { file, pending: BTreeMap::new(), next: 0, set: None })
    }

    /// The file, which becomes readable when a timer expires.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Adds a timer, which wakes nobody yet.
    pub(super) fn add(&mut self, deadline: Instant) -> io::Result<Key> {
        let key = (deadline, self.next);
        self.next += 1;
        self.pending.insert(key, Waker::noop().clone());
        self.set(Instant::now())?;
        Ok(key)
    }

    /// Whether a timer has not expired. If so, it will wake this waker.
    pub(super) fn is_pending(&mut self, key: Key, waker: &Waker) -> bool {
        self.pending.get_mut(&key).map(|former| former.clone_from(waker)).is_some()
    }

    /// Removes a timer. The file may expire once without need.
    pub(super) fn remove(&mut self, key: Key) {
        self.pending.remove(&key);
    }

    /// Removes the expired timers and returns their wakers.
    pub(super) fn expire(&mut self, now: Instant) -> io::Result<Vec<Waker>> {
        let later = self.pending.split_off(&(now, u64::MAX));
        let expired = std::mem::replace(&mut self.pending, later);
        self.set = None;
        self.set(now)?;
        Ok(expired.into_values().collect())
    }

    /// Makes the file expire at the earliest deadline, unless it expires earlier.
    fn set(&mut self, now: Instant) -> io::Result<()> {
        let Some((&(deadline, _), _)) = self.pending.first_key_value() else { return Ok(()) };
        if self.set.is_some_and(|set| set <= deadline) {
            return Ok(());
        }
        // Zero would switch the timer off.
        let left = deadline.saturating_duration_since(now).max(Duration::from_nanos(1));
        let it_value = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let time = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.file, TimerfdTimerFlags::empty(), &time)?;
        self.set = Some(deadline);
        Ok(())
    }
}
