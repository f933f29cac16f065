//! Receiving and sending straight from and to memory that a guest shares: one copy, the kernel's.

use std::os::fd::{AsFd, AsRawFd};
use std::{io, mem, ptr};
use xen::Shared;

/// Receives into up to two runs of bytes. 0 is the end of the stream, if there is room at all.
pub fn receive(socket: impl AsFd, room: [Shared<'_>; 2]) -> io::Result<usize> {
    let mut iovecs = room.map(iovec);
    let mut header = header(&mut iovecs);
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the header points to two iovecs, which describe memory that is mapped and writable
    // while `room` borrows it; no reference to it exists. All of them outlive the call.
    result(unsafe { libc::recvmsg(socket, &raw mut header, libc::MSG_DONTWAIT) })
}

/// Sends from up to two runs of bytes. A peer that is gone is an error, not a signal.
pub fn send(socket: impl AsFd, data: [Shared<'_>; 2]) -> io::Result<usize> {
    let mut iovecs = data.map(iovec);
    let header = header(&mut iovecs);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: as for `receive`, and the memory is only read.
    result(unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) })
}

fn iovec(bytes: Shared<'_>) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast(), iov_len: bytes.len() }
}

fn header(iovecs: &mut [libc::iovec; 2]) -> libc::msghdr {
    // SAFETY: a header of zeros is a valid one: no address, no control data.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = ptr::null_mut();
    header.msg_iov = iovecs.as_mut_ptr();
    header.msg_iovlen = iovecs.len() as _;
    header
}

fn result(len: isize) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}
