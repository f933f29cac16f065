//! `sched.h`: sleeping, and shutting the domain down.

/// Ends or suspends the domain.
pub const SCHEDOP_SHUTDOWN: u32 = 2;
/// Sleeps until an event or a timeout, without an interrupt.
pub const SCHEDOP_POLL: u32 = 3;

/// The domain has finished.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// The domain asks to be started again.
pub const SHUTDOWN_REBOOT: u32 = 1;
/// The domain can be saved.
pub const SHUTDOWN_SUSPEND: u32 = 2;
/// The domain has crashed.
pub const SHUTDOWN_CRASH: u32 = 3;

structures! {
    /// Argument of [`SCHEDOP_SHUTDOWN`] (`struct sched_shutdown`).
    SchedShutdown: 4 {
        /// `SHUTDOWN_*`.
        reason: u32 = 0,
    }

    /// Argument of [`SCHEDOP_POLL`] (`struct sched_poll`).
    SchedPoll: 24 {
        /// The address of a list of ports. A pending event of one of them ends the sleep.
        ports: u64 = 0,
        /// The number of ports. If zero, a new event of any port ends the sleep.
        nr_ports: u32 = 8,
        /// The system time in nanoseconds at which the sleep ends; 0 is never.
        timeout: u64 = 16,
    }
}
