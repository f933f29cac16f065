//! Socket options. The protocol numbers them itself, as operating systems use different numbers.

use xen::Errno;

macro_rules! options {
    ($($(#[$meaning:meta])* $name:ident = $number:literal,)*) => {
        /// A socket option. Values are numbers from 0 to `i32::MAX`; switches are 0 or 1.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum SocketOption { $($(#[$meaning])* $name = $number,)* }

        impl SocketOption {
            /// All of them, by number.
            pub const ALL: &'static [SocketOption] = &[$(SocketOption::$name,)*];
        }
    };
}

options! {
    /// `SO_REUSEADDR`: a switch, before BIND. Backends may set it by default.
    ReuseAddr = 1,
    /// `SO_REUSEPORT`: a switch, before BIND. Listeners of the same address share its connections.
    ReusePort = 2,
    /// `TCP_NODELAY`: a switch. Backends set it by default.
    NoDelay = 3,
    /// `SO_KEEPALIVE`: a switch.
    KeepAlive = 4,
    /// `TCP_KEEPIDLE`, in seconds.
    KeepIdle = 5,
    /// `TCP_KEEPINTVL`, in seconds.
    KeepInterval = 6,
    /// `TCP_KEEPCNT`, a number of probes.
    KeepCount = 7,
    /// `SO_BUSY_POLL`, in microseconds.
    BusyPoll = 8,
    /// `SO_LINGER`, in seconds: how long a RELEASE may continue to send what is left in the ring,
    /// up to the backend's own limit. 0 discards it and resets the connection.
    Linger = 9,
    /// `SO_RCVBUF`, in bytes: the size of the ring's `in`. Not on the wire: the frontend offers a
    /// ring of that size.
    ReceiveBuffer = 10,
    /// `SO_SNDBUF`, in bytes: the size of the ring's `out`, likewise.
    SendBuffer = 11,
    /// `SO_BROADCAST`: a switch. Without it, datagrams to broadcast addresses fail with
    /// [`Errno::EACCES`].
    Broadcast = 12,
    /// `IP_TTL` or, for an IPv6 socket, `IPV6_UNICAST_HOPS`: 1 to 255.
    Ttl = 13,
    /// `IP_MULTICAST_TTL` or `IPV6_MULTICAST_HOPS`: 0 to 255.
    MulticastTtl = 14,
    /// `IP_MULTICAST_LOOP` or `IPV6_MULTICAST_LOOP`: a switch. Whether sockets of the backend's
    /// own system get what is sent to a group.
    MulticastLoop = 15,
}

impl SocketOption {
    /// The option's number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Decodes the number on the wire. [`Errno::ENOPROTOOPT`] if it is unknown.
    pub fn from_number(number: u32) -> Result<SocketOption, Errno> {
        SocketOption::ALL
            .iter()
            .copied()
            .find(|option| option.number() == number && !option.is_ring_size())
            .ok_or(Errno::ENOPROTOOPT)
    }

    /// Whether this is a size of the ring, which the frontend alone decides.
    pub fn is_ring_size(self) -> bool {
        matches!(self, SocketOption::ReceiveBuffer | SocketOption::SendBuffer)
    }
}

/// Options for a new socket.
///
/// ```
/// use xensock::wire::{Options, SocketOption};
///
/// let options = Options::new().with(SocketOption::KeepAlive, 1).with(SocketOption::KeepIdle, 60);
/// assert_eq!(options.get(SocketOption::KeepIdle), Some(60));
/// assert_eq!(options.get(SocketOption::NoDelay), None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options([Option<u32>; SocketOption::ALL.len()]);

impl Options {
    /// No option: the backend's defaults.
    pub const fn new() -> Self {
        Options([None; SocketOption::ALL.len()])
    }

    /// Adds or changes an option.
    pub const fn with(mut self, option: SocketOption, value: u32) -> Self {
        self.0[option as usize - 1] = Some(value);
        self
    }

    /// Adds or changes an option.
    pub fn set(&mut self, option: SocketOption, value: u32) {
        self.0[option as usize - 1] = Some(value);
    }

    /// The value of an option, if it is set.
    pub fn get(&self, option: SocketOption) -> Option<u32> {
        self.0[option as usize - 1]
    }

    /// The options that are set, by number.
    pub fn iter(&self) -> impl Iterator<Item = (SocketOption, u32)> {
        SocketOption::ALL.iter().filter_map(|&option| Some((option, self.get(option)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_decoded_from_their_numbers() {
        for (number, &option) in (1..).zip(SocketOption::ALL) {
            assert_eq!(option.number(), number);
            let found = SocketOption::from_number(number);
            let local = option.is_ring_size();
            assert_eq!(found, if local { Err(Errno::ENOPROTOOPT) } else { Ok(option) });
        }
        assert_eq!(SocketOption::from_number(0), Err(Errno::ENOPROTOOPT));
    }

    #[test]
    fn the_last_value_of_an_option_counts() {
        let mut options = Options::new().with(SocketOption::KeepIdle, 5);
        options.set(SocketOption::KeepIdle, 6);
        options.set(SocketOption::ReuseAddr, 1);
        let all: Vec<_> = options.iter().collect();
        assert_eq!(all, [(SocketOption::ReuseAddr, 1), (SocketOption::KeepIdle, 6)]);
    }
}
