//! The image that comes with XenSock.
#![no_std]
#![no_main]

extern crate alloc;

mod image;
