//! The boot: from Xen's entry to the running system.

mod loader;
mod memory_map;

pub use loader::COMMAND_LINE_SIZE;

use crate::hypercall;
use crate::memory::ram::{self, Kind, MAX_MODULES, Region};
use crate::memory::{image, modules, pages, paging};
use crate::stages::{self, Stage};
use crate::system::{Main, life};
use crate::{balloon, cpu, crash, logger, machine};
use arrayvec::ArrayVec;
use core::arch::global_asm;
use core::fmt::Write;
use loader::{CommandLine, Loaded};
use pvh::start_info::reader::StartInfoReader;
use spin::Once;
use uart_16550::{Config, Uart16550Tty};

global_asm!(include_str!("pvh.S"));

unsafe extern "Rust" {
    /// The image's main function; [`entry!`](crate::entry) defines it.
    safe static XENSOCK_KERNEL_MAIN: Main;
}

/// Apps can read it at any time.
static COMMAND_LINE: Once<CommandLine> = Once::new();

/// Called by `pvh.S` in 64-bit mode, on the kernel's stack, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn start(start_info: u32) -> ! {
    cpu::init_segments();
    crash::init_exceptions();
    logger::init();
    // SAFETY: the image is below 4 GiB, identity-mapped and executable.
    let xen = unsafe { hypercall::install() };
    if let Some(xen) = xen {
        crash::set_xen(xen);
    }
    // SAFETY: the loader passes the address of `hvm_start_info`. The structure and everything it
    // refers to are below 4 GiB, for 32-bit kernels; all of that is identity-mapped.
    let info = unsafe { StartInfoReader::from_paddr_identity(start_info) };
    let info = info.expect("the loader passes hvm_start_info");
    let Loaded { command_line, memory_map, modules } = loader::read(&info);
    let command_line = COMMAND_LINE.call_once(|| command_line).as_slice();
    let mut taken: ArrayVec<Region, { MAX_MODULES + 1 }> = ArrayVec::new();
    taken.push(image::region());
    taken.extend(modules.iter().map(|module| module.region));
    // SAFETY: called once, here; the loader put the modules there, and they are excluded from
    // free memory.
    unsafe { modules::keep(modules) };
    let xen_map = xen.as_ref().and_then(|xen| memory_map::ask(xen).ok());
    let loader_map = !memory_map.is_empty();
    let memory_map = ram::agreed(&memory_map, &xen_map.unwrap_or_default());
    let is_ram = |region: &Region| region.kind == Kind::Ram;
    let mut free = ram::free(&memory_map, &taken);
    if let Some(xen) = &xen {
        // SAFETY: free memory is not in use yet.
        unsafe { balloon::give_surplus(xen, &memory_map, loader_map, &mut free) };
    }
    let largest = free.iter_mut().filter(|piece| piece.end <= 1 << 32);
    let largest =
        largest.max_by_key(|piece| piece.len()).expect("loader and Xen agree on RAM below 4 GiB");
    // SAFETY: called once, here, before memory outside of the image is used; the piece is free
    // and below 4 GiB.
    unsafe { paging::activate(memory_map.iter().copied().filter(is_ram), largest) };
    // SAFETY: all RAM is mapped now and not in use; each piece is added once.
    free.into_iter().for_each(|piece| unsafe { pages::add(piece) });
    modules::map();
    stages::mark(Stage::Memory);
    let xen = xen.unwrap_or_else(|| stop_without_xen());
    // SAFETY: called once, here; memory and interrupts are set up.
    let guest = match unsafe { machine::start(xen, &memory_map, command_line) } {
        Ok(guest) => guest,
        Err(error) => panic!("cannot set up the machine with Xen: {error}"),
    };
    stages::mark(Stage::Machine);
    life::run(guest, command_line, XENSOCK_KERNEL_MAIN)
}

/// Prints on the first serial port how to start this kernel, and stops.
fn stop_without_xen() -> ! {
    // SAFETY: without Xen nothing else drives the port. Without a port, reads return 0xff, and
    // `new_port` or the initialization fails.
    if let Ok(mut uart) = unsafe { Uart16550Tty::new_port(0x3f8, Config::default()) } {
        let _ = uart.write_str(
            "xensock-kernel: there is no Xen here: no CPUID leaf from 0x40000000 to 0x4000ff00\n\
             bears the signature XenVMMXenVMM.\n\
             This is the kernel of a Xen domain. Start it by `xl create` from a configuration\n\
             with type=\"pvh\" and kernel=\"(this file)\".\n\
             The kernel stops here.\n",
        );
    }
    crash::halt()
}
