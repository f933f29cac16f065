//! How long crash reports wait for the console's reader: an end that comes whatever the clock does.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Altogether, in nanoseconds.
pub const TIME: u64 = 5_000_000_000;

/// How often there is a look for room meanwhile, in nanoseconds. An event ends a nap sooner.
pub const NAP: u64 = 10_000_000;

/// The most naps, for the case that the clock stands still and naps end at once.
pub const NAPS: u32 = 10_000;

/// Patience, which begins when it is asked for first. A crash within a crash report does not
/// begin anew.
#[derive(Debug)]
pub struct Patience {
    deadline: AtomicU64,
    naps: AtomicU32,
}

impl Default for Patience {
    fn default() -> Self {
        Self::new()
    }
}

impl Patience {
    /// All of it.
    pub const fn new() -> Patience {
        Patience { deadline: AtomicU64::new(u64::MAX), naps: AtomicU32::new(NAPS) }
    }

    /// Whether there is still some at this time, in nanoseconds; then until when to take a nap.
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
    fn patience_ends_with_the_time() {
        let (patience, mut now) = (Patience::new(), 5);
        while let Some(end) = patience.nap(now) {
            assert_eq!(end, now + NAP);
            now = end;
        }
        assert_eq!(now, 5 + TIME);
        assert_eq!(patience.nap(now), None);
    }

    #[test]
    fn patience_ends_when_the_clock_stands_still_or_goes_back_or_is_mad() {
        for clock in [|_| 7, |n: u64| 1 << (40 - n % 40), |_| 0, |_| u64::MAX] {
            let patience = Patience::new();
            let naps = (0..).take_while(|n| patience.nap(clock(*n)).is_some()).count();
            assert!(naps <= NAPS as usize, "{naps}");
        }
    }
}
