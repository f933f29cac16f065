//! Integration tests in real Xen.
fn main() {}
