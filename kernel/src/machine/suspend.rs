//! Being saved, and going on in the restored domain.
//!
//! Xen saves memory and registers. The restored domain is another one: its shared info page, its
//! event channels, its grants and its timer are new and empty, and so are the toolstack's two
//! rings. What belongs to them is set up again here; what stands upon it (the xenstore client,
//! the frontends) is for [`System`](crate::System) to bring back.

use super::guest::{Guest, bind_timer};
use crate::cpu;
use crate::hypercall;
use crate::time::TimerEvents;
use xen::Errno;
use xen::event::EventHandler;
use xen::hypercall::Operations;

/// What came of a suspension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// The domain goes on as if nothing had been: it was saved and left running, or saving it
    /// failed.
    Unchanged,
    /// This is the restored domain.
    Restored,
}

impl Guest {
    /// Suspends the domain until the toolstack resumes or restores it.
    ///
    /// The error is Xen's, which refused to suspend, or says what of the machine could not be
    /// brought back, and then the domain cannot go on.
    pub fn suspend(&self) -> Result<Resumed, Errno> {
        // The clock goes on from here.
        self.clock.now();
        if self.xen.suspend()? {
            return Ok(Resumed::Unchanged);
        }
        if let Err(error) = self.restore() {
            panic!("the restored domain's machine cannot be set up: {error}");
        }
        Ok(Resumed::Restored)
    }

    fn restore(&self) -> Result<(), Errno> {
        // SAFETY: the image lies where it lay. The host may be another one, which is called
        // otherwise.
        unsafe { hypercall::install() }.map_err(|_| Errno::ENODEV)?;
        // SAFETY: the frame is the page's own, as before, and empty.
        unsafe { self.xen.map_shared_info(self.shared_info) }?;
        self.events.resume()?;
        self.xen.set_callback_vector(cpu::EVENT_VECTOR)?;
        self.clock.resume();
        self.timer.resume()?;
        self.armed.set(None);
        // The former one's number is free then: each port from before is to be closed by its owner.
        self.events.close(self.timer_port.get())?;
        self.timer_port.set(bind_timer(&self.events)?);
        // Those that were due meanwhile.
        TimerEvents.raise();
        self.grants.resume()?;
        self.store.resume(&self.events)?;
        if let (Some(ring), Some(console)) = (&self.console_ring, &self.console) {
            ring.resume(&self.events)?;
            console.resume();
        }
        Ok(())
    }
}
