//! The XenSock and PV Calls backend as a daemon for dom0.

fn main() {}
