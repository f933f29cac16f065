//! Saving the domain, and continuing in the restored one.
//!
//! Xen saves memory and registers. The restored domain is a new one: its shared info page, event
//! channels, grants and timer are new and empty, and so are the toolstack's two rings. They are
//! set up again here. Everything above them (the xenstore client, the frontends) is restored by
//! [`System`](crate::System).

use super::guest::{Guest, bind_timer};
use crate::cpu;
use crate::hypercall;
use crate::time::TimerEvents;
use xen::Errno;
use xen::event::EventHandler;
use xen::hypercall::Operations;

/// The result of a suspension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// The domain continues as if nothing had happened: it was saved and left running, or saving
    /// failed.
    Unchanged,
    /// This is the restored domain.
    Restored,
}

impl Guest {
    /// Suspends the domain until the toolstack resumes or restores it.
    ///
    /// Returns Xen's error if it refuses to suspend. Panics if the restored domain cannot be set
    /// up.
    pub fn suspend(&self) -> Result<Resumed, Errno> {
        // The clock continues from here.
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
        // SAFETY: the image is where it was. Another host may need another hypercall page.
        unsafe { hypercall::install() }.ok_or(Errno::ENODEV)?;
        // SAFETY: the frame is that of the page before, and empty.
        unsafe { self.xen.map_shared_info(self.shared_info) }?;
        self.events.resume()?;
        self.xen.set_callback_vector(cpu::EVENT_VECTOR)?;
        self.clock.resume();
        self.timer.resume()?;
        self.armed.set(None);
        // This frees the former port's number: after a restore, each former port is closed by its
        // owner.
        self.events.close(self.timer_port.get())?;
        self.timer_port.set(bind_timer(&self.events)?);
        // Some timers may have become due.
        TimerEvents.raise();
        self.grants.resume()?;
        self.forget_foreign_pages();
        self.store.resume(&self.events)?;
        if let (Some(ring), Some(console)) = (&self.console_ring, &self.console) {
            ring.resume(&self.events)?;
            console.resume();
        }
        Ok(())
    }
}
