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
use std::time::Duration;
use xen::Side;
use xen_linux::runtime::{READABLE, Reactor, Watched};

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` of `linux/rtnetlink.h`.
const GROUPS: u32 = 0x10 | 0x100;

/// How long to wait before another try if the addresses cannot be read, as the daemon has no more
/// files or no memory.
const REST: Duration = Duration::from_secs(1);

/// Keeps a list of addresses current.
pub struct Addresses {
    changes: Watched,
    own: OwnAddresses,
    reactor: Reactor,
}

impl Addresses {
    /// Fills the list.
    pub fn new(reactor: &Reactor, own: OwnAddresses) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        // No protocol is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        // Read after the socket is bound, so that no change is missed.
        let (all, broadcast) = read()?;
        own.set_with_broadcast(all, broadcast);
        let changes = reactor.watch(Rc::new(socket), READABLE)?;
        Ok(Addresses { changes, own, reactor: reactor.clone() })
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
                _ => {
                    let (all, broadcast) = self.read().await;
                    self.own.set_with_broadcast(all, broadcast);
                }
            }
        }
    }

    /// The present addresses. Guests must not end the daemon by using up what reading them needs.
    async fn read(&self) -> (Vec<IpNet>, Vec<IpAddr>) {
        loop {
            match read() {
                Ok(all) => return all,
                Err(error) => log::error!("cannot read this domain's addresses: {error}; retrying"),
            }
            self.reactor.sleep(REST).await;
        }
    }
}

/// The addresses, and the broadcast addresses.
fn read() -> io::Result<(Vec<IpNet>, Vec<IpAddr>)> {
    let (mut all, mut broadcast) = (Vec::new(), Vec::new());
    for interface in getifaddrs()? {
        all.extend(network(&interface));
        broadcast.extend(broadcasts(&interface).into_iter().flatten());
    }
    Ok((all, broadcast))
}

/// The addresses by which Linux reaches all hosts of an interface's network: the one that was set,
/// and the last and first one of the network.
fn broadcasts(interface: &InterfaceAddress) -> Option<Vec<IpAddr>> {
    if !interface.flags.contains(InterfaceFlags::IFF_BROADCAST) {
        return None;
    }
    let (ip, mask) = (ip(interface.address.as_ref()?)?, ip(interface.netmask.as_ref()?)?);
    let net = IpNet::with_netmask(ip, mask).ok().filter(|net| net.addr().is_ipv4())?;
    // A network of two addresses has none.
    let ends = [net.broadcast(), net.network()].into_iter().filter(|_| net.prefix_len() < 31);
    let set = interface.broadcast.as_ref().and_then(self::ip).filter(|set| *set != ip);
    Some(ends.chain(set).collect())
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
        let (all, _) = read().unwrap();
        assert!(all.iter().any(|own| own.contains(&"127.9.9.9".parse::<IpAddr>().unwrap())));
    }
}
