//! Writes the report and ends the domain.

use super::backtrace::{self, Backtrace, Memory};
use super::build_id::BuildId;
use super::output;
use super::registers::Registers;
use super::symbols::Symbols;
use crate::hypercall::Xen;
use crate::logger::DebugPort;
use crate::memory::image;
use core::fmt::{self, Display, Write};
use core::panic::PanicInfo;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};
use log::LevelFilter;
use spin::Once;
use x86_64::instructions::{hlt, interrupts};
use xen::hypercall::{Operations, ShutdownReason};

/// The hypervisor, to end the domain with.
static XEN: Once<Xen> = Once::new();

/// How many reports have begun: a report may crash itself.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// From here on, a crash ends the domain. Before, it stops the processor.
pub(crate) fn set_xen(xen: Xen) {
    XEN.call_once(|| xen);
}

/// The image's build id.
pub fn build_id() -> BuildId<'static> {
    BuildId::from_note(image::build_id())
}

/// Reports a crash and ends the domain. `cause` may be anyone's code and crash, too; then
/// `briefly` is said of that second crash, and must not.
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
    for (depth, address) in callers(registers).enumerate() {
        let place = Symbols(image::symbols()).find(address).filter(|_| code.contains(&address));
        match place {
            Some(place) => output::everywhere(format_args!("{depth:>4} {address:#x} {place}\n")),
            None => output::everywhere(format_args!("{depth:>4} {address:#x}\n")),
        }
    }
    output::everywhere(format_args!("xensock-kernel: end of the report\n"));
    output::flush();
}

fn callers(registers: &Registers) -> impl Iterator<Item = u64> {
    let stacks = image::stacks();
    let Registers { rip, rsp, rbp, .. } = *registers;
    let read = |address: u64| {
        // SAFETY: the walk asks only for words of stacks, which are mapped; any bytes make a
        // word. What is a variable on that stack changes no more: whoever owns it does not go on.
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
        let _ = writeln!(DebugPort, "xensock-kernel: Xen refuses to end the domain: {error}");
    }
    halt()
}

/// Stops for ever.
pub(crate) fn halt() -> ! {
    interrupts::disable();
    loop {
        hlt();
    }
}

/// Where a panic was, without its message, which is its author's code.
struct Where<'a>(&'a PanicInfo<'a>);

impl Display for Where<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.location() {
            Some(location) => write!(f, "panicked at {location}"),
            None => f.write_str("panicked"),
        }
    }
}

/// The panic handler, except on a host, where only examples in documentation use this crate.
#[cfg_attr(target_os = "none", panic_handler)]
pub fn panic(info: &PanicInfo) -> ! {
    end(info, &Where(info), &Registers::here())
}
