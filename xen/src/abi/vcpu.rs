//! `vcpu.h`: a virtual CPU's timers.

/// Stops the timer that ticks by itself.
pub const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
/// Sets the timer that fires once.
pub const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
/// Stops it.
pub const VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9;

structures! {
    /// Argument of [`VCPUOP_SET_SINGLESHOT_TIMER`] (`struct vcpu_set_singleshot_timer`).
    SetSingleshotTimer: 16 {
        /// The system time, in nanoseconds, at which to fire.
        timeout_abs_ns: u64 = 0,
        /// None is used here.
        flags: u32 = 8,
    }
}
