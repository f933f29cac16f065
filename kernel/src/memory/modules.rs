//! What the loader has put beside the kernel (xl's `ramdisk=`), for apps to read.

use super::paging;
use super::ram::{LoadedModule, MAX_MODULES};
use arrayvec::ArrayVec;
use core::{ptr, slice};
use spin::Once;

/// A module as the loader left it.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Its bytes. Nobody else uses that memory.
    pub bytes: &'static [u8],
    /// Its command line, empty without one. xl passes none.
    pub command_line: &'static [u8],
}

static FOUND: Once<ArrayVec<LoadedModule, MAX_MODULES>> = Once::new();

fn found() -> impl Iterator<Item = &'static LoadedModule> {
    FOUND.get().into_iter().flatten()
}

/// The modules that the loader passed, in its order.
pub fn modules() -> impl Iterator<Item = Module> {
    found().map(|LoadedModule { region, command_line }| {
        let start = ptr::with_exposed_provenance(region.start as usize);
        // SAFETY: `keep`'s contract; `map` has come before any app.
        let bytes = unsafe { slice::from_raw_parts(start, region.len() as usize) };
        Module { bytes: if region.is_empty() { &[] } else { bytes }, command_line }
    })
}

/// Keeps what was loaded.
///
/// # Safety
/// Once. The modules must lie there, and nobody may use their memory in another way, ever after.
pub(crate) unsafe fn keep(modules: ArrayVec<LoadedModule, MAX_MODULES>) {
    FOUND.call_once(|| modules);
}

/// Makes sure that the modules can be read, wherever they lie. After memory was set up.
pub(crate) fn map() {
    for LoadedModule { region, .. } in found().filter(|module| !module.region.is_empty()) {
        // SAFETY: what is RAM is mapped already, and stays as it is; anything else is none of the
        // kernel's own pages.
        unsafe { paging::map_special(*region) };
    }
}
