//! Where the parts of the kernel's own image lie: `linker.ld` and `boot/pvh.S` name them.

use super::ram::{Kind, Region};

macro_rules! addresses {
    ($($(#[$doc:meta])* $name:ident = $symbol:ident;)*) => {
        mod symbols {
            unsafe extern "C" { $(pub static $symbol: u8;)* }
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
    /// The first address of what can be written.
    data_start = image_data_start;
    /// The address behind the image.
    end = image_end;
    /// The unmapped page below the stack.
    stack_guard = stack_guard;
    /// The unmapped page below the double fault handler's stack.
    double_fault_stack_guard = double_fault_stack_guard;
    /// Where the double fault handler's stack starts, growing down.
    double_fault_stack_top = double_fault_stack_top;
    /// The unmapped page below the NMI handler's stack.
    nmi_stack_guard = nmi_stack_guard;
    /// Where the NMI handler's stack starts, growing down.
    nmi_stack_top = nmi_stack_top;
    /// The unmapped page below the page fault handler's stack.
    page_fault_stack_guard = page_fault_stack_guard;
    /// Where the page fault handler's stack starts, growing down.
    page_fault_stack_top = page_fault_stack_top;
}

/// The whole image: code, constants, data, stacks.
pub fn region() -> Region {
    Region { start: text_start(), end: end(), kind: Kind::Reserved }
}

/// The pages below stacks.
pub fn guards() -> [u64; 4] {
    [stack_guard(), double_fault_stack_guard(), nmi_stack_guard(), page_fault_stack_guard()]
}
