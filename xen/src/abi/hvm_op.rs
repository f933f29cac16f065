//! `hvm/hvm_op.h`: reading and setting the parameters in [`hvm_params`](super::hvm_params).

/// Sets a parameter.
pub const HVMOP_SET_PARAM: u32 = 0;
/// Reads a parameter.
pub const HVMOP_GET_PARAM: u32 = 1;

structures! {
    /// Argument of both (`struct xen_hvm_param`).
    HvmParam: 16 {
        /// The domain.
        domid: u16 = 0,
        /// Unused.
        pad: u16 = 2,
        /// `HVM_PARAM_*`.
        index: u32 = 4,
        /// In or out: the value.
        value: u64 = 8,
    }
}
