//! Time: Xen's system time computed from the TSC, the wall clock, and the timer that fires once.
//!
//! Xen shows how to compute the time in the shared info page, with a version number that is odd
//! while it writes. Reading the clock makes no hypercall.

use crate::abi::xen::{SharedInfo, VcpuInfo, VcpuTimeInfo};
use crate::hypercall::{Hypervisor, Operations};
use crate::{Errno, Shared};
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::{AtomicU64, fence};
use core::time::Duration;
use zerocopy::IntoBytes;

const TIME: usize = offset_of!(VcpuInfo, time);
const VERSION: usize = TIME + offset_of!(VcpuTimeInfo, version);
const WALL: usize = offset_of!(SharedInfo, wc_version);

/// How often a reading is tried again that Xen wrote into. Writing takes far less.
const ATTEMPTS: usize = 1000;

const NANOS: u64 = 1_000_000_000;

/// How to compute the system time at a moment near the last update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeInfo(VcpuTimeInfo);

impl TimeInfo {
    /// Nanoseconds since the host's boot at the moment when the TSC stood at `tsc`. A TSC before the last
    /// update counts as that update.
    pub fn system_time(&self, tsc: u64) -> u64 {
        let ticks = tsc.saturating_sub(self.0.tsc_timestamp);
        let shift = u32::from(self.0.tsc_shift.unsigned_abs());
        let ticks = if self.0.tsc_shift < 0 {
            ticks.checked_shr(shift).unwrap_or(0)
        } else {
            ticks.checked_shl(shift).unwrap_or(0)
        };
        let nanos = (u128::from(ticks) * u128::from(self.0.tsc_to_system_mul)) >> 32;
        self.0.system_time.saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Ticks of the TSC in a second.
    pub fn frequency(&self) -> u64 {
        let Some(shifted) = (u128::from(NANOS) << 32).checked_div(self.0.tsc_to_system_mul.into())
        else {
            return 0;
        };
        let shift = u32::from(self.0.tsc_shift.unsigned_abs());
        let frequency = if self.0.tsc_shift < 0 {
            shifted.checked_shl(shift).unwrap_or(0)
        } else {
            shifted.checked_shr(shift).unwrap_or(0)
        };
        u64::try_from(frequency).unwrap_or(u64::MAX)
    }
}

/// The first virtual CPU's clock.
#[derive(Debug)]
pub struct Clock {
    info: Shared<'static>,
    /// What is added to Xen's system time, wrapping: not zero after a restoration.
    offset: AtomicU64,
    /// The latest time given out: time never goes back.
    latest: AtomicU64,
}

impl Clock {
    /// The clock in the shared info page.
    pub const fn new(shared_info: Shared<'static>) -> Self {
        Clock { info: shared_info, offset: AtomicU64::new(0), latest: AtomicU64::new(0) }
    }

    /// Nanoseconds of the domain's own time now, never less than before: Xen's system time, less what
    /// the domain was saved for.
    #[cfg(target_arch = "x86_64")]
    pub fn now(&self) -> u64 {
        self.now_by(read_tsc)
    }

    /// [`now`](Clock::now) by any TSC. If Xen's numbers do not hold still, the latest time given out.
    pub fn now_by(&self, tsc: impl Fn() -> u64) -> u64 {
        let Ok(info) = self.time_info() else { return self.latest.load(Relaxed) };
        let time = info.system_time(tsc()).wrapping_add(self.offset.load(Relaxed));
        self.latest.fetch_max(time, Relaxed).max(time)
    }

    /// Goes on in a restored domain, whose host has another system time: where the clock stood last when
    /// it was [read](Clock::now).
    #[cfg(target_arch = "x86_64")]
    pub fn resume(&self) {
        self.resume_by(read_tsc);
    }

    /// [`resume`](Clock::resume) by any TSC.
    pub fn resume_by(&self, tsc: impl Fn() -> u64) {
        if let Ok(info) = self.time_info() {
            let last = self.latest.load(Relaxed);
            self.offset.store(last.wrapping_sub(info.system_time(tsc())), Relaxed);
        }
    }

    /// Xen's system time, which the [`Timer`] knows, at a time of this clock. Not below zero.
    pub fn system_time_of(&self, time: u64) -> u64 {
        let offset = self.offset.load(Relaxed).cast_signed();
        if offset < 0 {
            time.saturating_add(offset.unsigned_abs())
        } else {
            time.saturating_sub(offset.unsigned_abs())
        }
    }

    /// The wall clock now, since the Unix epoch. [`Errno::EAGAIN`] if Xen's numbers do not hold still.
    #[cfg(target_arch = "x86_64")]
    pub fn wall_clock_now(&self) -> Result<Duration, Errno> {
        self.wall_clock(self.time_info()?.system_time(read_tsc()))
    }

    /// A consistent reading of Xen's numbers. [`Errno::EAGAIN`] if they do not hold still.
    pub fn time_info(&self) -> Result<TimeInfo, Errno> {
        let mut info = VcpuTimeInfo::default();
        self.versioned(VERSION, || self.info.read(TIME, info.as_mut_bytes()))?;
        Ok(TimeInfo(info))
    }

    /// The wall clock when the system time was zero, since the Unix epoch. [`Errno::EAGAIN`] if it does not
    /// hold still.
    pub fn boot_wall_clock(&self) -> Result<Duration, Errno> {
        let mut words = [0u32; 4];
        self.versioned(WALL, || self.info.read(WALL, words.as_mut_bytes()))?;
        let [_, low, nanos, high] = words;
        let seconds = Duration::from_secs(u64::from(high) << 32 | u64::from(low));
        Ok(seconds.saturating_add(Duration::from_nanos(nanos.into())))
    }

    /// The wall clock at a system time of Xen's.
    pub fn wall_clock(&self, system_time: u64) -> Result<Duration, Errno> {
        Ok(self.boot_wall_clock()?.saturating_add(Duration::from_nanos(system_time)))
    }

    fn versioned(&self, version: usize, mut read: impl FnMut()) -> Result<(), Errno> {
        for _ in 0..ATTEMPTS {
            let before = self.info.load_u32(version, Acquire);
            read();
            fence(Acquire);
            if before.is_multiple_of(2) && self.info.load_u32(version, Relaxed) == before {
                return Ok(());
            }
            core::hint::spin_loop();
        }
        Err(Errno::EAGAIN)
    }
}

/// The TSC, not read before what precedes it in the program.
#[cfg(target_arch = "x86_64")]
pub fn read_tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the instructions touch nothing but the registers named.
    unsafe {
        core::arch::asm!(
            "lfence",
            "rdtsc",
            out("eax") low,
            out("edx") high,
            options(nomem, nostack, preserves_flags),
        );
    }
    u64::from(high) << 32 | u64::from(low)
}

/// The first virtual CPU's timer, which raises `VIRQ_TIMER`.
#[derive(Debug)]
pub struct Timer<H> {
    hypervisor: H,
}

impl<H: Hypervisor> Timer<H> {
    /// Takes the timer over, and stops the CPU's own ticking.
    pub fn new(hypervisor: H) -> Result<Self, Errno> {
        let timer = Timer { hypervisor };
        timer.resume()?;
        Ok(timer)
    }

    /// Does the same in a restored domain.
    pub fn resume(&self) -> Result<(), Errno> {
        self.hypervisor.stop_periodic_timer(0)
    }

    /// Fires once at a system time in nanoseconds, at once if that is past, in place of a time set
    /// before.
    pub fn set(&self, system_time: u64) -> Result<(), Errno> {
        // Xen's own time is signed, and it reads the largest values as "never" or as the past.
        self.hypervisor.set_singleshot_timer(0, system_time.min(i64::MAX as u64 / 2))
    }

    /// Does not fire.
    pub fn stop(&self) -> Result<(), Errno> {
        self.hypervisor.stop_singleshot_timer(0)
    }
}

#[cfg(test)]
mod tests;
