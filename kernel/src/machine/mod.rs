//! The machine that Xen gives a domain, brought to life: event channels, grants, the clock, the
//! console and the way to xenstore.

mod event_pages;
mod interrupts;
mod one_cpu;
mod sleep;
mod sockets;

pub use event_pages::EventPages;
pub use one_cpu::OneCpu;
pub use sockets::Sockets;

use crate::config;
use crate::cpu::exceptions;
use crate::memory::paging;
use crate::memory::ram::{Kind, Region};
use crate::memory::window::Window;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::Cell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use spin::Once;
use xen::abi::hvm_params::*;
use xen::abi::xen::{VIRQ_TIMER, VcpuInfo};
use xen::clock::{Clock, Timer};
use xen::console::Console;
use xen::event::{EventChannels, EventHandler, PairWaker, Priority};
use xen::grant::{FrameSource, GrantTable};
use xen::hypercall::{Operations, Xen};
use xen::xenstore::ring::{RingReader, RingWriter};
use xen::{Errno, PAGE_SIZE, Port, Shared};

/// Sends an event to whoever serves a ring.
type Notify = &'static (dyn Fn() + Send + Sync);

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
    pub console: Option<Console<Notify>>,
    /// The clock when the kernel started, in nanoseconds.
    pub started: u64,
    /// The time that the timer is set to.
    armed: Cell<Option<u64>>,
    /// Ports that are open.
    ports_open: Cell<u64>,
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

    /// Time since the kernel started.
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
    let port = events.bind_virq(VIRQ_TIMER, on_event(crate::time::note_timer))?;
    // One turn of the executor handles a limited number of events. When the sockets have more than that,
    // time must go on all the same, and so must xenstore and console (see `ring`), by which the toolstack
    // can end such a guest: theirs are handled in the first of those turns.
    events.set_priority(port, Priority::HIGHEST)?;
    let grants = GrantTable::new(xen, window)?;
    let console = match ring(xen, &events, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_CONSOLE_EVTCHN) {
        Ok((page, notify, waker)) => Some(Console::new(page, notify, waker)),
        Err(error) => {
            log::warn!("no console: {error}; messages go to Xen's log alone");
            None
        }
    };
    let (armed, ports_open) = (Cell::new(None), Cell::new(0));
    let guest = Guest { xen, events, grants, clock, timer, console, started, armed, ports_open };
    Ok(GUEST.call_once(|| OneCpu::new(guest)).get())
}

/// Opens the way to xenstored, once.
pub fn xenstore(guest: &Guest) -> Result<(RingReader<Notify>, RingWriter<Notify>), Errno> {
    let (page, notify, waker) =
        ring(guest.xen, &guest.events, HVM_PARAM_STORE_PFN, HVM_PARAM_STORE_EVTCHN)?;
    Ok(xen::xenstore::ring::open(page, notify, waker))
}

/// A ring that the toolstack set up: its page, how to notify its server, and who hears from it.
fn ring(
    xen: Xen,
    events: &EventChannels<Xen, EventPages>,
    pfn: u32,
    port: u32,
) -> Result<(Shared<'static>, Notify, Arc<PairWaker>), Errno> {
    let pfn = xen.hvm_param(pfn)?;
    let port = Port(u32::try_from(xen.hvm_param(port)?).map_err(|_| Errno::EINVAL)?);
    if pfn == 0 || port.0 == 0 {
        return Err(Errno::ENODEV);
    }
    let address = pfn.checked_mul(PAGE_SIZE as u64).ok_or(Errno::EINVAL)?;
    let page = Region::new(address, PAGE_SIZE as u64, Kind::Reserved);
    // SAFETY: the toolstack keeps its special pages out of the memory map's RAM.
    unsafe { paging::map_special(page) };
    let start = core::ptr::with_exposed_provenance_mut(page.start as usize);
    // SAFETY: mapped just now and for ever, and no reference into it exists.
    let page = unsafe { Shared::new(start, PAGE_SIZE) };
    let waker = Arc::new(PairWaker::default());
    let heard = waker.clone();
    events.register(port, on_event(move || heard.raise()))?;
    events.set_priority(port, Priority::HIGH)?;
    // There are two such rings, and both live as long as the kernel.
    Ok((page, Box::leak(Box::new(move || notify(xen, port))), waker))
}

fn notify(xen: Xen, port: Port) {
    NOTIFICATIONS_SENT.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = xen.send(port) {
        log::debug!("cannot notify port {}: {error}", port.0);
    }
}
