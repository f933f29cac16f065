//! `vcpu.h`: the timers of a virtual CPU.

/// Stops the periodic timer.
pub const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
/// Sets the one-shot timer.
pub const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
/// Stops the one-shot timer.
pub const VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9;

structures! {
    /// Argument of [`VCPUOP_SET_SINGLESHOT_TIMER`] (`struct vcpu_set_singleshot_timer`).
    SetSingleshotTimer: 16 {
        /// The system time, in nanoseconds, at which to fire.
        timeout_abs_ns: u64 = 0,
        /// Not used here.
        flags: u32 = 8,
    }
}
