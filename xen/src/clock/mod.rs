//! Time: Xen's system time computed from the TSC, the wall clock, and the timer that fires once.
//!
//! Xen publishes how to compute the time in the shared info page, with a version number that is odd
//! while it writes. Reading the clock makes no hypercall.

use crate::abi::xen::{SharedInfo, VcpuInfo, VcpuTimeInfo};
use crate::hypercall::{Hypervisor, Operations};
use crate::{Errno, Shared};
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::{AtomicI64, AtomicU64, fence};
use core::time::Duration;
use zerocopy::IntoBytes;

const TIME: usize = offset_of!(VcpuInfo, time);
const VERSION: usize = TIME + offset_of!(VcpuTimeInfo, version);
const WALL: usize = offset_of!(SharedInfo, wc_version);

/// How often a read is retried if Xen writes at the same time. Its writes take far less.
const ATTEMPTS: usize = 1000;

const NANOS: u64 = 1_000_000_000;

/// How to compute the system time at a moment near the last update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeInfo(VcpuTimeInfo);

impl TimeInfo {
    /// Nanoseconds since the host's boot when the TSC had this value. A TSC from before the last
    /// update counts as that of the update.
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

    /// Ticks of the TSC per second.
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
///
/// ```
/// use core::sync::atomic::Ordering::Relaxed;
/// use xen::{clock::Clock, testing::FakeXen};
///
/// let xen = FakeXen::new();
/// // Half a nanosecond per tick of the TSC, in `vcpu_time_info.tsc_to_system_mul`:
/// xen.shared_info.store_u32(32 + 24, 1 << 31, Relaxed);
/// let clock = Clock::new(xen.shared_info);
/// assert_eq!(clock.now_by(|| 5000), 2500);
/// ```
#[derive(Debug)]
pub struct Clock {
    info: Shared<'static>,
    /// Added to Xen's system time, wrapping. Not zero in a restored domain.
    offset: AtomicU64,
    /// The latest time returned: time never goes back.
    latest: AtomicU64,
    /// By how many nanoseconds the wall clock is ahead of Xen's.
    ahead: AtomicI64,
}

impl Clock {
    /// The clock in the shared info page.
    pub const fn new(shared_info: Shared<'static>) -> Self {
        Clock {
            info: shared_info,
            offset: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            ahead: AtomicI64::new(0),
        }
    }

    /// The domain's own time in nanoseconds, which never decreases: Xen's system time, without the
    /// time for which the domain was saved.
    #[cfg(target_arch = "x86_64")]
    pub fn now(&self) -> u64 {
        self.now_by(read_tsc)
    }

    /// [`now`](Clock::now) with any TSC. Returns the latest time again if Xen keeps changing
    /// the numbers.
    pub fn now_by(&self, tsc: impl Fn() -> u64) -> u64 {
        let Ok(info) = self.time_info() else { return self.latest.load(Relaxed) };
        let time = info.system_time(tsc()).wrapping_add(self.offset.load(Relaxed));
        self.latest.fetch_max(time, Relaxed).max(time)
    }

    /// Sets the clock in a restored domain, whose host has another system time, to the time that
    /// was [read](Clock::now) last.
    #[cfg(target_arch = "x86_64")]
    pub fn resume(&self) {
        self.resume_by(read_tsc);
    }

    /// [`resume`](Clock::resume) with any TSC.
    pub fn resume_by(&self, tsc: impl Fn() -> u64) {
        if let Ok(info) = self.time_info() {
            let last = self.latest.load(Relaxed);
            self.offset.store(last.wrapping_sub(info.system_time(tsc())), Relaxed);
        }
    }

    /// Converts a time of this clock to Xen's system time, which a [`Timer`] takes. At least zero.
    pub fn system_time_of(&self, time: u64) -> u64 {
        let offset = self.offset.load(Relaxed).cast_signed();
        if offset < 0 {
            time.saturating_add(offset.unsigned_abs())
        } else {
            time.saturating_sub(offset.unsigned_abs())
        }
    }

    /// The wall clock now, since the Unix epoch. [`Errno::EAGAIN`] if Xen keeps changing the
    /// numbers.
    #[cfg(target_arch = "x86_64")]
    pub fn wall_clock_now(&self) -> Result<Duration, Errno> {
        self.wall_clock(self.time_info()?.system_time(read_tsc()))
    }

    /// [Corrects](Clock::set_wall_clock) the wall clock: it is `time` now.
    #[cfg(target_arch = "x86_64")]
    pub fn set_wall_clock_now(&self, time: Duration) -> Result<(), Errno> {
        self.set_wall_clock(self.time_info()?.system_time(read_tsc()), time)
    }

    /// Reads Xen's numbers consistently. [`Errno::EAGAIN`] if Xen keeps changing them.
    pub fn time_info(&self) -> Result<TimeInfo, Errno> {
        let mut info = VcpuTimeInfo::default();
        self.versioned(VERSION, || self.info.read(TIME, info.as_mut_bytes()))?;
        Ok(TimeInfo(info))
    }

    /// The wall clock at one of Xen's system times, since the Unix epoch: Xen's, unless it was
    /// [corrected](Clock::set_wall_clock). [`Errno::EAGAIN`] if Xen keeps changing the numbers.
    pub fn wall_clock(&self, system_time: u64) -> Result<Duration, Errno> {
        let (host, ahead) = (self.host_wall_clock(system_time)?, self.ahead.load(Relaxed));
        let by = Duration::from_nanos(ahead.unsigned_abs());
        Ok(if ahead < 0 { host.saturating_sub(by) } else { host.saturating_add(by) })
    }

    /// Corrects the wall clock: it is `time` at this system time. The difference to Xen's stays
    /// the same from then on, also in a restored domain. [`Errno::EINVAL`] if it is more than 292
    /// years, otherwise errors as for [`wall_clock`](Clock::wall_clock).
    pub fn set_wall_clock(&self, system_time: u64, time: Duration) -> Result<(), Errno> {
        let [time, host] = [time, self.host_wall_clock(system_time)?]
            .map(|time| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX));
        let ahead = i64::try_from(time - host).map_err(|_| Errno::EINVAL)?;
        self.ahead.store(ahead, Relaxed);
        Ok(())
    }

    fn host_wall_clock(&self, system_time: u64) -> Result<Duration, Errno> {
        let mut words = [0u32; 4];
        self.versioned(WALL, || self.info.read(WALL, words.as_mut_bytes()))?;
        let [_, low, nanos, high] = words;
        let seconds = Duration::from_secs(u64::from(high) << 32 | u64::from(low));
        let at_boot = seconds.saturating_add(Duration::from_nanos(nanos.into()));
        Ok(at_boot.saturating_add(Duration::from_nanos(system_time)))
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

/// Reads the TSC, not before preceding instructions have completed.
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

/// The first virtual CPU's one-shot timer, which raises `VIRQ_TIMER`.
#[derive(Debug)]
pub struct Timer<H> {
    hypervisor: H,
}

impl<H: Hypervisor> Timer<H> {
    /// Takes the timer over, and stops the CPU's periodic timer.
    pub fn new(hypervisor: H) -> Result<Self, Errno> {
        let timer = Timer { hypervisor };
        timer.resume()?;
        Ok(timer)
    }

    /// Stops the periodic timer of a restored domain.
    pub fn resume(&self) -> Result<(), Errno> {
        self.hypervisor.stop_periodic_timer(0)
    }

    /// Sets the timer to one of Xen's system times in nanoseconds, in place of a former one. It
    /// fires at once if the time has passed.
    pub fn set(&self, system_time: u64) -> Result<(), Errno> {
        // Xen's time is signed, and the largest values mean "never" or the past.
        self.hypervisor.set_singleshot_timer(0, system_time.min(i64::MAX as u64 / 2))
    }

    /// Stops the timer.
    pub fn stop(&self) -> Result<(), Errno> {
        self.hypervisor.stop_singleshot_timer(0)
    }
}

#[cfg(test)]
mod tests;
