//! What the loader has put beside the kernel (xl's `ramdisk=`), for apps to read.

use crate::memory::paging;
use crate::memory::ram::Region;
use arrayvec::ArrayVec;
use core::{ptr, slice};
use spin::Once;

/// The most modules. Xen's toolstack passes one.
pub const MAX: usize = 8;

/// The longest command line of a module (`HVMLOADER_MODULE_CMDLINE_SIZE` in Xen's toolstack). Of a longer
/// one the rest is cut off.
pub const MAX_COMMAND_LINE: usize = 1024;

/// A module as the loader left it.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Its bytes. Nobody else uses that memory.
    pub bytes: &'static [u8],
    /// Its command line, empty without one. xl passes none.
    pub command_line: &'static [u8],
}

struct Found {
    region: Region,
    command_line: ArrayVec<u8, MAX_COMMAND_LINE>,
}

static FOUND: [Once<Found>; MAX] = [const { Once::new() }; MAX];

/// The modules that the loader passed, in its order.
pub fn modules() -> impl Iterator<Item = Module> {
    FOUND.iter().map_while(Once::get).map(|Found { region, command_line }| {
        let start = ptr::with_exposed_provenance(region.start as usize);
        // SAFETY: `add`'s contract; `map` has come before any app.
        let bytes = unsafe { slice::from_raw_parts(start, region.len() as usize) };
        Module { bytes: if region.is_empty() { &[] } else { bytes }, command_line }
    })
}

/// Takes down one more module.
///
/// # Safety
/// It must lie there, and nobody may use its memory in another way, ever after. At most [`MAX`] times,
/// before anything else here.
pub(super) unsafe fn add(region: Region, command_line: ArrayVec<u8, MAX_COMMAND_LINE>) {
    if let Some(place) = FOUND.iter().find(|place| !place.is_completed()) {
        place.call_once(|| Found { region, command_line });
    }
}

/// Makes sure that the modules can be read, wherever they lie. After memory was set up.
pub(super) fn map() {
    for Found { region, .. } in FOUND.iter().map_while(Once::get).filter(|it| !it.region.is_empty())
    {
        // SAFETY: what is RAM is mapped already, and stays as it is; anything else is none of the
        // kernel's own pages.
        unsafe { paging::map_special(*region) };
    }
}
