//! The running domain: its event channels, grants, clock, timer, console and xenstore ring.

use super::ring::{Notify, ToolstackRing};
use crate::cpu::{self, OneCpu};
use crate::executor::Platform;
use crate::hypercall::Xen;
use crate::memory::pages::EventPages;
use crate::memory::ram::Region;
use crate::memory::runs::Runs;
use crate::memory::window::{self, Window};
use crate::{command_line, time};
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use core::mem::offset_of;
use spin::Once;
use xen::abi::hvm_params::*;
use xen::abi::xen::{VIRQ_TIMER, VcpuInfo};
use xen::clock::{Clock, Timer};
use xen::event::{EventChannels, Priority};
use xen::grant::GrantTable;
use xen::hypercall::{FrameSource, Operations};
use xen::xenstore::ring::{RingReader, RingWriter};
use xen::{Counter, Errno, Gfn, Port};

/// The domain's console.
pub type Console = xen::console::Console<Notify>;

/// The machine.
pub struct Guest {
    /// The hypervisor.
    pub xen: Xen,
    /// The event channels.
    pub events: EventChannels<Xen, EventPages>,
    /// The grant table.
    pub grants: GrantTable<Xen, Window>,
    /// The frames for other domains' pages.
    pub(super) foreign: RefCell<Runs>,
    /// How often the domain was restored. Each time, Xen has mapped nothing in it.
    pub(super) restores: Cell<u32>,
    /// The clock.
    pub clock: Clock,
    /// Xen's timer.
    pub timer: Timer<Xen>,
    /// The console, if the toolstack made one.
    pub console: Option<Console>,
    pub(super) console_ring: Option<ToolstackRing>,
    /// The ring to xenstored.
    pub(super) store: ToolstackRing,
    /// The frame of the shared info page.
    pub(super) shared_info: Gfn,
    /// The clock's time when the kernel started, in nanoseconds.
    started: u64,
    /// The timer's event channel.
    pub(super) timer_port: Cell<Port>,
    /// The time for which the timer is set.
    pub(super) armed: Cell<Option<u64>>,
    /// The open ports.
    pub ports_open: Counter,
    /// How often the CPU has woken from sleep.
    pub wakeups: Counter,
}

static GUEST: Once<OneCpu<Guest>> = Once::new();

/// The machine, after [`start`].
pub fn guest() -> Option<&'static Guest> {
    GUEST.get().map(OneCpu::get)
}

impl Guest {
    /// Sets Xen's timer to the next deadline, unless it is set to that time or an earlier one.
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

impl Platform for &'static Guest {
    fn dispatch(&self) -> bool {
        let more = self.events.dispatch();
        if time::expire() {
            // Xen's timer fires once.
            self.armed.set(None);
        }
        self.arm();
        more
    }

    fn sleep(&self, is_awake: &dyn Fn() -> bool) {
        // Interrupts are off, so an event after these checks is pending when the CPU halts, and
        // ends the sleep.
        if !self.events.is_pending() && !is_awake() {
            cpu::halt_until_interrupt();
            self.wakeups.add(1);
        }
    }
}

/// Sets up the machine. From here on, events end the CPU's sleep.
///
/// # Safety
/// Called once, after memory and the interrupt table were set up.
pub unsafe fn start(
    xen: Xen,
    memory_map: &[Region],
    command_line: &[u8],
) -> Result<&'static Guest, Errno> {
    let (_, grant_frames) = xen.grant_table_size()?;
    // SAFETY: guaranteed by the caller. The window is for the shared info page and the grant
    // table.
    let (window, foreign) = unsafe { window::open(memory_map, 1 + u64::from(grant_frames)) };
    let (gfn, shared_info) = window.take()?;
    // SAFETY: the window returned the frame once, and it is accessed as `Shared`.
    unsafe { xen.map_shared_info(gfn) }?;
    let abi = command_line::value(command_line, "evtchn").and_then(|abi| abi.parse().ok());
    let events = EventChannels::new(xen, shared_info, EventPages, abi)?;
    let upcall_pending = shared_info.slice(offset_of!(VcpuInfo, evtchn_upcall_pending), 1);
    // SAFETY: vCPU 0's info is at the start of the shared info page, which stays mapped.
    unsafe { cpu::set_upcall_pending(upcall_pending.as_ptr()) };
    xen.set_callback_vector(cpu::EVENT_VECTOR)?;

    let clock = Clock::new(shared_info);
    let started = clock.now();
    let timer = Timer::new(xen)?;
    let timer_port = bind_timer(&events)?;
    let grants = GrantTable::new(xen, window)?;
    let store = ToolstackRing::open(xen, &events, HVM_PARAM_STORE_PFN, HVM_PARAM_STORE_EVTCHN)
        .inspect_err(|error| log::error!("cannot open the xenstore ring: {error}"))?;
    let ring = ToolstackRing::open(xen, &events, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_CONSOLE_EVTCHN);
    let console_ring = ring
        .inspect_err(|error| log::warn!("no console: {error}; messages go to Xen's log only"))
        .ok();
    let console =
        console_ring.as_ref().map(|ring| Console::new(ring.page, ring.notify, ring.signal.clone()));
    let guest = Guest {
        xen,
        events,
        grants,
        foreign: RefCell::new(foreign),
        restores: Cell::new(0),
        clock,
        timer,
        console,
        console_ring,
        store,
        shared_info: gfn,
        started,
        timer_port: Cell::new(timer_port),
        armed: Cell::new(None),
        ports_open: Counter::default(),
        wakeups: Counter::default(),
    };
    let guest = GUEST.call_once(|| OneCpu::new(guest)).get();
    time::start(&guest.clock, guest.started);
    Ok(guest)
}

/// Binds the timer's events.
pub(super) fn bind_timer(events: &EventChannels<Xen, EventPages>) -> Result<Port, Errno> {
    let port = events.bind_virq(VIRQ_TIMER, Arc::new(time::TimerEvents))?;
    // One turn of the executor handles a limited number of events. If the sockets have more,
    // timers must still work, and so must xenstore and console (see `ToolstackRing`), through
    // which the toolstack can end such a guest. Their priority lets the first turn handle them.
    events.set_priority(port, Priority::HIGHEST)?;
    Ok(port)
}

/// The connection to xenstored.
pub fn xenstore(guest: &Guest) -> (RingReader<Notify>, RingWriter<Notify>) {
    let ring = &guest.store;
    xen::xenstore::ring::open(ring.page, ring.notify, ring.signal.clone())
}
