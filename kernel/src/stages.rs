//! Measures the stages of the boot.
//!
//! `pvh.S` reads the TSC at the entry. The end of each stage is marked with the TSC as well,
//! because the first stages end before the clock works.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use xen::clock::read_tsc;

/// A stage of the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Page tables and allocators are set up.
    Memory,
    /// Events, grants, clock and console work.
    Machine,
    /// Xenstore has replied.
    Xenstore,
    /// A device with sockets is connected.
    Device,
    /// An app listens.
    Listening,
}

/// The names of the stages, in their order.
const NAMES: [&str; 5] = ["memory", "machine", "xenstore", "device", "listening"];

/// The TSC at the end of each stage, or 0.
static MARKS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// Marks the end of a stage. Returns true the first time; later calls have no effect.
pub fn mark(stage: Stage) -> bool {
    let now = read_tsc().max(1);
    let mark = &MARKS[stage as usize];
    mark.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// The times of the boot, in ticks of the TSC.
pub struct Times {
    entry: u64,
    frequency: u64,
    marks: [u64; NAMES.len()],
}

impl Times {
    /// The stages so far. `entry` is the TSC at the entry, `frequency` its ticks per second.
    pub fn new(entry: u64, frequency: u64) -> Times {
        Times { entry, frequency, marks: MARKS.each_ref().map(|mark| mark.load(Ordering::Relaxed)) }
    }

    fn micros(&self, from: u64, to: u64) -> u128 {
        let ticks = u128::from(to.saturating_sub(from));
        (ticks * 1_000_000).checked_div(self.frequency.into()).unwrap_or(0)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = self.entry;
        for (name, mark) in NAMES.iter().zip(self.marks).filter(|(_, mark)| *mark > 0) {
            write!(f, "{name} {} us, ", self.micros(before, mark))?;
            before = mark;
        }
        write!(f, "{} us since the entry", self.micros(self.entry, before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn each_stage_shows_its_own_duration() {
        let times = Times { entry: 1000, frequency: 2_000_000, marks: [1200, 2200, 0, 4200, 4202] };
        assert_eq!(
            times.to_string(),
            "memory 100 us, machine 500 us, device 1000 us, listening 1 us, 1601 us since the entry"
        );
    }

    #[test]
    fn a_frequency_of_zero_does_not_panic() {
        let times = Times { entry: 9, frequency: 0, marks: [1, 2, 3, 4, 5] };
        assert!(times.to_string().ends_with("0 us since the entry"));
    }
}
