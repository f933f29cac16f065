//! Maps the protocol's socket options to Linux's.

use crate::linux::{busy_poll, set_busy_poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use xensock::wire::SocketOption;

/// Sets an option.
pub fn set(socket: &OwnedFd, option: SocketOption, value: u32) -> io::Result<()> {
    let seconds = Duration::from_secs(value.into());
    match option {
        SocketOption::ReuseAddr => sockopt::set_socket_reuseaddr(socket, value != 0)?,
        SocketOption::ReusePort => sockopt::set_socket_reuseport(socket, value != 0)?,
        SocketOption::NoDelay => sockopt::set_tcp_nodelay(socket, value != 0)?,
        SocketOption::KeepAlive => sockopt::set_socket_keepalive(socket, value != 0)?,
        SocketOption::KeepIdle => sockopt::set_tcp_keepidle(socket, seconds)?,
        SocketOption::KeepInterval => sockopt::set_tcp_keepintvl(socket, seconds)?,
        SocketOption::KeepCount => sockopt::set_tcp_keepcnt(socket, value)?,
        SocketOption::BusyPoll => set_busy_poll(socket, value)?,
        // Any other time would make `close` block the daemon; the engine waits instead.
        SocketOption::Linger => {
            sockopt::set_socket_linger(socket, (value == 0).then_some(Duration::ZERO))?;
        }
        SocketOption::Broadcast => sockopt::set_socket_broadcast(socket, value != 0)?,
        SocketOption::Ttl if is_ipv6(socket)? => {
            let hops = u8::try_from(value).map_err(|_| Errno::INVAL)?;
            sockopt::set_ipv6_unicast_hops(socket, Some(hops))?;
        }
        SocketOption::Ttl => sockopt::set_ip_ttl(socket, value)?,
        SocketOption::MulticastTtl if is_ipv6(socket)? => {
            sockopt::set_ipv6_multicast_hops(socket, value)?;
        }
        SocketOption::MulticastTtl => sockopt::set_ip_multicast_ttl(socket, value)?,
        SocketOption::MulticastLoop if is_ipv6(socket)? => {
            sockopt::set_ipv6_multicast_loop(socket, value != 0)?;
        }
        SocketOption::MulticastLoop => sockopt::set_ip_multicast_loop(socket, value != 0)?,
        SocketOption::ReceiveBuffer | SocketOption::SendBuffer => return Err(unknown()),
    }
    Ok(())
}

/// Whether a socket is of IPv6, which has its own options.
fn is_ipv6(socket: &OwnedFd) -> io::Result<bool> {
    Ok(sockopt::socket_domain(socket)? == AddressFamily::INET6)
}

/// Returns an option's value.
pub fn get(socket: &OwnedFd, option: SocketOption) -> io::Result<u32> {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    Ok(match option {
        SocketOption::ReuseAddr => sockopt::socket_reuseaddr(socket)?.into(),
        SocketOption::ReusePort => sockopt::socket_reuseport(socket)?.into(),
        SocketOption::NoDelay => sockopt::tcp_nodelay(socket)?.into(),
        SocketOption::KeepAlive => sockopt::socket_keepalive(socket)?.into(),
        SocketOption::KeepIdle => seconds(sockopt::tcp_keepidle(socket)?),
        SocketOption::KeepInterval => seconds(sockopt::tcp_keepintvl(socket)?),
        SocketOption::KeepCount => sockopt::tcp_keepcnt(socket)?,
        SocketOption::BusyPoll => busy_poll(socket)?,
        SocketOption::Linger => sockopt::socket_linger(socket)?.map_or(i32::MAX as u32, seconds),
        SocketOption::Broadcast => sockopt::socket_broadcast(socket)?.into(),
        SocketOption::Ttl if is_ipv6(socket)? => sockopt::ipv6_unicast_hops(socket)?.into(),
        SocketOption::Ttl => sockopt::ip_ttl(socket)?,
        SocketOption::MulticastTtl if is_ipv6(socket)? => sockopt::ipv6_multicast_hops(socket)?,
        SocketOption::MulticastTtl => sockopt::ip_multicast_ttl(socket)?,
        SocketOption::MulticastLoop if is_ipv6(socket)? => {
            sockopt::ipv6_multicast_loop(socket)?.into()
        }
        SocketOption::MulticastLoop => sockopt::ip_multicast_loop(socket)?.into(),
        SocketOption::ReceiveBuffer | SocketOption::SendBuffer => return Err(unknown()),
    })
}

fn unknown() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOPROTOOPT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SocketType, socket};

    #[test]
    fn an_option_that_was_set_is_returned() {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        for (option, value) in [
            (SocketOption::ReuseAddr, 1),
            (SocketOption::ReusePort, 1),
            (SocketOption::NoDelay, 1),
            (SocketOption::KeepAlive, 1),
            (SocketOption::KeepIdle, 77),
            (SocketOption::KeepInterval, 7),
            (SocketOption::KeepCount, 3),
            (SocketOption::BusyPoll, 50),
            (SocketOption::Linger, 0),
        ] {
            set(&socket, option, value).unwrap();
            assert_eq!(get(&socket, option).unwrap(), value, "{option:?}");
        }
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            let socket = rustix::net::socket(family, SocketType::DGRAM, None).unwrap();
            for (option, value, wrong) in [
                (SocketOption::Broadcast, 1, None),
                (SocketOption::Ttl, 7, Some(256)),
                (SocketOption::MulticastTtl, 255, Some(256)),
                (SocketOption::MulticastLoop, 0, None),
            ] {
                set(&socket, option, value).unwrap();
                assert_eq!(get(&socket, option).unwrap(), value, "{family:?}: {option:?}");
                assert!(wrong.is_none_or(|wrong| set(&socket, option, wrong).is_err()));
            }
        }
        set(&socket, SocketOption::Linger, 5).unwrap();
        assert_eq!(get(&socket, SocketOption::Linger).unwrap(), i32::MAX as u32);
        assert!(set(&socket, SocketOption::KeepCount, 1_000_000).is_err());
        assert!(set(&socket, SocketOption::SendBuffer, 4096).is_err());
    }
}
