//! Limits how long crash reports wait for the console's reader, even if the clock is wrong.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The total time, in nanoseconds.
pub const TIME: u64 = 5_000_000_000;

/// The time between two looks for room, in nanoseconds. An event ends it earlier.
pub const NAP: u64 = 10_000_000;

/// The most naps, in case the clock stands still and naps end at once.
pub const NAPS: u32 = 10_000;

/// The limit. Its time begins with the first call, also for a second crash within a report.
#[derive(Debug)]
pub struct Patience {
    deadline: AtomicU64,
    naps: AtomicU32,
}

impl Patience {
    /// The full limit.
    pub const fn new() -> Patience {
        Patience { deadline: AtomicU64::new(u64::MAX), naps: AtomicU32::new(NAPS) }
    }

    /// The end of the next nap, if the limit is not reached at the time `now`, in nanoseconds.
    pub fn nap(&self, now: u64) -> Option<u64> {
        let deadline = now.saturating_add(TIME);
        let deadline = deadline.min(self.deadline.fetch_min(deadline, Ordering::Relaxed));
        let naps = self.naps.load(Ordering::Relaxed).checked_sub(1)?;
        self.naps.store(naps, Ordering::Relaxed);
        (now < deadline).then(|| now.saturating_add(NAP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_ends_with_the_time() {
        let (patience, mut now) = (Patience::new(), 5);
        while let Some(end) = patience.nap(now) {
            assert_eq!(end, now + NAP);
            now = end;
        }
        assert_eq!(now, 5 + TIME);
        assert_eq!(patience.nap(now), None);
    }

    #[test]
    fn the_limit_ends_whatever_the_clock_says() {
        for clock in [|_| 7, |n: u64| 1 << (40 - n % 40), |_| 0, |_| u64::MAX] {
            let patience = Patience::new();
            let naps = (0..).take_while(|n| patience.nap(clock(*n)).is_some()).count();
            assert!(naps <= NAPS as usize, "{naps}");
        }
    }
}
