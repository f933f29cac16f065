//! The machine that Xen gives a domain, brought to life: event channels, grants, the clock, the
//! console and the way to xenstore.

#[allow(unsafe_code, reason = "grants the kernel's pages to backends")]
mod domain;
#[allow(unsafe_code, reason = "gives the kernel's pages to event queues")]
mod event_pages;
#[allow(unsafe_code, reason = "the critical section: interrupts off")]
mod interrupts;
#[allow(unsafe_code, reason = "maps the pages of the toolstack's two rings")]
mod line;
#[allow(unsafe_code, reason = "what is for one thread is for all code of one CPU")]
mod one_cpu;
mod sleep;
#[allow(unsafe_code, reason = "sets up again, in a restored domain, what was set up at boot")]
mod suspend;

pub use domain::Domain;
pub use event_pages::EventPages;
pub use line::Notify;
pub use one_cpu::OneCpu;
pub use suspend::Resumed;

use crate::config;
use crate::cpu::exceptions;
use crate::memory::ram::Region;
use crate::memory::window::Window;
use alloc::sync::Arc;
use core::cell::Cell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use line::Line;
use spin::Once;
use xen::abi::hvm_params::*;
use xen::abi::xen::{VIRQ_TIMER, VcpuInfo};
use xen::clock::{Clock, Timer};
use xen::event::{EventChannels, EventHandler, Priority};
use xen::grant::{FrameSource, GrantTable};
use xen::hypercall::{Operations, Xen};
use xen::xenstore::ring::{RingReader, RingWriter};
use xen::{Errno, Gfn, Port};

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
    console_line: Option<Line>,
    /// The way to xenstored.
    store: Line,
    /// Where the shared info page is.
    shared_info: Gfn,
    /// The clock when the kernel started, in nanoseconds.
    pub started: u64,
    /// The timer's event channel.
    timer_port: Cell<Port>,
    /// The time that the timer is set to.
    armed: Cell<Option<u64>>,
    /// Ports that are open.
    ports_open: Cell<u64>,
    /// How often the CPU has woken.
    wakeups: Cell<u64>,
}

static GUEST: Once<OneCpu<Guest>> = Once::new();

static EVENTS_RECEIVED: AtomicU64 = AtomicU64::new(0);
static NOTIFICATIONS_SENT: AtomicU64 = AtomicU64::new(0);

/// The machine, once it has been started.
pub fn guest() -> Option<&'static Guest> {
    GUEST.get().map(OneCpu::get)
}

/// Events received and notifications sent, ever.
pub fn event_counts() -> (u64, u64) {
    (EVENTS_RECEIVED.load(Ordering::Relaxed), NOTIFICATIONS_SENT.load(Ordering::Relaxed))
}

impl Guest {
    /// Ports that frontends have open.
    pub fn ports_open(&self) -> u64 {
        self.ports_open.get()
    }

    /// How often the CPU has woken from its sleep.
    pub fn wakeups(&self) -> u64 {
        self.wakeups.get()
    }

    /// Time since the kernel started, without that for which the domain was saved.
    pub fn uptime(&self) -> Duration {
        Duration::from_nanos(self.clock.now().saturating_sub(self.started))
    }
}

/// Calls a function upon an event, and counts events.
struct OnEvent<F>(F);

impl<F: Fn() + Send + Sync> EventHandler for OnEvent<F> {
    fn raise(&self) {
        EVENTS_RECEIVED.fetch_add(1, Ordering::Relaxed);
        (self.0)();
    }
}

fn on_event(call: impl Fn() + Send + Sync + 'static) -> Arc<dyn EventHandler> {
    Arc::new(OnEvent(call))
}

/// Brings the machine to life. Events can end the CPU's sleep from here on.
///
/// # Safety
/// Once, after memory and the interrupt table were set up.
#[allow(unsafe_code, reason = "maps Xen's pages, and promises who uses them")]
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
    let abi = config::event_abi(command_line);
    let events = EventChannels::new(xen, shared_info, EventPages, abi)?;
    let upcall_pending = shared_info.slice(offset_of!(VcpuInfo, evtchn_upcall_pending), 1);
    // SAFETY: vCPU 0's info is the shared info page's beginning, and that stays mapped.
    unsafe { exceptions::set_upcall_pending(upcall_pending.as_ptr()) };
    xen.set_callback_vector(exceptions::EVENT_VECTOR)?;

    let clock = Clock::new(shared_info);
    let started = clock.now();
    let timer = Timer::new(xen)?;
    let timer_port = bind_timer(&events)?;
    let grants = GrantTable::new(xen, window)?;
    let store = Line::open(xen, &events, HVM_PARAM_STORE_PFN, HVM_PARAM_STORE_EVTCHN)
        .inspect_err(|error| log::error!("no way to xenstore: {error}"))?;
    let line = Line::open(xen, &events, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_CONSOLE_EVTCHN);
    let console_line = line
        .inspect_err(|error| log::warn!("no console: {error}; messages go to Xen's log alone"))
        .ok();
    let console =
        console_line.as_ref().map(|line| Console::new(line.page(), line.notify(), line.heard()));
    let guest = Guest {
        xen,
        events,
        grants,
        clock,
        timer,
        console,
        console_line,
        store,
        shared_info: gfn,
        started,
        timer_port: Cell::new(timer_port),
        armed: Cell::new(None),
        ports_open: Cell::new(0),
        wakeups: Cell::new(0),
    };
    Ok(GUEST.call_once(|| OneCpu::new(guest)).get())
}

/// Has the timer's events heard.
fn bind_timer(events: &EventChannels<Xen, EventPages>) -> Result<Port, Errno> {
    let port = events.bind_virq(VIRQ_TIMER, on_event(crate::time::note_timer))?;
    // One turn of the executor handles a limited number of events. When the sockets have more than that,
    // time must go on all the same, and so must xenstore and console (see `Line`), by which the toolstack
    // can end such a guest: theirs are handled in the first of those turns.
    events.set_priority(port, Priority::HIGHEST)?;
    Ok(port)
}

/// The way to xenstored, from where its rings are now.
pub fn xenstore(guest: &Guest) -> (RingReader<Notify>, RingWriter<Notify>) {
    xen::xenstore::ring::open(guest.store.page(), guest.store.notify(), guest.store.heard())
}
