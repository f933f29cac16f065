//! `io/console.h`: the page that a domain shares with the console daemon.

/// The size of the input ring in bytes.
pub const XENCONS_IN_SIZE: usize = 1024;
/// The size of the output ring in bytes.
pub const XENCONS_OUT_SIZE: usize = 2048;

structures! {
    /// The page (`struct xencons_interface`).
    XenconsInterface: 3088 {
        /// The input of the user.
        input: [u8; XENCONS_IN_SIZE] = 0,
        /// The output of the domain.
        output: [u8; XENCONS_OUT_SIZE] = 1024,
        /// Consumer index of the input, written by the domain.
        in_cons: u32 = 3072,
        /// Producer index of the input, written by the daemon.
        in_prod: u32 = 3076,
        /// Consumer index of the output, written by the daemon.
        out_cons: u32 = 3080,
        /// Producer index of the output, written by the domain.
        out_prod: u32 = 3084,
    }
}
