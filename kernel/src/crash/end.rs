//! Writes the report and ends the domain.

use super::backtrace::{self, Backtrace, Memory};
use super::build_id::BuildId;
use super::output;
use super::registers::{General, Registers};
use super::symbols::Names;
use crate::hypercall::Xen;
use crate::logger::DebugPort;
use crate::memory::image;
use arrayvec::ArrayVec;
use core::fmt::{self, Display, Write};
use core::panic::PanicInfo;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};
use log::LevelFilter;
use spin::{Mutex, Once};
use x86_64::instructions::{hlt, interrupts};
use xen::hypercall::{Operations, ShutdownReason};

/// The hypervisor, which ends the domain.
static XEN: Once<Xen> = Once::new();

/// The functions' names. Their memory is set aside at boot: a crash may have to do with little.
static NAMES: Once<Mutex<Names>> = Once::new();

/// The number of reports that have begun: a report may crash itself.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// Lets reports contain functions' names.
pub(super) fn prepare_names() {
    NAMES.call_once(|| Mutex::new(Names::new()));
}

/// Lets crashes end the domain. Before, they stop the processor.
pub(crate) fn set_xen(xen: Xen) {
    XEN.call_once(|| xen);
}

/// The image's build id.
pub fn build_id() -> BuildId<'static> {
    BuildId::from_note(image::build_id())
}

/// Reports a crash and ends the domain. `cause` may be code of an app and crash as well; the
/// second report then contains `briefly`, which must not crash.
pub(crate) fn end(cause: &dyn Display, briefly: &dyn Display, registers: &Registers) -> ! {
    interrupts::disable();
    log::set_max_level(LevelFilter::Off);
    match REPORTS.fetch_add(1, Ordering::Relaxed) {
        0 => report(cause, registers),
        1 => report(&format_args!("a crash in the crash report: {briefly}"), registers),
        _ => {}
    }
    shut_down(ShutdownReason::Crash)
}

fn report(cause: &dyn Display, registers: &Registers) {
    output::everywhere(format_args!("\nxensock-kernel: {cause}\n"));
    output::everywhere(format_args!("{registers}\nbuild id {}\n", build_id()));
    let code = image::code();
    let addresses: ArrayVec<u64, { backtrace::MOST }> = callers(registers).collect();
    // A crash while names are searched leaves the lock taken.
    let mut names = NAMES.get().and_then(Mutex::try_lock);
    let places = names.as_mut().map(|names| names.find(image::symbols(), &addresses));
    for (depth, address) in addresses.iter().enumerate() {
        let place = places.and_then(|places| places[depth]);
        match place.filter(|_| code.contains(address)) {
            Some(place) => output::everywhere(format_args!("{depth:>4} {address:#x} {place}\n")),
            None => output::everywhere(format_args!("{depth:>4} {address:#x}\n")),
        }
    }
    output::everywhere(format_args!("xensock-kernel: end of the report\n"));
    output::flush();
}

fn callers(registers: &Registers) -> impl Iterator<Item = u64> {
    let stacks = image::stacks();
    let Registers { rip, rsp, general: General { rbp, .. }, .. } = *registers;
    let read = |address: u64| {
        // SAFETY: the walk reads words of stacks only, which are mapped, and any bytes are a
        // valid word. Variables there do not change: their owners do not run any more.
        unsafe { ptr::read_volatile(ptr::with_exposed_provenance(address as usize)) }
    };
    let memory = Memory { code: image::code(), stacks, read };
    Backtrace::new(memory, backtrace::From { rip, rsp, rbp })
}

/// Ends the domain.
pub(crate) fn shut_down(reason: ShutdownReason) -> ! {
    if let Some(xen) = XEN.get()
        && let Err(error) = xen.shutdown(reason)
    {
        let _ = writeln!(DebugPort, "xensock-kernel: Xen does not shut down the domain: {error}");
    }
    halt()
}

/// Stops the processor.
pub(crate) fn halt() -> ! {
    interrupts::disable();
    loop {
        hlt();
    }
}

/// The location of a panic, without its message, which may be code of an app.
struct Where<'a>(&'a PanicInfo<'a>);

impl Display for Where<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.location() {
            Some(location) => write!(f, "panicked at {location}"),
            None => f.write_str("panicked"),
        }
    }
}

/// The panic handler. (On a host, where only examples of the documentation are compiled with this
/// crate, `std` has one.)
#[cfg_attr(target_os = "none", panic_handler)]
pub fn panic(info: &PanicInfo) -> ! {
    end(info, &Where(info), &Registers::here())
}
