//! `io/console.h`: the page that a domain and its console's server share.

/// Bytes of the ring from the server to the domain.
pub const XENCONS_IN_SIZE: usize = 1024;
/// Bytes of the ring from the domain to the server.
pub const XENCONS_OUT_SIZE: usize = 2048;

/// The page (`struct xencons_interface`).
#[derive(Debug)]
#[repr(C)]
pub struct XenconsInterface {
    /// What was typed.
    pub input: [u8; XENCONS_IN_SIZE],
    /// What is to be shown.
    pub output: [u8; XENCONS_OUT_SIZE],
    /// How many bytes of input the domain has taken.
    pub in_cons: u32,
    /// How many bytes of input the server has written.
    pub in_prod: u32,
    /// How many bytes of output the server has taken.
    pub out_cons: u32,
    /// How many bytes of output the domain has written.
    pub out_prod: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(XenconsInterface, output) == 1024);
    assert!(offset_of!(XenconsInterface, in_cons) == 3072);
    assert!(offset_of!(XenconsInterface, out_prod) == 3084);
};
