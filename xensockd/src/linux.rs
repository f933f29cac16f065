//! Linux's interfaces that no library wraps safely, or that the libraries do not have.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::{io, mem};
use xen::Shared;

/// Receives straight into up to two pieces of memory that a guest shares: the kernel's copy is the
/// only one. Returns 0 at the end of the stream, or if there is no room.
pub fn receive(socket: impl AsFd, room: [Shared<'_>; 2]) -> io::Result<usize> {
    let mut iovecs = room.map(iovec);
    let mut header = header(&mut iovecs);
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the header points to two iovecs, which describe memory that is mapped and writable
    // while `room` borrows it; no reference to it exists. All of them outlive the call.
    count(unsafe { libc::recvmsg(socket, &raw mut header, libc::MSG_DONTWAIT) })
}

/// Sends straight from up to two pieces of memory that a guest shares. A connection that the peer
/// has closed is an error, not a signal.
pub fn send(socket: impl AsFd, data: [Shared<'_>; 2]) -> io::Result<usize> {
    let mut iovecs = data.map(iovec);
    let header = header(&mut iovecs);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: as for `receive`, and the memory is only read.
    count(unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) })
}

fn iovec(bytes: Shared<'_>) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast(), iov_len: bytes.len() }
}

fn header(iovecs: &mut [libc::iovec; 2]) -> libc::msghdr {
    // SAFETY: a header of zeros is valid: no address, no control data.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = iovecs.as_mut_ptr();
    header.msg_iovlen = iovecs.len() as _;
    header
}

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sets `SO_BUSY_POLL`.
pub fn set_busy_poll(socket: &OwnedFd, microseconds: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(microseconds).unwrap_or(libc::c_int::MAX);
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_BUSY_POLL);
    let value = (&raw const value).cast();
    // SAFETY: the value is a live `int` of the given size, and the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, size) };
    count(result as isize).map(drop)
}

/// Returns `SO_BUSY_POLL`.
pub fn busy_poll(socket: &OwnedFd) -> io::Result<u32> {
    let mut microseconds: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_BUSY_POLL);
    let value = (&raw mut microseconds).cast();
    // SAFETY: the value is a live `int` of the given size, and the kernel writes no more than that.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value, &raw mut size) };
    count(result as isize)?;
    Ok(u32::try_from(microseconds).unwrap_or(0))
}

/// Installs a seccomp filter for this thread and those that it starts. What it refuses is written
/// to the kernel's log, which the crate that compiles filters cannot ask for.
pub fn install_filter(filter: &[seccompiler::sock_filter]) -> io::Result<()> {
    let len = filter.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    // The two types are those of the same structure in C.
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut().cast() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program is laid out as the kernel reads it, and lives until the call returns. The
    // kernel only reads it.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, mode, libc::SECCOMP_FILTER_FLAG_LOG, &raw const program)
    };
    count(result as isize).map(drop)
}
