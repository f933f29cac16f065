//! `hvm/params.h`: a domain's parameters.

/// How events are delivered to the virtual CPU. The type is in the top byte.
pub const HVM_PARAM_CALLBACK_IRQ: u32 = 0;
/// A type of [`HVM_PARAM_CALLBACK_IRQ`]: the low byte is an interrupt vector, delivered past the
/// local APIC, so without an end of interrupt.
pub const HVM_PARAM_CALLBACK_TYPE_VECTOR: u64 = 2;
/// The position of the type, in bits.
pub const HVM_PARAM_CALLBACK_IRQ_TYPE_SHIFT: u32 = 56;
/// The frame of xenstore's rings.
pub const HVM_PARAM_STORE_PFN: u32 = 1;
/// The event channel of xenstore's rings.
pub const HVM_PARAM_STORE_EVTCHN: u32 = 2;
/// The frame of the console's rings.
pub const HVM_PARAM_CONSOLE_PFN: u32 = 17;
/// The event channel of the console's rings.
pub const HVM_PARAM_CONSOLE_EVTCHN: u32 = 18;
