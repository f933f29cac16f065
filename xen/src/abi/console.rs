//! `io/console.h`: the page that a domain and its console's server share.

/// Bytes of the ring from the server to the domain.
pub const XENCONS_IN_SIZE: usize = 1024;
/// Bytes of the ring from the domain to the server.
pub const XENCONS_OUT_SIZE: usize = 2048;

structures! {
    /// The page (`struct xencons_interface`).
    XenconsInterface: 3088 {
        /// What was typed.
        input: [u8; XENCONS_IN_SIZE] = 0,
        /// What is to be shown.
        output: [u8; XENCONS_OUT_SIZE] = 1024,
        /// How many bytes of input the domain has taken.
        in_cons: u32 = 3072,
        /// How many bytes of input the server has written.
        in_prod: u32 = 3076,
        /// How many bytes of output the server has taken.
        out_cons: u32 = 3080,
        /// How many bytes of output the domain has written.
        out_prod: u32 = 3084,
    }
}
