//! How long booting took, in stages.
//!
//! `pvh.S` reads the TSC at the very entry; each stage is marked once, with the TSC as well, because
//! the first ones are over before there is a clock.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// A stage that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The page tables are the kernel's own, and memory can be allocated.
    Memory,
    /// Events, grants, the clock and the console work.
    Machine,
    /// Xenstore has answered.
    Xenstore,
    /// The device for sockets is connected.
    Device,
    /// An app listens.
    Listening,
}

const STAGES: [(Stage, &str); 5] = [
    (Stage::Memory, "memory"),
    (Stage::Machine, "machine"),
    (Stage::Xenstore, "xenstore"),
    (Stage::Device, "device"),
    (Stage::Listening, "listening"),
];

/// The TSC at the end of each stage; 0 for one that is not over.
static MARKS: [AtomicU64; STAGES.len()] = [const { AtomicU64::new(0) }; STAGES.len()];

/// A stage is over, for the first time; later ones do not count. The last one logs all of them.
pub fn mark(stage: Stage) {
    let now = tsc().max(1);
    let first = MARKS[stage as usize]
        .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
        .is_ok();
    if first && stage == Stage::Listening {
        let marks = MARKS.each_ref().map(|mark| mark.load(Ordering::Relaxed));
        if let Some((entry, frequency)) = start() {
            log::debug!("boot: {}", Times { entry, frequency, marks });
        }
    }
}

/// What is known of a boot: TSCs, and how often that ticks in a second.
struct Times {
    entry: u64,
    frequency: u64,
    marks: [u64; STAGES.len()],
}

impl Times {
    fn micros(&self, from: u64, to: u64) -> u128 {
        let ticks = u128::from(to.saturating_sub(from));
        (ticks * 1_000_000).checked_div(self.frequency.into()).unwrap_or(0)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = self.entry;
        for ((_, name), mark) in STAGES.iter().zip(self.marks).filter(|(_, mark)| *mark > 0) {
            write!(f, "{name} {} us, ", self.micros(before, mark))?;
            before = mark;
        }
        write!(f, "{} us since the entry", self.micros(self.entry, before))
    }
}

#[cfg(target_os = "none")]
fn tsc() -> u64 {
    xen::clock::read_tsc()
}

/// The TSC at the entry, and its ticks in a second; `None` before there is a clock.
#[cfg(target_os = "none")]
fn start() -> Option<(u64, u64)> {
    let frequency = crate::machine::guest()?.clock.time_info().ok()?.frequency();
    unsafe extern "C" {
        static entry_tsc: u64;
    }
    // SAFETY: pvh.S wrote it before any Rust ran, and nobody writes to it any more.
    Some((unsafe { entry_tsc }, frequency))
}

#[cfg(not(target_os = "none"))]
fn tsc() -> u64 {
    0
}

/// Nothing boots on a host.
#[cfg(not(target_os = "none"))]
fn start() -> Option<(u64, u64)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn each_stage_is_told_by_what_it_took_itself() {
        let times = Times { entry: 1000, frequency: 2_000_000, marks: [1200, 2200, 0, 4200, 4202] };
        assert_eq!(
            times.to_string(),
            "memory 100 us, machine 500 us, device 1000 us, listening 1 us, 1601 us since the entry"
        );
    }

    #[test]
    fn a_clock_that_does_not_tick_divides_nothing() {
        let times = Times { entry: 9, frequency: 0, marks: [1, 2, 3, 4, 5] };
        assert!(times.to_string().ends_with("0 us since the entry"));
    }
}
