//! The image that comes with XenSock, with TLS.
#![no_std]
#![no_main]

extern crate alloc;

mod image;
