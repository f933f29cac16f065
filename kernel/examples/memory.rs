//! Prints what the loader passed. Then, each time that dom0 writes to the guest's node
//! `data/touch`, allocates all free pages, writes to each, reads it again, and prints their
//! number.
//!
//! It has a second entry, `version_0_start`, which acts as a loader older than version 1 of
//! `hvm_start_info`.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "writes to all free pages; has its own entry point")]

use core::arch::global_asm;
use core::ptr::NonNull;
use kernel::System;
use kernel::balloon;
use kernel::memory::pages;
use sha2::{Digest, Sha256};
use xen::{Errno, PAGE_SIZE};

kernel::entry!(main);

// ebx has the structure's address; the second word of the structure is its version.
global_asm!(
    ".pushsection .text.version_0, \"ax\", @progbits",
    ".code32",
    ".global version_0_start",
    "version_0_start:",
    "mov dword ptr [ebx + 4], 0",
    "jmp pvh_start",
    ".code64",
    ".popsection",
);

unsafe extern "C" {
    fn version_0_start();
}

/// Nothing else accesses it.
#[used]
static VERSION_0_START: unsafe extern "C" fn() = version_0_start;

async fn main(system: System) -> Result<(), Errno> {
    let line = system.command_line();
    let end = line.len().saturating_sub(20);
    log::info!("command line: {} bytes, at its end {}", line.len(), line[end..].escape_ascii());
    log::info!("loader's map: {}", if balloon::found().loader_map { "some" } else { "none" });
    log_modules(&system, "module");
    let mut touch = system.store().watch("data/touch").await?;
    // Once at the start, then for dom0.
    for turn in 0u32.. {
        touch.next().await;
        let before = pages::figures();
        let touched = touch_all();
        log::info!("turn {turn}: {touched:?}, of {} pages", before.free);
        if pages::figures().free != before.free {
            log::error!("not all of them were freed");
        }
        log_modules(&system, "module still");
    }
    Ok(())
}

fn log_modules(system: &System, what: &str) {
    for module in system.modules() {
        let digest = Sha256::digest(module.bytes);
        let start = digest.iter().take(8).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        let line = module.command_line.escape_ascii();
        log::info!("{what}: {} bytes, sha256 {start:016x} {line}", module.bytes.len());
    }
}

/// The result of touching all free pages.
#[derive(Debug)]
struct Touched {
    /// Pages with the value written.
    right: usize,
    /// Pages with another value.
    wrong: usize,
    /// Pages of both kinds above 4 GiB.
    high: usize,
}

/// Pages that were allocated together; this structure is written into the first of them.
struct Block {
    before: Option<NonNull<Block>>,
    count: usize,
}

fn touch_all() -> Touched {
    let mut last = None;
    let mut size = 512;
    while size > 0 {
        let Some(start) = pages::alloc(size) else {
            size /= 2;
            continue;
        };
        for page in 0..size {
            let address = start.as_ptr().addr() + page * PAGE_SIZE;
            let word = core::ptr::with_exposed_provenance_mut::<usize>(address + PAGE_SIZE / 2);
            // SAFETY: the page was just allocated.
            unsafe { word.write_volatile(address) };
        }
        let block = start.cast::<Block>();
        // SAFETY: as above. The structure fits into a page and is aligned, and the marks of pages
        // are after it.
        unsafe { block.write(Block { before: last, count: size }) };
        last = Some(block);
    }
    let mut touched = Touched { right: 0, wrong: 0, high: 0 };
    while let Some(block) = last {
        // SAFETY: the block was written above.
        let Block { before, count } = unsafe { block.read() };
        for page in 0..count {
            let address = block.as_ptr().addr() + page * PAGE_SIZE;
            let word = core::ptr::with_exposed_provenance::<usize>(address + PAGE_SIZE / 2);
            // SAFETY: the page belongs to this function.
            let holds = unsafe { word.read_volatile() } == address;
            *if holds { &mut touched.right } else { &mut touched.wrong } += 1;
            touched.high += usize::from(address >= 4 << 30);
        }
        // SAFETY: they were allocated with this count, and nothing refers to them.
        unsafe { pages::free(block.cast(), count) };
        last = before;
    }
    touched
}
