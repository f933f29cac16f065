//! From Xen's entry to an environment in which ordinary Rust runs.

pub mod start_info;

#[cfg(target_os = "none")]
mod no_xen;
#[cfg(target_os = "none")]
mod physical;

#[cfg(target_os = "none")]
pub use machine::{Boot, Entry};

#[cfg(target_os = "none")]
mod machine {
    use super::physical::{self, Loaded};
    use super::{no_xen, start_info::MemoryMap};
    use crate::memory::ram::{self, Kind, Region};
    use crate::memory::{image, pages, paging};
    use crate::{cpu, logger};
    use core::arch::global_asm;

    global_asm!(include_str!("pvh.S"));

    /// What boot leaves to whoever goes on.
    #[derive(Debug)]
    pub struct Boot {
        /// The command line, as the loader handed it over.
        pub command_line: &'static [u8],
        /// The memory map.
        pub memory_map: MemoryMap,
    }

    /// Where an image's own code begins; [`entry!`](crate::entry) defines it.
    pub type Entry = fn(Boot) -> !;

    unsafe extern "Rust" {
        safe static XENSOCK_KERNEL_ENTRY: Entry;
    }

    /// Where `pvh.S` goes on, in 64-bit mode, on the kernel's stack, with interrupts off.
    #[unsafe(no_mangle)]
    extern "C" fn start(start_info: u32) -> ! {
        cpu::init_segments();
        cpu::exceptions::init();
        logger::init();
        // SAFETY: the loader passes the address of `hvm_start_info`, and everything below 4 GiB is
        // mapped to itself.
        let loaded = unsafe { physical::read(start_info) };
        let Loaded { command_line, memory_map, taken } = loaded;
        let is_ram = |region: &Region| region.kind == Kind::Ram;
        let mut free = ram::free(&memory_map, &taken);
        let largest = free.iter_mut().filter(|piece| piece.end <= 1 << 32);
        let largest = largest.max_by_key(|piece| piece.len()).expect("the memory map has no RAM");
        // SAFETY: here, once, before anything uses memory outside of the image; the piece is free and
        // below 4 GiB.
        unsafe { paging::activate(memory_map.iter().copied().filter(is_ram), largest) };
        // SAFETY: here, once; all RAM is mapped now, and nobody has been given any.
        unsafe { pages::add(free) };
        if no_xen::xen_leaf().is_none() {
            no_xen::stop();
        }
        log::debug!("image {:#x}..{:#x}", image::text_start(), image::end());
        XENSOCK_KERNEL_ENTRY(Boot { command_line, memory_map })
    }
}
