//! `hvm/hvm_op.h`: reading and setting the parameters in [`hvm_params`](super::hvm_params).

/// Sets a parameter.
pub const HVMOP_SET_PARAM: u32 = 0;
/// Reads a parameter.
pub const HVMOP_GET_PARAM: u32 = 1;

/// Argument of both (`struct xen_hvm_param`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HvmParam {
    /// Whose parameter.
    pub domid: u16,
    /// Unused.
    pub pad: u16,
    /// `HVM_PARAM_*`.
    pub index: u32,
    /// In or out: the value.
    pub value: u64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<HvmParam>() == 16);
    assert!(offset_of!(HvmParam, value) == 8);
};
