//! The modules that the loader put into memory (xl's `ramdisk=`), for apps to read.

use super::paging;
use super::ram::{LoadedModule, MAX_MODULES};
use arrayvec::ArrayVec;
use core::{ptr, slice};
use spin::Once;

/// A module.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Its bytes. Nothing else uses this memory.
    pub bytes: &'static [u8],
    /// Its command line; empty from xl.
    pub command_line: &'static [u8],
}

static FOUND: Once<ArrayVec<LoadedModule, MAX_MODULES>> = Once::new();

fn found() -> impl Iterator<Item = &'static LoadedModule> {
    FOUND.get().into_iter().flatten()
}

/// The modules, in the loader's order.
pub fn modules() -> impl Iterator<Item = Module> {
    found().map(|LoadedModule { region, command_line }| {
        let start = ptr::with_exposed_provenance(region.start as usize);
        // SAFETY: guaranteed by the caller of `keep`; `map` was called before any app.
        let bytes = unsafe { slice::from_raw_parts(start, region.len() as usize) };
        Module { bytes: if region.is_empty() { &[] } else { bytes }, command_line }
    })
}

/// Keeps the list of modules.
///
/// # Safety
/// Called once. The modules must be there, and nothing else may use their memory.
pub(crate) unsafe fn keep(modules: ArrayVec<LoadedModule, MAX_MODULES>) {
    FOUND.call_once(|| modules);
}

/// Maps the modules outside of RAM. Called after memory was set up.
pub(crate) fn map() {
    for LoadedModule { region, .. } in found().filter(|module| !module.region.is_empty()) {
        // SAFETY: RAM is mapped already and stays as it is; other addresses are not the kernel's.
        unsafe { paging::map_special(*region) };
    }
}
