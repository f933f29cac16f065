//! The running domain: its event channels, grants, clock, timer, console and xenstore ring.

use super::ring::{Notify, ToolstackRing};
use crate::cpu::{self, OneCpu};
use crate::executor::Platform;
use crate::hypercall::Xen;
use crate::memory::pages::EventPages;
use crate::memory::ram::Region;
use crate::memory::window::Window;
use crate::{command_line, time};
use alloc::sync::Arc;
use core::cell::Cell;
use core::mem::offset_of;
use core::time::Duration;
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

/// All of the machine.
pub struct Guest {
    /// The hypervisor.
    pub xen: Xen,
    /// The event channels.
    pub events: EventChannels<Xen, EventPages>,
    /// The grant table.
    pub grants: GrantTable<Xen, Window>,
    /// The clock.
    pub clock: Clock,
    /// The timer behind all timers.
    pub timer: Timer<Xen>,
    /// The console, unless the toolstack gave none.
    pub console: Option<Console>,
    pub(super) console_ring: Option<ToolstackRing>,
    /// The way to xenstored.
    pub(super) store: ToolstackRing,
    /// Where the shared info page is.
    pub(super) shared_info: Gfn,
    /// The clock when the kernel started, in nanoseconds.
    started: u64,
    /// The timer's event channel.
    pub(super) timer_port: Cell<Port>,
    /// The time that the timer is set to.
    pub(super) armed: Cell<Option<u64>>,
    /// Ports that are open.
    pub ports_open: Counter,
    /// How often the CPU has woken.
    pub wakeups: Counter,
}

static GUEST: Once<OneCpu<Guest>> = Once::new();

/// The machine, once it has been started.
pub fn guest() -> Option<&'static Guest> {
    GUEST.get().map(OneCpu::get)
}

impl Guest {
    /// Time since the kernel started, without that for which the domain was saved.
    pub fn uptime(&self) -> Duration {
        time::uptime()
    }

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

impl Platform for &'static Guest {
    fn dispatch(&self) -> bool {
        let more = self.events.dispatch();
        if time::expire() {
            // The timer fired, so it is set to nothing.
            self.armed.set(None);
        }
        self.arm();
        more
    }

    fn sleep(&self, is_awake: &dyn Fn() -> bool) {
        // Interrupts are off here, as always, so an event after these questions is still pending
        // when the CPU halts, and ends the halt.
        if !self.events.is_pending() && !is_awake() {
            cpu::sleep();
            self.wakeups.add(1);
        }
    }
}

/// Brings the machine to life. Events can end the CPU's sleep from here on.
///
/// # Safety
/// Once, after memory and the interrupt table were set up.
pub unsafe fn start(
    xen: Xen,
    memory_map: &[Region],
    command_line: &[u8],
) -> Result<&'static Guest, Errno> {
    let (_, grant_frames) = xen.grant_table_size()?;
    // SAFETY: the caller's promise. The shared info page and the grant table are to have room.
    let window = unsafe { Window::open(memory_map, 1 + u64::from(grant_frames)) };
    let (gfn, shared_info) = window.take()?;
    // SAFETY: the window gave the frame to nobody else, and it is reached as `Shared`.
    unsafe { xen.map_shared_info(gfn) }?;
    let abi = command_line::value(command_line, "evtchn").and_then(|abi| abi.parse().ok());
    let events = EventChannels::new(xen, shared_info, EventPages, abi)?;
    let upcall_pending = shared_info.slice(offset_of!(VcpuInfo, evtchn_upcall_pending), 1);
    // SAFETY: vCPU 0's info is the shared info page's beginning, and that stays mapped.
    unsafe { cpu::set_upcall_pending(upcall_pending.as_ptr()) };
    xen.set_callback_vector(cpu::EVENT_VECTOR)?;

    let clock = Clock::new(shared_info);
    let started = clock.now();
    let timer = Timer::new(xen)?;
    let timer_port = bind_timer(&events)?;
    let grants = GrantTable::new(xen, window)?;
    let store = ToolstackRing::open(xen, &events, HVM_PARAM_STORE_PFN, HVM_PARAM_STORE_EVTCHN)
        .inspect_err(|error| log::error!("no way to xenstore: {error}"))?;
    let ring = ToolstackRing::open(xen, &events, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_CONSOLE_EVTCHN);
    let console_ring = ring
        .inspect_err(|error| log::warn!("no console: {error}; messages go to Xen's log alone"))
        .ok();
    let console =
        console_ring.as_ref().map(|ring| Console::new(ring.page(), ring.notify(), ring.heard()));
    let guest = Guest {
        xen,
        events,
        grants,
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

/// Has the timer's events heard.
pub(super) fn bind_timer(events: &EventChannels<Xen, EventPages>) -> Result<Port, Errno> {
    let port = events.bind_virq(VIRQ_TIMER, Arc::new(time::TimerEvents))?;
    // One turn of the executor handles a limited number of events. When the sockets have more
    // than that, time must go on all the same, and so must xenstore and console (see
    // `ToolstackRing`), by which the toolstack can end such a guest: theirs are handled in the
    // first of those turns.
    events.set_priority(port, Priority::HIGHEST)?;
    Ok(port)
}

/// The way to xenstored, from where its rings are now.
pub fn xenstore(guest: &Guest) -> (RingReader<Notify>, RingWriter<Notify>) {
    xen::xenstore::ring::open(guest.store.page(), guest.store.notify(), guest.store.heard())
}
