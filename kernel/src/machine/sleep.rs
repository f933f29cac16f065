//! The executor's view of the machine: what has happened, and sleep.

use super::Guest;
use crate::cpu::exceptions;
use crate::executor::Platform;
use crate::time;

impl Platform for &'static Guest {
    fn dispatch(&self) -> bool {
        let more = self.events.dispatch();
        if time::expire(|| self.clock.now().saturating_sub(self.started)) {
            // The timer fired, so it is set to nothing.
            self.armed.set(None);
        }
        self.arm();
        more
    }

    fn sleep(&self, is_awake: &dyn Fn() -> bool) {
        // Interrupts are off here, as always, so an event after these questions is still pending when
        // the CPU halts, and ends the halt.
        if !self.events.is_pending() && !is_awake() {
            exceptions::sleep();
            self.wakeups.set(self.wakeups.get() + 1);
        }
    }
}

impl Guest {
    /// Sets Xen's timer to the earliest of the kernel's, unless it is set to that or before.
    fn arm(&self) {
        let Some(next) = time::next_deadline() else { return };
        if self.armed.get().is_some_and(|armed| armed <= next) {
            return;
        }
        let at = self.clock.system_time_of(self.started.saturating_add(next));
        match self.timer.set(at) {
            Ok(()) => self.armed.set(Some(next)),
            Err(error) => panic!("Xen refuses to set the timer: {error}"),
        }
    }
}
