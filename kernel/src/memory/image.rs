//! The addresses of the image's parts, which `linker.ld` and `boot/pvh.S` define.

use super::ram::{Kind, Region};
use core::ops::Range;
use core::{ptr, slice};
use xen::PAGE_SIZE;

macro_rules! addresses {
    ($($(#[$doc:meta])* $name:ident = $symbol:ident;)*) => {
        mod symbols {
            unsafe extern "C" {
                $(pub static $symbol: u8;)*
                pub static entry_tsc: u8;
            }
        }
        $($(#[$doc])* pub fn $name() -> u64 {
            (&raw const symbols::$symbol).addr() as u64
        })*
    };
}

addresses! {
    /// The first address of code, and of the image.
    text_start = image_text_start;
    /// The first address of constants.
    rodata_start = image_rodata_start;
    /// The first address of writable data.
    data_start = image_data_start;
    /// The first address of the functions' names.
    symbols_start = image_symbols_start;
    symbols_end = image_symbols_end;
    build_id_start = image_build_id_start;
    build_id_end = image_build_id_end;
    end = image_end;
    // Stacks grow down from their tops to their guards, which are unmapped pages.
    stack_top = stack_top;
    stack_guard = stack_guard;
    double_fault_stack_guard = double_fault_stack_guard;
    double_fault_stack_top = double_fault_stack_top;
    nmi_stack_guard = nmi_stack_guard;
    nmi_stack_top = nmi_stack_top;
    page_fault_stack_guard = page_fault_stack_guard;
    page_fault_stack_top = page_fault_stack_top;
}

/// The TSC at the entry.
pub fn entry_tsc() -> u64 {
    // SAFETY: `pvh.S` wrote it before any Rust code ran, and nothing writes to it afterwards.
    unsafe { (&raw const symbols::entry_tsc).cast::<u64>().read() }
}

/// The whole image: code, constants, data, stacks, functions' names.
pub fn region() -> Region {
    Region { start: text_start(), end: end(), kind: Kind::Reserved }
}

/// The stacks, without their guard pages.
pub fn stacks() -> [Range<u64>; 4] {
    let [stack, double_fault, nmi, page_fault] = guards().map(|guard| guard + PAGE_SIZE as u64);
    [
        stack..stack_top(),
        double_fault..double_fault_stack_top(),
        nmi..nmi_stack_top(),
        page_fault..page_fault_stack_top(),
    ]
}

/// Code.
pub fn code() -> Range<u64> {
    text_start()..rodata_start()
}

/// The name of the image's part that contains `address`.
pub fn part(address: u64) -> Option<&'static str> {
    if code().contains(&address) {
        Some("code")
    } else if (rodata_start()..data_start()).contains(&address) {
        Some("a constant")
    } else if (symbols_start()..symbols_end()).contains(&address) {
        Some("the functions' names")
    } else if stacks().iter().any(|stack| stack.contains(&address)) {
        Some("a stack")
    } else if (data_start()..end()).contains(&address) {
        Some("a static variable")
    } else {
        None
    }
}

/// The bytes from `address` on, at most one instruction's; none if it is not in the code.
pub fn code_at(address: u64) -> &'static [u8] {
    /// The length of the longest instruction.
    const MOST: u64 = 15;
    let code = code();
    if !code.contains(&address) {
        return &[];
    }
    // SAFETY: code is never written.
    unsafe { bytes(address, code.end.min(address + MOST)) }
}

/// The list of functions' names.
pub fn symbols() -> &'static [u8] {
    // SAFETY: the linker defines start and end of the list, which is read-only.
    unsafe { bytes(symbols_start(), symbols_end()) }
}

/// The note with the build id.
pub fn build_id() -> &'static [u8] {
    // SAFETY: the linker defines start and end of the note, which is read-only.
    unsafe { bytes(build_id_start(), build_id_end()) }
}

/// # Safety
/// The range must be in the image and never be written.
unsafe fn bytes(start: u64, end: u64) -> &'static [u8] {
    let length = end.saturating_sub(start) as usize;
    // SAFETY: the image is identity-mapped; the caller guarantees the rest.
    unsafe { slice::from_raw_parts(ptr::with_exposed_provenance(start as usize), length) }
}

/// The guard pages below the stacks.
pub fn guards() -> [u64; 4] {
    [stack_guard(), double_fault_stack_guard(), nmi_stack_guard(), page_fault_stack_guard()]
}
