//! This domain's own addresses, kept current by the kernel's messages.

use crate::rules::OwnAddresses;
use ipnet::IpNet;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use xen::Side;
use xen_linux::runtime::{READABLE, Reactor, Watched};

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` of `linux/rtnetlink.h`.
const GROUPS: u32 = 0x10 | 0x100;

/// Keeps a list of addresses current.
pub struct Addresses {
    changes: Watched,
    own: OwnAddresses,
}

impl Addresses {
    /// Fills the list.
    pub fn new(reactor: &Reactor, own: OwnAddresses) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        // No protocol is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        // Read after the socket is bound, so that no change is missed.
        own.set(read()?);
        Ok(Addresses { changes: reactor.watch(Rc::new(socket), READABLE)?, own })
    }

    /// Runs until the kernel fails.
    pub async fn run(&self) -> io::Result<Infallible> {
        loop {
            // What has changed does not matter, nor does it if messages are lost. All that came
            // together are one change.
            let take = |socket: &OwnedFd| recv(socket, &mut [0_u8; 64], RecvFlags::empty());
            let taken = poll_fn(|cx| {
                self.changes.poll_io(cx, Side::Rx, |socket| {
                    take(socket)?;
                    while take(socket).is_ok() {}
                    Ok(())
                })
            });
            match taken.await {
                Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(error),
                _ => self.own.set(read()?),
            }
        }
    }
}

fn read() -> io::Result<Vec<IpNet>> {
    Ok(getifaddrs()?.filter_map(|interface| network(&interface)).collect())
}

/// An interface's address. That of a loopback interface stands for its network: Linux takes
/// packets to all of it.
fn network(interface: &InterfaceAddress) -> Option<IpNet> {
    let ip = ip(interface.address.as_ref()?)?;
    let whole = interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
    let mask = interface.netmask.as_ref().and_then(self::ip).filter(|_| whole);
    match mask {
        Some(mask) => IpNet::with_netmask(ip, mask).ok(),
        None => Some(ip.into()),
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
    v4.or_else(|| Some(address.as_sockaddr_in6()?.ip().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_a_network() {
        let all = read().unwrap();
        assert!(all.iter().any(|own| own.contains(&"127.9.9.9".parse::<IpAddr>().unwrap())));
    }
}
