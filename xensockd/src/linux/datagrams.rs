//! Several datagrams in one system call, straight from and to memory that a guest shares.

use super::count;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::{array, io, mem, ptr};
use xen::Shared;

/// The most datagrams of one call.
pub const BATCH: usize = 32;

/// The private bytes for the rest of a datagram that is longer than its room. No datagram of UDP is
/// longer than this.
pub const REST: usize = 1 << 16;

/// The bytes of a control message with the number of dropped datagrams, in words.
const CONTROL: usize = 3;

/// A datagram that was received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Message {
    /// Its length, perhaps more than its room has.
    pub len: usize,
    /// Its sender.
    pub from: Option<SocketAddr>,
    /// How many datagrams Linux has dropped for lack of room up to this one, if any.
    pub dropped: Option<u32>,
}

/// Receives one datagram into each room, and what does not fit there into [`REST`] bytes of `rest`
/// each. Returns how many came; at most [`BATCH`].
pub fn receive_all<const N: usize>(
    socket: impl AsFd,
    rooms: &[[Shared<'_>; 2]],
    rest: &mut [u8],
    messages: &mut [Message; N],
) -> io::Result<usize> {
    let rests = rest.chunks_exact_mut(REST);
    let most = rooms.len().min(rests.len()).min(messages.len()).min(BATCH);
    let nothing = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
    let mut iovecs = [[nothing; 3]; BATCH];
    let mut names = [encode(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).0; BATCH];
    let mut controls = [[0_u64; CONTROL]; BATCH];
    let mut headers: [libc::mmsghdr; BATCH] = array::from_fn(|_| empty_header());
    for (at, (room, rest)) in rooms.iter().zip(rests).take(most).enumerate() {
        let rest = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        iovecs[at] = [super::iovec(room[0]), super::iovec(room[1]), rest];
        let header = &mut headers[at].msg_hdr;
        header.msg_name = (&raw mut names[at]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        header.msg_iov = iovecs[at].as_mut_ptr();
        header.msg_iovlen = iovecs[at].len() as _;
        header.msg_control = controls[at].as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&controls[at]) as _;
    }
    let socket = socket.as_fd().as_raw_fd();
    let (first, flags) = (headers.as_mut_ptr(), libc::MSG_DONTWAIT as _);
    // SAFETY: the first `most` headers describe live memory of the given sizes: iovecs of memory
    // that is mapped and writable while `rooms` borrows it, and of `rest`, which is borrowed; names
    // and control data of this function. No other reference to any of it is used meanwhile.
    let result = unsafe { libc::recvmmsg(socket, first, most as _, flags, ptr::null_mut()) };
    let came = count(result as isize)?;
    for (at, message) in messages[..came].iter_mut().enumerate() {
        let header = &headers[at];
        *message = Message {
            len: header.msg_len as usize,
            from: decode(&names[at], header.msg_hdr.msg_namelen),
            dropped: dropped(&controls[at], header.msg_hdr.msg_controllen as _),
        };
    }
    Ok(came)
}

/// Sends datagrams, each to its destination or to the peer of the socket. Returns how many were
/// sent. An error is that of the first one.
pub fn send_all<'a>(
    socket: impl AsFd,
    batch: impl Iterator<Item = (Option<SocketAddr>, [Shared<'a>; 2])>,
) -> io::Result<usize> {
    let nothing = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
    let mut iovecs = [[nothing; 2]; BATCH];
    let mut names = [encode(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).0; BATCH];
    let mut headers: [libc::mmsghdr; BATCH] = array::from_fn(|_| empty_header());
    let mut most = 0;
    for (at, (to, data)) in batch.take(BATCH).enumerate() {
        iovecs[at] = data.map(super::iovec);
        let header = &mut headers[at].msg_hdr;
        if let Some(to) = to {
            (names[at], header.msg_namelen) = encode(to);
            header.msg_name = (&raw mut names[at]).cast();
        }
        header.msg_iov = iovecs[at].as_mut_ptr();
        header.msg_iovlen = iovecs[at].len() as _;
        most += 1;
    }
    let socket = socket.as_fd().as_raw_fd();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: as for `receive_all`, and the memory of the guest is only read.
    let result = unsafe { libc::sendmmsg(socket, headers.as_mut_ptr(), most, flags as _) };
    count(result as isize)
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: a header of zeros is valid: no address, no data, no control data.
    unsafe { mem::zeroed() }
}

/// An address as Linux has it. A `sockaddr_in` is in the first bytes of the larger structure, with
/// its address where that has the flow.
fn encode(addr: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    let (family, flow, ip, scope, len) = match addr {
        SocketAddr::V4(addr) => {
            let len = size_of::<libc::sockaddr_in>();
            (libc::AF_INET, addr.ip().to_bits(), Ipv6Addr::UNSPECIFIED, 0, len)
        }
        SocketAddr::V6(addr) => {
            let len = size_of::<libc::sockaddr_in6>();
            (libc::AF_INET6, addr.flowinfo(), *addr.ip(), addr.scope_id(), len)
        }
    };
    let encoded = libc::sockaddr_in6 {
        sin6_family: family as libc::sa_family_t,
        sin6_port: addr.port().to_be(),
        sin6_flowinfo: flow.to_be(),
        sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
        sin6_scope_id: scope,
    };
    (encoded, len as libc::socklen_t)
}

fn decode(name: &libc::sockaddr_in6, len: libc::socklen_t) -> Option<SocketAddr> {
    let (port, flow) = (u16::from_be(name.sin6_port), u32::from_be(name.sin6_flowinfo));
    match i32::from(name.sin6_family) {
        libc::AF_INET if len as usize >= size_of::<libc::sockaddr_in>() => {
            Some(SocketAddrV4::new(Ipv4Addr::from_bits(flow), port).into())
        }
        libc::AF_INET6 if len as usize >= size_of::<libc::sockaddr_in6>() => {
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, port, flow, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// The number in a control message `SO_RXQ_OVFL`, the only one that these sockets get.
fn dropped(control: &[u64; CONTROL], len: usize) -> Option<u32> {
    // A `cmsghdr` is the length, the level and the type.
    let word = |word: u64, half: usize| {
        let bytes = word.to_ne_bytes();
        u32::from_ne_bytes([0, 1, 2, 3].map(|at| bytes[4 * half + at]))
    };
    let kind = (word(control[1], 0) as i32, word(control[1], 1) as i32);
    let is_it = len >= 20 && kind == (libc::SOL_SOCKET, libc::SO_RXQ_OVFL);
    is_it.then(|| word(control[2], 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_linux_gives_and_takes() {
        for text in ["127.1.2.3:258", "[fe80::1%3]:80", "[2001:db8::5]:65535", "0.0.0.0:0"] {
            let addr: SocketAddr = text.parse().unwrap();
            let (name, len) = encode(addr);
            assert_eq!(decode(&name, len), Some(addr));
            assert_eq!(decode(&name, len - 1), None);
        }
    }
}
