//! `sched.h`: giving up the CPU, and ending the domain.

/// Ends or suspends the domain.
pub const SCHEDOP_SHUTDOWN: u32 = 2;
/// Sleeps until an event comes or a time; needs no interrupt.
pub const SCHEDOP_POLL: u32 = 3;

/// The domain is done.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// The domain wants to be started again.
pub const SHUTDOWN_REBOOT: u32 = 1;
/// The domain is ready to be saved.
pub const SHUTDOWN_SUSPEND: u32 = 2;
/// The domain found itself broken.
pub const SHUTDOWN_CRASH: u32 = 3;

structures! {
    /// Argument of [`SCHEDOP_SHUTDOWN`] (`struct sched_shutdown`).
    SchedShutdown: 4 {
        /// `SHUTDOWN_*`.
        reason: u32 = 0,
    }

    /// Argument of [`SCHEDOP_POLL`] (`struct sched_poll`).
    SchedPoll: 24 {
        /// The address of the ports' numbers, of which an event that is pending already ends the
        /// sleep.
        ports: u64 = 0,
        /// How many ports. With none of them, any port's event ends the sleep that is not pending
        /// yet.
        nr_ports: u32 = 8,
        /// The system time in nanoseconds at which the sleep ends; 0 is never.
        timeout: u64 = 16,
    }
}
