//! Linux's interfaces that no library wraps safely, or that the libraries do not have.

pub mod datagrams;

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
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
    set_number(socket, (libc::SOL_SOCKET, libc::SO_BUSY_POLL), value)
}

/// Lets a socket of datagrams say how many were dropped (`SO_RXQ_OVFL`).
pub fn set_drop_count(socket: &OwnedFd) -> io::Result<()> {
    set_number(socket, (libc::SOL_SOCKET, libc::SO_RXQ_OVFL), 1)
}

/// Keeps from a socket what is sent to groups that only other sockets of this domain have joined
/// (`IP_MULTICAST_ALL`).
pub fn set_own_groups_only(socket: &OwnedFd, is_ipv6: bool) -> io::Result<()> {
    // A socket for IPv6 also gets groups of IPv4.
    set_number(socket, (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL), 0)?;
    match is_ipv6 {
        true => set_number(socket, (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL), 0),
        false => Ok(()),
    }
}

fn set_number(
    socket: &OwnedFd,
    (level, option): (libc::c_int, libc::c_int),
    value: libc::c_int,
) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
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

/// The files that the process got from the one that started it: this many, from number `first` on.
/// Only the first call returns them.
pub fn passed_files(first: RawFd, count: usize) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let numbers = (first..).take(count);
    // SAFETY: the call takes no pointers, and fails if there is no such file.
    let open = numbers.take_while(|number| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0);
    // SAFETY: it is open, as the process was started with it, so that no other file of this process
    // has the number; nobody else owns it, as the caller says what it was passed for, once.
    open.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
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
